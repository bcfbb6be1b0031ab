"""Figures whose numbers can be computed by hand."""

import numpy as np
import pytest
from recorded import segments_of, write_run
from scipy import stats

from eakd.analysis.cost import cost
from eakd.analysis.one_run import page
from eakd.analysis.runs import Runs, glob_runs, open_run
from eakd.analysis.segments import alignment, student_entropy
from eakd.analysis.shares import loss_shares
from eakd.analysis.sweep import sweep, variance
from eakd.errors import UserError
from eakd.files import write_json


def opened(root, by=()):
    return glob_runs(f"{root}/**", by, ("kd", "ea_kd"))


def two_methods(root, lines, **more):
    """``lines(method, seed, epoch)`` of KD and EA-KD, seeds 0 to 2."""
    for method in ("kd", "ea_kd"):
        for seed in range(3):

            def of(epoch, method=method, seed=seed):
                return {"clean": lines(method, seed, epoch)}

            write_run(root, method, seed, lines=of, **more)
    return opened(root)


# Fig. 3


def test_the_spread_and_its_slope(tmp_path):
    growth = {"kd": 0.1, "ea_kd": 0.02}

    def lines(method, seed, epoch):
        return segments_of([1] * 10, spread=0.2 + growth[method] * epoch + 0.01 * seed * epoch)

    found = student_entropy(two_methods(tmp_path, lines))
    assert found.numbers["spread.first.kd"] == pytest.approx(0.31)
    assert found.numbers["spread.last.kd"] == pytest.approx(0.2 + 0.4 + 0.04)
    assert found.numbers["slope.kd"] == pytest.approx(4 * 0.11)  # over the whole run
    assert found.numbers["slope.ea_kd"] == pytest.approx(4 * 0.03)
    assert set(found.panels) == {"bands kd", "bands ea_kd", "spread"}
    teacher, student = found.panels["bands kd"].series
    assert teacher.y == pytest.approx(4.0) and student.y == pytest.approx(3.9)  # the top tenth
    spread = np.array([0.31, 0.42, 0.53, 0.64])
    assert student.high - student.y == pytest.approx(1.64 * spread)
    assert student.high2 - student.y == pytest.approx(0.67 * spread)
    assert found.about["seeds"] == [0, 1, 2] and found.about["samples"] == 100
    assert found.about["entropy_temperature"] == [3.0] and found.about["split"] == "train"


def test_bands_are_students_t_intervals_over_seeds(tmp_path):
    def lines(method, seed, epoch):
        return segments_of([1] * 10, spread=[0.1, 0.2, 0.6][seed])

    found = student_entropy(two_methods(tmp_path, lines), segment=1)
    line = found.panels["spread"].series[0]
    low, high = stats.ttest_1samp([0.1, 0.2, 0.6], 0).confidence_interval(0.95)
    assert line.low == pytest.approx(low) and line.high == pytest.approx(high)
    assert set(line.by_seed) == {0, 1, 2} and line.by_seed[2] == pytest.approx(0.6)
    assert (
        student_entropy(Runs(opened(tmp_path).of("kd")[:1])).panels["spread"].series[0].low is None
    )


def test_tests_are_paired_by_seed_and_corrected(tmp_path):
    values = {"kd": [0.30, 0.40, 0.50], "ea_kd": [0.21, 0.30, 0.39]}

    def lines(method, seed, epoch):
        return segments_of([1] * 10, spread=values[method][seed] * epoch)

    found = student_entropy(two_methods(tmp_path, lines))
    raw = stats.ttest_rel(np.array(values["ea_kd"]), np.array(values["kd"])).pvalue
    # Slope and last spread are both proportional to the values: equal p, twice as large after Holm.
    assert found.tests["slope.ea_kd-kd"] == pytest.approx(2 * raw, rel=1e-4)
    assert found.tests["spread.last.ea_kd-kd"] == pytest.approx(2 * raw, rel=1e-4)
    assert "EA-KD, trend of the spread over the run against KD: -0.4" in " ".join(found.notes)


def test_runs_without_clean_entropies_use_each_epochs_own(tmp_path):
    write_run(tmp_path, "kd", 0, lines=lambda epoch: {"epoch": segments_of([1] * 10)})
    found = student_entropy(opened(tmp_path))
    assert "each epoch" in found.notes[0] and "Not every run" in found.notes[1]


# Fig. 4


def test_shares_sum_to_one_and_use_the_weight(tmp_path):
    loss, weight = np.arange(10, 0, -1.0), np.arange(1, 11.0)

    def lines(method, seed, epoch):
        return segments_of(loss * epoch, weight=weight if method == "ea_kd" else 1)

    found = loss_shares(two_methods(tmp_path, lines), first=2)
    kd, ea = (each for each in found.panels["shares"].series if each.style == "bars")
    assert kd.y.sum() == pytest.approx(100) and ea.y.sum() == pytest.approx(100)
    assert kd.y == pytest.approx(100 * loss / loss.sum())
    assert ea.y == pytest.approx(100 * loss * weight / (loss * weight).sum())
    assert found.numbers["share_low.kd"] == pytest.approx(100 * 10 / 55)
    assert found.panels["shares"].title.endswith("epochs 1 to 2")


def test_early_epochs_are_a_fraction_of_the_run(tmp_path):
    def lines(method, seed, epoch):  # all of the first epoch's loss is in one tenth
        return segments_of([1.0, *[0] * 9] if epoch == 1 else [1.0] * 10)

    runs = two_methods(tmp_path, lines, epochs=8)
    assert loss_shares(runs).numbers["share_low.kd"] == pytest.approx(100)
    assert loss_shares(runs, first=0.25).numbers["share_low.kd"] == pytest.approx(100 * 2 / 11)


def test_the_surface_is_eq_12_and_13(trio):
    panel = loss_shares(opened(trio / "cifar100"), points=11).panels["weight"]
    x, y, z = panel.surface
    bound = np.log(100)
    assert z[-1, -1] == pytest.approx(bound)  # 13a: both are sure of its value
    assert z[0, -1] == pytest.approx(bound / 2)  # 13b: the student is confident
    assert z[:, 0] == pytest.approx(0)  # 13c: simple for the teacher, whatever the student says
    t, s = np.meshgrid(x, y)
    assert z == pytest.approx(t / 2 * (1 + s / bound))


# Fig. 5


def test_divergence_is_free_of_weights(tmp_path):
    loss = np.arange(10, 0, -1.0)

    def lines(method, seed, epoch):
        return segments_of(0.9 * loss / epoch, weight=5 if method == "ea_kd" else 1, top1=40)

    found = alignment(two_methods(tmp_path, lines))
    for name in ("kd", "ea_kd"):  # kd_weight is 0.9
        assert found.numbers[f"kld_low.{name}"] == pytest.approx(10 / 4)
        assert found.numbers[f"kld_high.{name}"] == pytest.approx(1 / 4)
        assert found.numbers[f"kld.{name}"] == pytest.approx(5.5 / 4)
        assert found.numbers[f"accuracy.{name}"] == pytest.approx(40)
    assert found.panels["kld"].log == "y" and found.panels["accuracy"].log == ""
    assert found.tests["kld.ea_kd-kd"] == 1.0  # equal runs


def test_epochs_that_some_seed_lacks_are_left_out(tmp_path):
    runs = two_methods(tmp_path, lambda *_: segments_of([1] * 10))
    del runs[0].dynamics[1]
    found = alignment(runs)
    assert found.panels["kld"].series[0].x.tolist() == [1, 3, 4]
    assert found.panels["kld"].series[1].x.tolist() == [1, 2, 3, 4]


# Fig. 8


def test_variance_over_one_to_ten():
    assert variance(np.arange(1, 11.0)[None])[0] == pytest.approx(8.25)
    found, low, high = variance(np.arange(1, 11.0) + np.array([[0], [5]]))
    assert found == low == high == pytest.approx(8.25)  # a shift of a seed changes no variance


def swept(root, noise=0.0, seeds=2):
    rng = np.random.default_rng(3)
    for method, slope in (("dkd", 1.0), ("ea_dkd", 0.5)):
        for beta in range(1, 11):
            for seed in range(seeds):
                top1 = 50 + slope * beta + seed + noise * rng.normal()
                write_run(root, method, seed, beta=beta, accuracy=top1)
    return glob_runs(f"{root}/**", ("distiller.beta",))


def test_the_sweep_prints_both_forms_and_their_ratio(tmp_path):
    found = sweep(swept(tmp_path))
    assert found.numbers["variance.dkd"] == pytest.approx(8.25)
    assert found.numbers["sample_variance.dkd"] == pytest.approx(9.16667)
    assert found.numbers["variance.ea_dkd"] == pytest.approx(8.25 / 4)
    assert found.numbers["ratio.ea_dkd"] == pytest.approx(0.25)
    wanted = stats.levene(np.arange(10) * 1.0, np.arange(10) * 0.5, center="median").pvalue
    assert found.tests["brown_forsythe.ea_dkd"] == pytest.approx(wanted)
    assert found.tests["bootstrap.ea_dkd"] == pytest.approx(2 / 10_001)
    assert found.panels["accuracy"].series[0].x.tolist() == list(range(1, 11))


def test_the_bootstrap_is_the_same_every_time_and_covers_the_variance(tmp_path):
    runs = swept(tmp_path, noise=0.3, seeds=4)
    first, second = sweep(runs), sweep(runs)
    assert first.numbers == second.numbers
    n = first.numbers
    assert n["variance_low.dkd"] < n["variance.dkd"] < n["variance_high.dkd"]
    assert n["ratio_low.ea_dkd"] < n["ratio.ea_dkd"] < n["ratio_high.ea_dkd"]


def test_seeds_without_every_value_are_left_out(tmp_path):
    runs = swept(tmp_path)
    some = Runs(
        r for r in runs if (r.method, r.seed, r.config["distiller"]["beta"]) != ("dkd", 1, 3)
    )
    found = sweep(some)
    assert list(found.panels["accuracy"].series[0].by_seed) == [0]
    assert "DKD: 1 seeds lack a value of distiller.beta; left out." in found.notes
    assert np.isnan(found.numbers["variance_low.dkd"])


def test_a_sweep_needs_the_key(trio):
    with pytest.raises(UserError, match=r"runs: found kd without a number distiller.beta"):
        sweep(opened(trio / "cifar100"))


# Fig. 1


def test_step_times_of_the_runs_and_of_a_benchmark(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs", "kd", seed, accuracy=70 + seed, speed=640)
        write_run(tmp_path / "runs", "ea_kd", seed, accuracy=71 + 1.5 * seed, speed=500)
    runs = opened(tmp_path / "runs")
    found = cost(runs, output_root=str(tmp_path))
    assert found.numbers["step_ms.kd"] == pytest.approx(100)  # 64 samples at 640 a second
    assert found.numbers["step_ratio.ea_kd"] == pytest.approx(1.28)
    assert found.numbers["gain.ea_kd"] == found.numbers["gain_mean"] == pytest.approx(1.5)
    assert found.panels["cost"].x.endswith("(from the runs)")

    measured = {"kd": {"step_ms": 20.0, "ea_over_uniform_time": [1.01, 1.0, 1.02]}}
    about = {"teacher": "resnet20", "student": "resnet8", "device": "cuda", "threads": 4}
    write_json(tmp_path / "benchmark.json", {**about, "methods": measured})
    timed = cost(runs, output_root=str(tmp_path))
    assert timed.numbers["step_ms.ea_kd"] == pytest.approx(20.2)
    assert timed.panels["cost"].x == "ms a training step" and "cuda" in timed.panels["cost"].title

    write_json(tmp_path / "benchmark.json", {**about, "student": "vgg8", "methods": measured})
    with pytest.raises(UserError, match=r"benchmark: found times of resnet20-vgg8, allowed are"):
        cost(runs, output_root=str(tmp_path))
    with pytest.raises(UserError, match=r"benchmark: found no file 'gone.json'"):
        cost(runs, benchmark="gone.json")


# One run


def test_the_page_of_a_run_that_is_still_training(tmp_path):
    directory = write_run(tmp_path, "ea_kd", 4, epochs=6, lines=lambda _: {})
    (directory / "summary.json").unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # being written
    run = open_run(directory)
    found = page(Runs([run]))
    assert "EA-KD, seed 4, after epoch 3 of 6" in found.shows
    assert set(found.panels) == {"loss", "accuracy", "rate", "share", "weight", "speed"}
    loss = {series.name: series for series in found.panels["loss"].series}
    assert loss["kd"].y == pytest.approx([4, 2, 4 / 3]) and set(loss) == {"loss", "ce", "kd"}
    assert [series.name for series in found.panels["accuracy"].series] == ["train", "test"]
