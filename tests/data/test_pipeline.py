"""Batches equal torchvision's for the same random numbers, wherever an epoch is entered."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as TF

from eakd.data import ImageData, Pipeline
from eakd.data.geometry import View, crop
from eakd.errors import UserError

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]


def noise(count=50, classes=5, size=(8, 8), seed=0):
    """A set whose images and labels are random; the test set has half the size."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count + count // 2, *size, 3), dtype=np.uint8)
    labels = rng.permutation(np.arange(len(images)) % classes)
    names = tuple(map(str, range(classes)))
    return ImageData("noise", names, images[:count], labels[:count], images[count:], labels[count:],
                     "noise")  # fmt: skip


def pipeline(data=None, **options):
    defaults = {"batch_size": 16, "mean": MEAN, "std": STD, "seed": 3, "crop_padding": 2}
    return Pipeline(data or noise(), **{**defaults, **options})


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for one, other in zip(a, b, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def reference(image, angle, offset, flip, padding, rotation):
    """The published recipes' Pillow and torchvision operations on one image."""
    image = Image.fromarray(image)
    if rotation:
        image = TF.rotate(image, angle)
    height, width = image.size[::-1]
    image = TF.crop(TF.pad(image, padding, fill=0), *offset, height, width)
    if flip:
        image = TF.hflip(image)
    return TF.normalize(TF.to_tensor(image), MEAN, STD)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_padding": 0},
        {"crop_padding": 0, "rotation": 20.0},
        {"crop_padding": 3, "rotation": 180.0},
        {"flip": False},
    ],
)
def test_pixels_are_torchvisions(size, options):
    data = noise(size=size)
    pipe = pipeline(data, **options)
    view = pipe._draw_view(2, "weak")
    for step, batch in enumerate(pipe.epoch(2)):
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.strong is None
        for row, index in enumerate(batch.index.tolist()):
            at = step * 16 + row
            expected = reference(
                data.train_images[index],
                view.angles[at].item(),
                view.offsets[at].tolist(),
                view.flips[at].item() and pipe.flip,
                pipe.crop_padding,
                pipe.rotation,
            )
            assert torch.equal(batch.images[row], expected)
            assert batch.targets[row] == data.train_labels[index]


def test_crop_covers_every_window():
    image = torch.arange(1, 5 * 4 * 3 + 1, dtype=torch.uint8).view(1, 5, 4, 3)
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    windows = crop(image.expand(25, -1, -1, -1), offsets, 2)
    for window, (top, left) in zip(windows, offsets.tolist(), strict=True):
        padded = TF.pad(image[0].permute(2, 0, 1), 2)
        assert torch.equal(window.permute(2, 0, 1), TF.crop(padded, top, left, 5, 4))


def test_draws_are_uniform():
    pipe = pipeline(noise(count=20_000, size=(8, 8)), rotation=20.0)
    view = pipe._draw_view(1, "weak")
    counts = torch.zeros(5, 5)
    counts.index_put_(tuple(view.offsets.T), torch.ones(20_000), accumulate=True)
    assert (counts - 800).abs().max() < 5 * 800**0.5
    assert abs(view.flips.float().mean() - 0.5) < 0.02
    assert -20 <= view.angles.min() < -19.9 and 19.9 < view.angles.max() <= 20
    assert abs(view.angles.mean()) < 0.5


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 7),
    epoch=st.integers(1, 300),
    seed=st.integers(0, 2**40),
    drop_last=st.booleans(),
)
def test_an_epoch_can_be_entered_anywhere(start, epoch, seed, drop_last):
    pipe = pipeline(batch_size=7, seed=seed, rotation=10.0, drop_last=drop_last)
    whole = list(pipe.epoch(epoch))
    assert len(whole) == pipe.steps_per_epoch == len(pipe) == (7 if drop_last else 8)
    again = pipeline(batch_size=7, seed=seed, rotation=10.0, drop_last=drop_last)
    assert_equal(list(again.epoch(epoch, start)), whole[start:])


def test_strong_view_can_be_entered_anywhere_and_leaves_the_weak_alone():
    class Noise(NamedTuple):
        noise: torch.Tensor

    class View:
        def draw(self, n, height, width, generator):
            shape = n, height, width, 3
            return Noise(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))

        def apply(self, images, parameters):
            return images ^ parameters.noise.to(images.device)

    class Same(View):
        def apply(self, images, parameters):
            return images

    pipe = pipeline(strong_view=View())
    whole = list(pipe.epoch(1))
    assert_equal(list(pipe.epoch(1, 2)), whole[2:])
    plain = list(pipeline().epoch(1))
    assert_equal([batch._replace(strong=None) for batch in whole], plain)
    assert whole[0].strong.shape == whole[0].images.shape
    # With the identity as strong view, its own crop and flip remain.
    own = next(pipeline(strong_view=Same()).epoch(1))
    assert not torch.equal(own.strong, own.images)


def test_randomness_depends_on_seed_and_epoch_only():
    def epochs(seed, *numbers):
        pipe = pipeline(seed=seed)
        return {number: list(pipe.epoch(number)) for number in numbers}

    first = epochs(0, 1, 2, 3)
    assert_equal(first[2], epochs(0, 2)[2])
    orders = [
        torch.cat([batch.index for batch in batches]).tolist()
        for batches in (*first.values(), *epochs(1, 1, 2).values())
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    # The global generators are neither used nor needed.
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert_equal(list(pipeline(seed=0).epoch(1)), first[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_options_do_not_disturb_each_other():
    """Switching flips off changes nothing but the flips."""
    flipped, straight = pipeline(), pipeline(flip=False)
    view = flipped._draw_view(1, "weak")
    for a, b, flips in zip(flipped.epoch(1), straight.epoch(1), view.flips.split(16), strict=True):
        assert torch.equal(a.index, b.index)
        expected = torch.where(flips[:, None, None, None], b.images.flip(3), b.images)
        assert torch.equal(a.images, expected)


def test_moved_batch_by_batch_is_the_same():
    for split in ("train", "test"):
        assert_equal(
            list(pipeline(resident=False).evaluation(split)),
            list(pipeline(resident=True).evaluation(split)),
        )
    assert_equal(
        list(pipeline(resident=False).epoch(1)), list(pipeline(resident=True).epoch(1))
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_cuda_sees_the_same_batches(resident):
    options = {"rotation": 15.0, "val_fraction": 0.2}
    on_cpu = list(pipeline(**options).epoch(4))
    on_cuda = list(pipeline(device="cuda", resident=resident, **options).epoch(4))
    for ours, theirs in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(ours.images, theirs.images.cpu(), rtol=0, atol=1e-6)
        assert torch.equal(ours.index, theirs.index.cpu())
        assert torch.equal(ours.targets, theirs.targets.cpu())


def test_evaluation_is_in_order_and_plain():
    data = noise()
    pipe = pipeline(data, eval_batch_size=7)
    for split, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        batches = list(pipe.evaluation(split))
        assert max(len(batch.targets) for batch in batches) == 7
        together = torch.cat([batch.images for batch in batches])
        expected = torch.stack([TF.normalize(TF.to_tensor(image), MEAN, STD) for image in images])
        assert torch.equal(together, expected)
        assert together.is_contiguous(memory_format=torch.channels_last)
        assert torch.cat([b.targets for b in batches]).tolist() == labels.tolist()
        assert torch.cat([b.index for b in batches]).tolist() == list(range(len(labels)))


@settings(max_examples=30, deadline=None)
@given(
    fraction=st.floats(0.06, 0.9),
    classes=st.integers(1, 5),
    seeds=st.lists(st.integers(0, 99), min_size=2, max_size=2),
)
def test_val_split_is_stratified_disjoint_and_fixed(fraction, classes, seeds):
    data = noise(count=60, classes=classes)

    def members(split, **options):
        pipe = pipeline(data, val_fraction=fraction, **options)
        return torch.cat([batch.index for batch in pipe.evaluation(split)]).numpy()

    val, train = members("val"), members("train")
    assert sorted([*val, *train]) == list(range(60))
    totals = np.bincount(data.train_labels, minlength=classes)
    expected = np.floor(fraction * totals + 0.5)
    assert np.array_equal(np.bincount(data.train_labels[val], minlength=classes), expected)
    assert np.array_equal(val, members("val", seed=seeds[0]))  # whatever the run's seed
    trained = torch.cat(
        [b.index for b in pipeline(data, val_fraction=fraction, seed=seeds[1]).epoch(1)]
    )
    assert sorted(trained.tolist()) == sorted(train.tolist())


def test_val_split_of_another_seed_differs():
    splits = [
        torch.cat([b.index for b in pipeline(val_fraction=0.5, val_seed=s).evaluation("val")])
        for s in (0, 1)
    ]
    assert not torch.equal(*splits)


def test_has_split():
    assert [pipeline().has_split(s) for s in ("train", "val", "test")] == [True, False, True]
    assert pipeline(val_fraction=0.1).has_split("val")
    with pytest.raises(UserError, match="split: found 'val', allowed is one of train, test"):
        pipeline().evaluation("val")


def test_batch_larger_than_the_set_is_the_whole_set():
    pipe = pipeline(batch_size=1000)
    (batch,) = pipe.epoch(1)
    assert sorted(batch.index.tolist()) == list(range(50))
    with pytest.raises(UserError, match="batch_size: found 1000, allowed is at most 50"):
        pipeline(batch_size=1000, drop_last=True)


def test_memory_mapped_images(tmp_path):
    data = noise()
    np.save(tmp_path / "images.npy", data.train_images)
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "images.npy", mmap_mode=mode)
        again = ImageData(
            *("noise", data.classes, mapped, data.train_labels),
            *(data.test_images, data.test_labels, "noise"),
        )
        assert_equal(list(pipeline(again).epoch(1)), list(pipeline(data).epoch(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"batch_size": 2.5}, "batch_size: found 2.5"),
        ({"eval_batch_size": 0}, "eval_batch_size: found 0"),
        ({"seed": -1}, "seed: found -1"),
        ({"crop_padding": -1}, "crop_padding: found -1"),
        ({"rotation": 181}, "rotation: found 181"),
        ({"rotation": float("nan")}, "rotation: found nan"),
        ({"val_fraction": 1.0}, "val_fraction: found 1.0"),
        ({"val_fraction": 0.01}, "val_fraction: found 0.01"),
        ({"flip": "yes"}, "flip: found 'yes'"),
        ({"drop_last": None}, "drop_last: found None"),
        ({"resident": "no"}, "resident: found 'no'"),
        ({"mean": [0.5]}, r"mean: found \[0.5\]"),
        ({"std": [0.5, 0.5, 0]}, "std: found 0"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        pipeline(**options)
    assert "\n" not in str(caught.value)


def test_epoch_arguments_are_checked_at_once():
    with pytest.raises(UserError, match="epoch: found 0"):
        pipeline().epoch(0)
    with pytest.raises(UserError, match="start: found 5"):
        pipeline().epoch(1, start=5)


def test_view_is_sliceable():
    view = pipeline()._draw_view(1, "weak")
    assert isinstance(view, View) and all(len(draws) == 50 for draws in view)
