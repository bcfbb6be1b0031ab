"""Loss landscapes: a quadratic, filter norms, folding; rows that survive a kill and are shared."""

import multiprocessing
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eakd.analysis.directions import Plane, direction, fold
from eakd.analysis.landscape import landscape
from eakd.analysis.measures import measure, radius, second_derivative
from eakd.analysis.networks import Networks
from eakd.analysis.roughness import summarise
from eakd.analysis.surface import balanced, evaluate_row, grid, surface
from eakd.errors import UserError
from eakd.models import resnet8, wrn_16_1

SMALL = {"points": 3, "images": 50, "directions": [0], "precision": "float32"}


class Weights(nn.Module):
    """Weights alone, two filters of three."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 3, dtype=torch.float64, generator=generator))
        self.bias = nn.Parameter(torch.randn(2, dtype=torch.float64, generator=generator))


def quadratic(model, curvature):
    return lambda: float(0.5 * (curvature * model.weight.detach() ** 2).sum())


def whole(plane, loss, xs):
    return np.stack([evaluate_row(plane, loss, xs, y) for y in xs])


def random_network(make, seed=0):
    """Batch norms as after training, some of them negative."""
    torch.manual_seed(seed)
    model = make(10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.7)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.3, 2)
    return model.eval().requires_grad_(False)


def cross_entropy(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model(images, features=False).logits, labels).item()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (16,), generator=generator)
    return torch.randn(16, 3, 32, 32, generator=generator), labels


def test_a_quadratic():
    model, xs = Weights(), grid(11, 1.0)
    curvature = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 1.5]], dtype=torch.float64)
    theta = model.weight.detach().clone()
    d1, d2 = (direction(model, 0, axis)["weight"] for axis in (0, 1))
    loss = whole(Plane(model, {"weight": d1}, {"weight": d2}), quadratic(model, curvature), xs)
    wanted = np.array(
        [[float(0.5 * (curvature * (theta + a * d1 + b * d2) ** 2).sum()) for a in xs] for b in xs]
    )
    assert np.abs(loss - wanted).max() < 1e-6
    found = measure(loss, 1.0)
    mean = sum(map(sum, wanted)) / 121
    assert found["variance"] == pytest.approx(sum((w - mean) ** 2 for w in wanted.flat) / 121)
    hessian = np.array([[float((curvature * x * y).sum()) for x in (d1, d2)] for y in (d1, d2)])
    assert np.allclose(second_derivative(loss, 1.0), hessian, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(hessian)
    assert found["curvature_ratio"] == pytest.approx(eigenvalues[1] / eigenvalues[0])
    assert found["centre"] == pytest.approx(float(0.5 * (curvature * theta**2).sum()))


def test_the_area_is_that_of_the_ellipse():
    a, b, lowest, level = 1.0, 4.0, 0.1, 0.35
    xs = grid(101, 1.0)
    loss = lowest + 0.5 * (a * xs[None] ** 2 + b * xs[:, None] ** 2)
    ellipse = np.pi * 2 * (level - lowest) / np.sqrt(a * b)
    axes = np.sqrt(2 * (level - lowest) / np.array([a, b]))
    ring = np.pi * axes.sum() * (xs[1] - xs[0])  # one ring of cells around it, about
    assert abs(4 * measure(loss, 1.0, level)["area"] - ellipse) < ring
    round_loss = 2 * (xs[None] ** 2 + xs[:, None] ** 2)
    assert radius(round_loss, 1.0) == pytest.approx(0.5, abs=1e-3)
    assert np.isnan(radius(round_loss / 100, 1.0))
    assert measure(loss, 1.0, level)["curvature_ratio"] == pytest.approx(4)


def test_directions_are_filter_normalised():
    model = random_network(resnet8)
    found = direction(model, 3, 0)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            assert name not in found  # biases and norms stay
        else:
            norms = (weight.flatten(1).norm(dim=1), found[name].flatten(1).norm(dim=1))
            assert torch.allclose(*norms, rtol=1e-6)
    assert "fc.weight" in found and "fc.bias" not in found
    again, other = direction(model, 3, 0), direction(model, 3, 1)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not any(torch.equal(found[name], other[name]) for name in found)
    # Networks of equal shapes get the same numbers, each in its own scale.
    twin = direction(random_network(resnet8, 1), 3, 0)
    for name, x in found.items():
        cosine = F.cosine_similarity(x.flatten(1), twin[name].flatten(1))
        assert torch.allclose(cosine, torch.ones_like(cosine), atol=1e-5)
    assert direction(random_network(wrn_16_1), 3, 0).keys() != found.keys()


def test_a_filter_of_zeros_stays_at_zero():
    model = random_network(resnet8)
    model.conv1.weight[2] = 0
    found = direction(model, 0, 0)
    assert torch.equal(found["conv1.weight"][2], torch.zeros(3, 3, 3))
    folded, (moved,) = fold(model, (found,), torch.randn(2, 3, 32, 32))
    assert torch.equal(moved["conv1.weight"][2], torch.zeros(3, 3, 3))
    assert all(x.isfinite().all() for x in moved.values()) and folded is not model


@pytest.mark.parametrize("make", (resnet8, wrn_16_1))
def test_folding_changes_no_surface(make, batch):
    model = random_network(make)
    directions = direction(model, 0, 0), direction(model, 0, 1)
    folded, moved = fold(model, directions, batch[0][:2])
    assert sum(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) < 9
    plain, quick = Plane(model, *directions), Plane(folded, *moved)
    for a, b in ((0, 0), (0.3, -0.2), (-1, 1), (0.7, 0.7)):
        plain.move(a, b)
        quick.move(a, b)
        assert cross_entropy(folded, *batch) == pytest.approx(
            cross_entropy(model, *batch), rel=1e-4
        )


def test_a_plane_is_left_as_it_was_found(batch):
    model = random_network(resnet8)
    before = {name: x.clone() for name, x in model.named_parameters()}
    plane = Plane(model, direction(model, 0, 0), direction(model, 0, 1))
    for place in ((0.5, 0.1), (-1e3, 1e3), (0, 0)):
        plane.move(*place)
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())


def test_the_scale_of_a_filter_does_not_matter(batch):
    """What filter normalisation is for: the next norm undoes it."""
    model, scaled = random_network(resnet8), random_network(resnet8)
    scaled.conv1.weight[:5] *= 10
    scaled.bn1.running_mean[:5] *= 10
    scaled.bn1.running_var[:5] = 100 * (scaled.bn1.running_var[:5] + 1e-5) - 1e-5
    surfaces = []
    for each in (model, scaled):
        plane = Plane(each, direction(each, 0, 0), direction(each, 0, 1))
        loss = lambda each=each: cross_entropy(each, *batch)  # noqa: E731
        surfaces.append(whole(plane, loss, grid(3, 1.0)))
    assert surfaces[1] == pytest.approx(surfaces[0], rel=1e-3)
    assert np.ptp(surfaces[0]) > 1


def test_images_are_balanced():
    labels = np.repeat(np.arange(4), [50, 50, 50, 3])
    chosen = balanced(labels, 40)
    assert np.bincount(labels[chosen]).tolist() == [10, 10, 10, 3]
    assert chosen.tolist() == sorted(chosen.tolist()) == balanced(labels, 40).tolist()
    assert len(balanced(labels, 10**6)) == len(labels)


class Place:
    """A plane that only knows where it is."""

    def move(self, a, b):
        self.at = a, b


def slow_surface(folder, seconds, name=""):
    """A known surface, point by point, each of which leaves a line."""

    def opened():
        plane = Place()

        def loss():
            time.sleep(seconds)
            with (folder / "log").open("a") as file:
                file.write("point\n")
            a, b = plane.at
            return np.exp(a) + a * b + b**2

        return plane, loss

    found = surface(folder, {"which": "slow"}, grid(9, 1.0), opened)
    np.save(folder / f"found{name}.npy", found)


def start(*arguments):
    process = multiprocessing.get_context("fork").Process(target=slow_surface, args=arguments)
    process.start()
    return process


def wait_for_rows(folder, count):
    until = time.monotonic() + 120
    while len([*folder.glob("surface-*/row*.npz")]) < count:
        assert time.monotonic() < until
        time.sleep(0.02)


def points(folder):
    return len((folder / "log").read_text().splitlines())


def known():
    xs = grid(9, 1.0)
    return np.exp(xs)[None] + xs[None] * xs[:, None] + xs[:, None] ** 2


def test_a_killed_surface_goes_on_where_it_was(tmp_path):
    process = start(tmp_path, 0.03)
    wait_for_rows(tmp_path, 3)
    process.kill()
    process.join()
    before = points(tmp_path)
    assert before < 81
    # Damage to one row that was done costs that row.
    row = sorted(tmp_path.glob("surface-*/row*.npz"))[0]
    row.write_bytes(row.read_bytes()[:100])
    slow_surface(tmp_path, 0)
    assert np.array_equal(np.load(tmp_path / "found.npy"), known())
    # All but two whole rows are computed again, and what the kill cut off.
    assert points(tmp_path) - before <= 81 - 2 * 9
    assert not [*tmp_path.glob("surface-*/")]
    count = points(tmp_path)
    slow_surface(tmp_path, 0)  # read, not computed
    assert points(tmp_path) == count


def test_two_processes_share_the_rows(tmp_path):
    processes = [start(tmp_path, 0.02, name) for name in ("1", "2")]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name in ("1", "2"):
        assert np.array_equal(np.load(tmp_path / f"found{name}.npy"), known())
    assert points(tmp_path) == 81


def test_a_folder_that_cannot_be_written_costs_no_surface(tmp_path):
    (tmp_path / "file").write_text("")
    plane = Plane(model := Weights(), *(direction(model, 0, axis) for axis in (0, 1)))
    loss = quadratic(model, torch.ones(2, 3, dtype=torch.float64))
    found = surface(tmp_path / "file", {}, grid(3, 1.0), lambda: (plane, loss))
    assert np.array_equal(found, whole(plane, loss, grid(3, 1.0)))


def test_the_centre_is_the_loss_of_the_network(runs, outputs):
    few = runs.only(["kd"])
    result = landscape(
        few, output_root=outputs, seeds=1, snapshots=[], teacher=False, **{**SMALL, "images": 10**6}
    )
    answers = Networks(outputs, precision="float32").answers(few[0])
    logits, labels = map(torch.from_numpy, (answers.logits, answers.labels))
    wanted = F.cross_entropy(logits, labels).item()
    assert result.numbers["centre.kd"] == pytest.approx(wanted, rel=1e-4)
    assert result.about["samples"] == len(labels)


def test_methods_of_different_lengths_are_compared_at_their_ends():
    """MLD trains twice as long as KD."""
    draws = {(seed, drawn): 1.0 + seed + 10 * drawn for seed in (0, 1, 2) for drawn in (0, 1)}
    measures = {}
    for (seed, drawn), value in draws.items():
        for name, epoch, factor in (("kd", 120, 9), ("kd", 240, 1), ("ea_kd", 480, 0.5)):
            found = {"variance": factor * value, "log_variance": factor * (value - 4)}
            measures[name, epoch, seed, drawn] = found
    numbers, tests = summarise(measures, {"kd": [40, 120, 240], "ea_kd": [80, 240, 480]})
    assert numbers["variance.kd"] == pytest.approx(7) == 2 * numbers["variance.ea_kd"]
    assert numbers["variance.kd.snapshot2"] == numbers["variance.kd.epoch120"] == pytest.approx(63)
    assert (numbers["variance.kd.low"], numbers["variance.kd.high"]) == (1, 13)
    assert numbers["pairs.ea_kd-kd"] == 6 == numbers["smaller.variance.ea_kd-kd"]
    assert numbers["smaller.log_variance.ea_kd-kd"] == 3  # where half of it is less
    assert tests["variance.ea_kd-kd"] < 1e-6


def test_surfaces_of_runs(runs, outputs):
    settings = {**SMALL, "directions": [0, 1], "snapshots": [0.5]}
    few = runs.only(["kd", "ea_kd"])
    result = landscape(few, output_root=outputs, **settings)
    shown = ["kd.epoch1", "kd.epoch2", "ea_kd.epoch1", "ea_kd.epoch2", "teacher"]
    assert list(result.panels)[:5] == shown
    assert result.panels["teacher"].surface[2].shape == (3, 3)
    numbers = result.numbers
    assert numbers["pairs.ea_kd-kd"] == 4  # two seeds, two draws
    assert 0 <= numbers["smaller.variance.ea_kd-kd"] <= 4
    assert numbers["variance.kd"] == numbers["variance.kd.epoch2"]
    assert numbers["variance.kd.snapshot1"] == numbers["variance.kd.epoch1"]
    last = [result.arrays[f"surface.kd.2.seed{s}.directions{d}"] for s in (0, 1) for d in (0, 1)]
    assert numbers["variance.kd"] == pytest.approx(np.mean([loss.var() for loss in last]))
    assert list(result.tests) == ["variance.ea_kd-kd"]
    again = landscape(few, output_root=outputs, **settings)
    assert again.numbers == numbers and again.about == result.about
    assert all(np.array_equal(x, result.arrays[name]) for name, x in again.arrays.items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"points": 1}, "points: found 1, allowed is an odd integer >= 3"),
        ({"points": 20}, "points: found 20, allowed is an odd integer >= 3"),
        ({"points": 2.5}, "points: found 2.5, allowed is an odd integer >= 3"),
        ({"range": 0}, "range: found 0, allowed is a number > 0"),
        ({"images": 0}, "images: found 0, allowed is an integer >= 1"),
        ({"directions": []}, "directions: found none"),
        ({"directions": [-1]}, "directions: found -1"),
        ({"seeds": 0}, "seeds: found 0"),
        ({"area": -1}, "area: found -1"),
        ({"split": "val"}, "split: found 'val', allowed is one of"),
    ],
)
def test_wrong_settings(runs, outputs, settings, message):
    with pytest.raises(UserError) as caught:
        landscape(runs, output_root=outputs, **{**SMALL, **settings})
    assert message in str(caught.value) and "\n" not in str(caught.value)
