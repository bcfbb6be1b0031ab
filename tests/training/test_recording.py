"""What runs leave for figures: right numbers, the same runs with and without."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import stats

from eakd.composing import compose
from eakd.config import config_hash, identity
from eakd.distillers.base import Terms, Total
from eakd.errors import UserError
from eakd.training import state as state_module
from eakd.training.dynamics import segments
from eakd.training.meters import Meters
from eakd.training.parallel import ALONE
from eakd.training.recording import Recording
from eakd.training.run import run
from eakd.training.sample_values import (
    read_samples,
    sample_epochs,
    sample_file,
    sample_values,
    write_samples,
)
from eakd.weighting import Entropies, entropy


def lines(directory, name="dynamics.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def train(directory, *overrides):
    return run(compose([*overrides, f"run_dir={directory}"]))


# --- the segments, against numbers computed apart ---


def filled(count, batch=7, seed=0, **columns):
    """Meters of an epoch over ``count`` samples with random values, and these by index."""
    rng = np.random.default_rng(seed)
    names = ("teacher", "student", "loss", "weight", "right")
    by_index = {name: columns.get(name, rng.random(count)) for name in names}
    meters, order = Meters(torch.device("cpu"), count), rng.permutation(count)
    for step, index in enumerate(np.split(order, range(batch, count, batch))):
        take = {name: torch.tensor(values[index]) for name, values in by_index.items()}
        weighted = take["loss"] * take["weight"]
        total = Total(
            weighted.mean(),
            take["weight"],
            weighted,
            take["loss"],
            Entropies(take["teacher"], take["student"], 1.0),
        )
        measured = {"right": take["right"]}
        meters.update(step, torch.tensor(index), Terms({"kd": take["loss"]}), total, measured, 7)
    return meters, by_index


@pytest.mark.parametrize("count", [100, 103, 10, 9, 3, 1])
def test_ten_equal_parts_by_entropy(count):
    meters, values = filled(count)
    found = segments(meters, 3.0)["by"]["epoch"]
    parts = [p for p in np.array_split(np.argsort(values["teacher"], kind="stable"), 10) if len(p)]
    assert found["samples"] == [len(part) for part in parts]
    assert max(found["samples"]) - min(found["samples"]) <= 1
    expected = {
        "teacher_entropy": values["teacher"],
        "student_entropy": values["student"],
        "loss": values["loss"],
        "weighted_loss": values["loss"] * values["weight"],
        "weight": values["weight"],
        "right": values["right"],
    }
    assert found.keys() == {"samples", *expected}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name]["mean"], [value[p].mean() for p in parts], rtol=1e-4)
        np.testing.assert_allclose(
            found[name]["std"], [value[p].std() for p in parts], rtol=1e-3, atol=1e-4
        )
    for percent in (5, 25, 50, 75, 95):
        quantiles = [np.percentile(values["student"][part], percent) for part in parts]
        np.testing.assert_allclose(
            found["student_entropy"][f"q{percent:02d}"], quantiles, rtol=1e-4
        )


def test_the_order_of_steps_and_ties_change_nothing():
    ties = np.repeat(np.arange(10.0), 5)
    rng = np.random.default_rng(5)
    fixed = {name: rng.random(50) for name in ("student", "loss", "weight", "right")}
    one, two = (filled(50, seed=seed, teacher=ties, **fixed)[0] for seed in (1, 2))
    assert segments(one, 3.0) == segments(two, 3.0)


def test_the_clean_ranking_is_the_callers():
    meters, values = filled(40)
    ranking = np.arange(40.0)[::-1].copy()
    found = segments(meters, 2.0, ranking)
    assert found["entropy_temperature"] == 2.0
    means = [values["loss"][::-1][4 * i : 4 * i + 4].mean() for i in range(10)]
    np.testing.assert_allclose(found["by"]["clean"]["loss"]["mean"], means, rtol=1e-4)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-4])
def test_the_spread_of_weights_that_hardly_differ(spread):
    """As those of answers, whose entropies are means over many tokens."""
    weight = 8 + spread * np.random.default_rng(1).standard_normal(5_000)
    meters, _ = filled(5_000, weight=weight.astype(np.float32))
    assert meters.summary()["weight_std"] == pytest.approx(weight.std(), rel=1e-2)


def test_meters_come_back_whole_from_a_checkpoint(tmp_path):
    whole, _ = filled(30)
    half = Meters(torch.device("cpu"), 30)
    torch.save(whole.state_dict(), tmp_path / "meters.pt")
    half.load_state_dict(torch.load(tmp_path / "meters.pt", weights_only=True))
    assert half.summary() == whole.summary() and segments(half, 3.0) == segments(whole, 3.0)
    assert half.merged(ALONE) is half
    # Only what was seen: an epoch's first steps do not carry the memory of the whole epoch.
    few, _ = filled(3)
    few_of_many = Meters(torch.device("cpu"), 1_000_000)
    few_of_many.load_state_dict(few.state_dict())
    torch.save(few_of_many.state_dict(), tmp_path / "few.pt")
    assert os.path.getsize(tmp_path / "few.pt") < 10_000


# --- real runs ---


@pytest.mark.parametrize("method", ["ea_kd", "kd", "dkd_ls", "ea_mld", "none"])
def test_recording_changes_no_weight_and_no_name(method, tiny_with_teacher, tmp_path):
    job = [*tiny_with_teacher, f"distiller={method}", "threads=1"]
    off = ["record.dynamics=false", "record.snapshots=[]"]
    names = [config_hash(identity(compose(each))) for each in (job, [*job, *off])]
    assert names[0] == names[1]
    train(tmp_path / "on", *job)
    train(tmp_path / "off", *job, *off)
    on, without = (load_file(tmp_path / n / "last.safetensors") for n in ("on", "off"))
    assert all(torch.equal(on[key], without[key]) for key in on)
    assert not (tmp_path / "off" / "dynamics.jsonl").exists()
    assert not (tmp_path / "off" / "snapshots").exists()
    metrics = [lines(tmp_path / n, "metrics.jsonl") for n in ("on", "off")]
    assert [line["train_loss"] for line in metrics[0]] == [m["train_loss"] for m in metrics[1]]
    first, second = lines(tmp_path / "on")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    rankings = {"student"} if method == "none" else {"epoch", "clean"}
    assert first["by"].keys() == rankings
    for found in first["by"].values():
        assert sum(found["samples"]) == 80 and len(found["samples"]) == 10
        assert all(0 <= value <= 100 for value in found["top1"]["mean"])
        assert all(0 <= value <= 1 for value in found["target_probability"]["mean"])
        if method != "none":
            weights = found["weight"]["mean"]
            assert (set(weights) == {1.0}) == (method in ("kd", "dkd_ls"))


def test_values_are_those_of_the_line_of_metrics(tiny_with_teacher, tmp_path):
    train(tmp_path, *tiny_with_teacher, "distiller=ea_kd")
    for line, metrics in zip(lines(tmp_path), lines(tmp_path, "metrics.jsonl"), strict=True):
        for found in line["by"].values():

            def mean(name, found=found):
                return np.average(found[name]["mean"], weights=found["samples"])

            assert mean("weight") == pytest.approx(metrics["weight_mean"], rel=1e-3)
            assert mean("loss") == pytest.approx(metrics["train_loss_kd"], rel=1e-3)
            assert mean("top1") == pytest.approx(metrics["train_top1"], rel=1e-3)
        tenths = np.array(line["by"]["epoch"]["weighted_loss"]["mean"]) * 8 / 80
        shares = tenths / tenths.sum()
        assert shares[0] == pytest.approx(metrics["share_low_entropy"], rel=1e-3)
        assert shares[-1] == pytest.approx(metrics["share_high_entropy"], rel=1e-3)


@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_entropies_are_at_the_runs_own_temperature(temperature, tiny_with_teacher, tmp_path):
    """With the teacher's weight, the weight is the teacher's entropy."""
    setting = ["weighting=teacher", f"weighting.entropy_temperature={temperature}"]
    train(tmp_path, *tiny_with_teacher, *setting)
    for line in lines(tmp_path):
        assert line["entropy_temperature"] == temperature
        for found in line["by"].values():
            assert found["weight"]["mean"] == found["teacher_entropy"]["mean"]


def test_the_clean_segments_rank_the_images_as_they_are(tiny_with_teacher, tmp_path, caplog):
    from eakd.classification.build import build_data, build_teacher
    from eakd.classification.teacher import entropies_of_training_set
    from eakd.targets import build
    from eakd.training.run import build_compute

    config = compose([*tiny_with_teacher, "data.val_fraction=0.25", f"checkpoint_root={tmp_path}"])
    root = next(o for o in tiny_with_teacher if o.startswith("checkpoint_root=")).split("=")[1]
    config.teacher.checkpoint = f"{root}/digits/resnet8.safetensors"
    compute = build_compute(config)
    data = build_data(config, 0, compute, build(config.recipe, "recipe"))
    teacher, _, path = build_teacher(config, data, compute, fold=True)
    found = entropies_of_training_set(teacher, path, data, compute, 3.0, tmp_path / "cache")
    assert found.shape == (80,) and found.isfinite().all()  # those set aside too
    (batch,) = data.evaluation("train")
    with torch.no_grad(), compute.autocast():
        expected = entropy(teacher(batch.images, features=False).logits)
    torch.testing.assert_close(found[batch.index], expected, rtol=2e-2, atol=2e-2)
    assert stats.spearmanr(found[batch.index], expected).statistic > 0.99

    (cached,) = (tmp_path / "cache").iterdir()
    again = entropies_of_training_set(None, path, data, compute, 3.0, tmp_path / "cache")
    assert torch.equal(again, found)  # not asked again
    cached.write_bytes(cached.read_bytes()[:-20])
    again = entropies_of_training_set(teacher, path, data, compute, 3.0, tmp_path / "cache")
    assert torch.equal(again, found)
    (tmp_path / "file").write_text("in the way of the cache")
    again = entropies_of_training_set(teacher, path, data, compute, 3.0, tmp_path / "file")
    assert torch.equal(again, found) and "not kept" in caplog.text


@pytest.mark.parametrize(
    ("epochs", "snapshots", "expected"),
    [
        (240, (1 / 6, 1 / 2), {40, 120}),
        (240, (0.1667, 0.5), {40, 120}),
        (480, (0.1667, 0.5), {80, 240}),
        (2, (0.1667, 0.5), {1}),
        (1, (0.1667, 0.5), set()),
        (30, (3, 0.999, 30), {3}),  # the last epoch's weights are kept anyway
        (30, (), set()),
    ],
)
def test_snapshots_are_epochs_or_fractions(epochs, snapshots, expected):
    assert Recording(snapshots=snapshots).snapshot_epochs(epochs) == expected


def test_snapshots_are_the_student_of_that_epoch(tiny_with_teacher, tmp_path):
    job = [*tiny_with_teacher, "distiller=ea_ctkd", "recipe.epochs=4"]
    train(tmp_path, *job, "record.snapshots=[1,0.5,3]")
    folder = tmp_path / "snapshots"
    names = [f"epoch{epoch:03d}.safetensors" for epoch in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    last = load_file(tmp_path / "last.safetensors")
    for epoch, name in enumerate(names, 1):
        with safe_open(folder / name, "pt") as file:
            metadata = file.metadata()
        line = lines(tmp_path, "metrics.jsonl")[epoch - 1]
        assert int(metadata["epoch"]) == epoch
        assert float(metadata["test_top1"]) == line["test_top1"]
        weights = load_file(folder / name)
        assert weights.keys() == last.keys()  # the plain student
        assert not torch.equal(weights["fc.weight"], last["fc.weight"])
    again = train(tmp_path, *job, "record.snapshots=[]", "resume=false")
    assert not folder.exists() and len(lines(tmp_path)) == 4 and again["epochs"] == 4


# --- the values of single samples ---


def test_a_file_holds_what_the_meters_do(tmp_path):
    loss = np.array([1.0, 1e6, -1e6, 0.1, np.nan, *range(8)])
    right = np.array([0, 100] * 6 + [100])
    meters, by_index = filled(13, batch=4, loss=loss, right=right)
    meters.rows[meters.rows.index("right")] = "top1"  # as images call it
    values = sample_values(meters)
    assert values.keys() == {"teacher_entropy", "student_entropy", "loss", "weight", "correct"}
    assert all(v.dtype == np.float16 for k, v in values.items() if k != "correct")
    assert values["correct"].nbytes == 2
    path = sample_file(tmp_path, 7)
    write_samples(path, values)
    assert path.name == "epoch007.npz" and sample_epochs(tmp_path) == [7]
    found = read_samples(path)
    assert found["index"].tolist() == [*range(13)]
    assert found["correct"].tolist() == (right == 100).tolist()
    assert found["loss"][1] == 65504 and found["loss"][2] == -65504 and np.isnan(found["loss"][4])
    np.testing.assert_allclose(found["weight"], by_index["weight"], rtol=1e-3)
    np.testing.assert_allclose(found["teacher_entropy"], by_index["teacher"], rtol=1e-3, atol=1e-6)
    first = path.read_bytes()
    write_samples(path, sample_values(filled(13, 4, 0, loss=loss, right=right)[0]) | values)
    assert read_samples(path).keys() == found.keys() | {"right"}
    write_samples(path, values)
    assert path.read_bytes() == first  # equal values, equal bytes


def test_an_epoch_that_leaves_samples_out_says_which(tmp_path):
    meters, by_index = filled(10)
    meters.seen = 7  # the last step was never made
    values = sample_values(meters)
    seen = np.sort(meters.index[:7].numpy())
    write_samples(tmp_path / "x.npz", values)
    found = read_samples(tmp_path / "x.npz")
    assert found["index"].tolist() == seen.tolist()
    np.testing.assert_allclose(found["loss"], by_index["loss"][seen], rtol=1e-3)
    assert sample_values(Meters(torch.device("cpu"), 3)) == {}


@pytest.mark.parametrize("kind", ["cut", "flipped", "no archive", "empty", "other lengths", "gone"])
def test_a_damaged_file_of_samples_is_named(kind, tmp_path):
    path = tmp_path / "epoch001.npz"
    write_samples(path, sample_values(filled(100)[0]))
    whole = path.read_bytes()
    if kind == "other lengths":
        write_samples(path, {"loss": np.zeros(3), "weight": np.zeros(4)})
    elif kind == "gone":
        path.unlink()
    else:
        half = len(whole) // 2
        flipped = whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
        contents = {"cut": whole[:half], "flipped": flipped, "no archive": b"text", "empty": b""}
        path.write_bytes(contents[kind])
    with pytest.raises(UserError) as caught:
        read_samples(path)
    assert str(caught.value).startswith(f"{path}: found ") and "\n" not in str(caught.value)


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "epoch001.npz"
    write_samples(path, {"loss": np.zeros(3, np.float16)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # refuses as a full disk does
    try:
        with pytest.raises(OSError) as caught:
            write_samples(path, {"loss": np.random.default_rng(0).random(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (None, set()),
        ((), set()),
        ("all", {1, 2, 3, 4, 5, 6, 7, 8}),
        ((0.5, 8), {4, 8}),  # the last epoch too: nothing else holds it
        ((1 / 6, 0.999), {1, 8}),
    ],
)
def test_samples_are_epochs_or_fractions(samples, expected):
    assert Recording(samples=samples).sample_epochs(8) == expected


def stable(directory):
    times = ("train_seconds", "samples_per_second")
    return [
        {k: v for k, v in line.items() if k not in times}
        for line in lines(directory, "metrics.jsonl")
    ]


@pytest.mark.parametrize("method", ["ea_kd", "none"])
def test_samples_change_nothing_and_are_what_dynamics_sum_up(method, tiny_with_teacher, tmp_path):
    job = [*tiny_with_teacher, f"distiller={method}", "threads=1"]
    hashes = {config_hash(identity(compose([*job, *o]))) for o in ([], ["record.samples=all"])}
    assert len(hashes) == 1
    train(tmp_path / "off", *job)
    train(tmp_path / "on", *job, "record.samples=all")
    on, off = (load_file(tmp_path / n / "last.safetensors") for n in ("on", "off"))
    assert all(torch.equal(on[key], off[key]) for key in on)
    assert stable(tmp_path / "on") == stable(tmp_path / "off")
    assert lines(tmp_path / "on") == lines(tmp_path / "off")
    assert not (tmp_path / "off" / "samples").exists()
    assert sample_epochs(tmp_path / "on") == [1, 2]
    for line in lines(tmp_path / "on"):
        found = read_samples(sample_file(tmp_path / "on", line["epoch"]))
        assert found["index"].tolist() == [*range(80)]
        names = {"index", "correct", "student_entropy", "target_probability"}
        more = set() if method == "none" else {"teacher_entropy", "loss", "weight"}
        assert found.keys() == names | more
        (ranking, *_) = line["by"].values()
        for name in ("student_entropy", "target_probability", *more):
            mean = np.average(ranking[name]["mean"], weights=ranking["samples"])
            assert found[name].astype(float).mean() == pytest.approx(mean, rel=2e-3)
        top1 = np.average(ranking["top1"]["mean"], weights=ranking["samples"])
        assert 100 * found["correct"].mean() == pytest.approx(top1)
    train(tmp_path / "on", *job, "resume=false")
    assert not (tmp_path / "on" / "samples").exists()  # of the run before


class Killed(Exception):
    pass


def test_a_kill_between_samples_and_checkpoint_changes_nothing(
    tiny_with_teacher, tmp_path, monkeypatch
):
    job = [*tiny_with_teacher, "distiller=ea_kd", "recipe.epochs=4", "threads=1"]
    job.append("record.samples=[0.5,3]")
    train(tmp_path / "whole", *job)
    save = state_module.save_checkpoint

    def die(directory, state):
        if state["epoch"] == 3:
            raise Killed
        save(directory, state)

    monkeypatch.setattr(state_module, "save_checkpoint", die)
    stopped = tmp_path / "stopped"
    with pytest.raises(Killed):
        train(stopped, *job)
    monkeypatch.setattr(state_module, "save_checkpoint", save)
    assert sample_epochs(stopped) == [2, 3] and len(lines(stopped)) == 3
    left = stopped / "samples" / ".epoch003.npz.k2j4.tmp"  # and one killed while it wrote
    left.write_text("half of something")
    sample_file(stopped, 3).write_bytes(b"another epoch's")
    train(stopped, *job)
    assert not left.exists() and sample_epochs(stopped) == [2, 3]
    for epoch in (2, 3):
        expected, found = (sample_file(tmp_path / n, epoch) for n in ("whole", "stopped"))
        assert expected.read_bytes() == found.read_bytes()


def test_a_place_that_cannot_be_written_is_one_line(tiny_with_teacher, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").write_text("a file in the way")
    with pytest.raises(OSError) as caught:
        train(tmp_path / "run", *tiny_with_teacher, "record.samples=all")
    assert "samples" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("record.dynamics=sometimes", "record.dynamics: found 'sometimes'"),
        ("record.snapshots=0.5", "record.snapshots: found 0.5, allowed is a list of numbers"),
        ("record.snapshots=[0]", "record.snapshots: found 0, allowed is a number > 0"),
        ("record.snapshots=[-1]", "record.snapshots: found -1"),
        ("record.snapshots=[1.5]", "record.snapshots: found 1.5, allowed is an integer > 0"),
        ("record.snapshots=[half]", "record.snapshots: found 'half'"),
        ("+record.every=3", "record.every: found a key that eakd.training.Recording does not take"),
        ("record.snapshots=[99]", "record.snapshots: found 99, allowed is at most 2"),
        ("record.samples=some", "record.samples: found 'some', allowed is null, all or a list of"),
        ("record.samples=true", "record.samples: found True, allowed is null, all or a list of"),
        ("record.samples=3", "record.samples: found 3, allowed is null, all or a list of numbers"),
        ("record.samples=[0]", "record.samples: found 0, allowed is a number > 0"),
        ("record.samples=[1.5]", "record.samples: found 1.5, allowed is an integer > 0"),
        ("record.samples=[half]", "record.samples: found 'half'"),
        ("record.samples=[3]", "record.samples: found 3, allowed is at most 2, the epochs of the"),
    ],
)
def test_wrong_settings_are_named(override, words, tiny_with_teacher, tmp_path):
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", *tiny_with_teacher, override)
    assert words in str(caught.value) and not (tmp_path / "run").exists()
