"""The batched strong view against Pillow, image by image, and against the authors' outputs."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.stats import chisquare, ks_2samp, kstest

from eakd.data import ImageData, Pipeline
from eakd.data.randaugment import (
    CUTOUT_COLOUR,
    OPERATIONS,
    Parameters,
    RandAugment,
    apply_parameters,
    cutout,
    draw_parameters,
    randaugment,
)
from eakd.errors import UserError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augment.npz")
NAMES = [operation.apply.__name__ for operation in OPERATIONS]
BY_NAME = dict(zip(NAMES, OPERATIONS, strict=True))


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# What each operation means, in Pillow's words.
PILLOW = {
    "autocontrast": lambda image, v: ImageOps.autocontrast(image),
    "brightness": lambda image, v: ImageEnhance.Brightness(image).enhance(v),
    "color": lambda image, v: ImageEnhance.Color(image).enhance(v),
    "contrast": lambda image, v: ImageEnhance.Contrast(image).enhance(v),
    "equalize": lambda image, v: ImageOps.equalize(image),
    "identity": lambda image, v: image,
    "posterize": lambda image, v: ImageOps.posterize(image, int(v)),
    "rotate": lambda image, v: image.rotate(v),
    "sharpness": lambda image, v: ImageEnhance.Sharpness(image).enhance(v),
    "shear_x": lambda image, v: affine(image, 1, v, 0, 0, 1, 0),
    "shear_y": lambda image, v: affine(image, 1, 0, 0, v, 1, 0),
    "solarize": lambda image, v: ImageOps.solarize(image, v),
    "translate_x": lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0),
    "translate_y": lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height),
}


def pillow_cutout(image, size, centre):
    side = size * image.width
    if side <= 0:
        return image
    x, y = (int(max(0, c - side / 2)) for c in centre)
    image = image.copy()
    corner = min(image.width, x + side), min(image.height, y + side)
    ImageDraw.Draw(image).rectangle((x, y, *corner), CUTOUT_COLOUR)
    return image


def pictures(n, height, width, seed=0):
    """Noise, narrow ranges, few levels, single colours: what histograms stumble over."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, height, width, 3))
    low, high = np.sort(generator.integers(0, 256, (2, n, 1, 1, 3)), axis=0)
    narrow = low + images * (high - low) // 255
    kind = generator.integers(0, 4, n)
    images[kind == 1] = narrow[kind == 1]
    images[kind == 2] = images[kind == 2] // 64 * 64
    images[kind == 3] = images[kind == 3][:, :1, :1]
    return images.astype(np.uint8)


def by_pillow(images, function):
    return np.stack([np.asarray(function(i, Image.fromarray(x))) for i, x in enumerate(images)])


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (17, 23)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operation_equals_pillow(name, shape):
    operation = BY_NAME[name]
    images = pictures(120, *shape)
    values = np.random.default_rng(1).uniform(operation.low, operation.high, 120)
    values[:3] = operation.low, operation.high, (operation.low + operation.high) / 2
    found = operation.apply(torch.tensor(images), torch.tensor(values))
    assert found.dtype == torch.uint8
    expected = by_pillow(images, lambda i, image: PILLOW[name](image, values[i]))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(32, 32), (17, 23)], ids=str)
def test_cutout_equals_pillow(shape):
    images = pictures(300, *shape)
    p = draw_parameters(300, *shape, torch.Generator().manual_seed(0))
    p.cutout_size[0] = 0.0
    found = cutout(torch.tensor(images), p.cutout_size, p.cutout_centre)
    sizes, centres = p.cutout_size.tolist(), p.cutout_centre.tolist()
    expected = by_pillow(images, lambda i, image: pillow_cutout(image, sizes[i], centres[i]))
    assert np.array_equal(found, expected)


def test_whole_policy_equals_pillow():
    images = pictures(500, 32, 32)
    p = draw_parameters(500, 32, 32, torch.Generator().manual_seed(0))

    def chain(i, image):
        for k, value in zip(p.operations[i].tolist(), p.magnitudes[i].tolist(), strict=True):
            image = PILLOW[NAMES[k]](image, value)
        return pillow_cutout(image, p.cutout_size[i].item(), p.cutout_centre[i].tolist())

    assert np.array_equal(apply_parameters(torch.tensor(images), p), by_pillow(images, chain))


def golden_cases(prefix):
    return [str(name) for name in GOLDEN["cases"] if str(name).startswith(prefix)]


def golden_case(name):
    image = torch.tensor(GOLDEN["in/img/image"])[None]
    return json.loads(str(GOLDEN[f"{name}/hyper"])), image, GOLDEN[f"{name}/out/image"]


@pytest.mark.parametrize("name", golden_cases("op"))
def test_golden_operations(name):
    hyper, image, expected = golden_case(name)
    position = int(name[2:4])
    assert NAMES[position].replace("_", "") == hyper["op"].lower()
    operation = OPERATIONS[position]
    assert (operation.low, operation.high) == (hyper["min"], hyper["max"])
    value = torch.tensor([hyper["value"]], dtype=torch.float64)
    assert np.array_equal(operation.apply(image, value)[0], expected)


@pytest.mark.parametrize("name", golden_cases("cutout"))
def test_golden_cutout(name):
    hyper, image, expected = golden_case(name)
    numpy = np.random.RandomState(hyper["numpy_seed"])
    size = torch.tensor([hyper["value"]], dtype=torch.float64)
    centre = torch.tensor([[numpy.uniform(32), numpy.uniform(32)]])
    assert np.array_equal(cutout(image, size, centre)[0], expected)


@pytest.mark.parametrize("name", golden_cases("randaugment"))
def test_golden_policy(name):
    """The authors' draws, in the authors' order, give the authors' image."""
    hyper, image, expected = golden_case(name)
    python = random.Random(hyper["python_seed"])
    numpy = np.random.RandomState(hyper["numpy_seed"])
    chosen = python.choices(range(len(OPERATIONS)), k=2)
    values = [
        OPERATIONS[k].low + float(OPERATIONS[k].high - OPERATIONS[k].low) * python.random()
        for k in chosen
    ]
    size = python.random() * 0.5
    centre = [numpy.uniform(32), numpy.uniform(32)]
    parameters = Parameters(
        torch.tensor([chosen]),
        *(torch.tensor(x, dtype=torch.float64) for x in ([values], [size], [centre])),
    )
    assert np.array_equal(apply_parameters(image, parameters)[0], expected)


def test_distribution_of_the_parameters():
    p = draw_parameters(20_000, 32, 32, torch.Generator().manual_seed(0))
    for column in range(2):
        counts = p.operations[:, column].bincount(minlength=len(OPERATIONS))
        assert chisquare(counts).pvalue > 1e-3
    pairs = (p.operations[:, 0] * len(OPERATIONS) + p.operations[:, 1]).bincount()
    assert chisquare(pairs).pvalue > 1e-3  # independent, with replacement
    for k, (_, low, high) in enumerate(OPERATIONS):
        values = (p.magnitudes[p.operations == k] - low) / (high - low)
        assert kstest(values.numpy(), "uniform").pvalue > 1e-4
    assert kstest(p.cutout_size.numpy() * 2, "uniform").pvalue > 1e-3
    for axis in range(2):
        assert kstest((p.cutout_centre[:, axis].numpy() - 1) / 31, "uniform").pvalue > 1e-3


def test_distribution_of_the_views():
    """Brightness, contrast and hidden pixels are spread as in the authors' one-image pipeline."""
    base = pictures(1, 32, 32)[0]
    python, numpy = random.Random(0), np.random.RandomState(0)

    def one_image(i, image):
        for k in python.choices(range(len(OPERATIONS)), k=2):
            low, high = OPERATIONS[k].low, OPERATIONS[k].high
            image = PILLOW[NAMES[k]](image, low + float(high - low) * python.random())
        size = 0.5 * python.random()
        return pillow_cutout(image, size, [numpy.uniform(32), numpy.uniform(32)])

    images = np.repeat(base[None], 1500, axis=0)
    expected = by_pillow(images, one_image)
    found = randaugment(torch.tensor(images), torch.Generator().manual_seed(1)).numpy()
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: (x == CUTOUT_COLOUR).all(-1).mean((1, 2)),
        lambda x: (x == 0).all(-1).mean((1, 2)),
    ):
        assert ks_2samp(statistic(found), statistic(expected)).pvalue > 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(3, 20), st.integers(3, 20), st.integers(0, 2**40))
def test_any_batch(n, height, width, seed):
    images = torch.tensor(pictures(n, height, width, seed))
    kept = images.clone()
    first, second = (randaugment(images, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert first.shape == images.shape and first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert torch.equal(images, kept)
    # A view depends on its own parameters alone.
    p = draw_parameters(n, height, width, torch.Generator().manual_seed(seed))
    parts = slice(None, n // 2), slice(n // 2, None)
    halves = [apply_parameters(images[part], Parameters(*(x[part] for x in p))) for part in parts]
    assert torch.equal(torch.cat(halves), first)


def test_layout_of_memory_does_not_matter():
    images = torch.tensor(pictures(40, 32, 32))
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    a, b = (randaugment(x, torch.Generator().manual_seed(0)) for x in (images, planar))
    assert torch.equal(a, b)


def test_as_the_strong_view_of_a_pipeline():
    images, labels = pictures(40, 32, 32), np.arange(40) % 2
    data = ImageData("pictures", ("a", "b"), images, images, labels, labels, "0")
    pipeline = Pipeline(
        data, batch_size=16, mean=(0.5,) * 3, std=(0.25,) * 3, strong_view=RandAugment()
    )
    whole, resumed = list(pipeline.epoch(2)), list(pipeline.epoch(2, start=1))
    for batch, again in zip(whole[1:], resumed, strict=True):
        assert batch.strong.shape == batch.images.shape
        assert all(map(torch.equal, batch[:4], again[:4]))  # the fifth is the teacher's, if known
        assert not torch.equal(batch.strong, batch.images)
    assert not torch.equal(whole[0].strong, next(pipeline.epoch(3)).strong)


@pytest.mark.gpu
def test_the_same_views_on_a_gpu():
    images = torch.tensor(pictures(500, 32, 32))
    a, b = (randaugment(x, torch.Generator().manual_seed(0)) for x in (images, images.cuda()))
    assert torch.equal(a, b.cpu())


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
    ids=["float", "planar"],
)
def test_bad_images(images):
    with pytest.raises(UserError, match=r"^images: found .* allowed is \(2, H, W, 3\) uint8$"):
        randaugment(images)
