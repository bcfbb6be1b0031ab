"""Accuracy by entropy: the parts, and the gaps of runs whose answer is known."""

import dataclasses
import shutil

import numpy as np
import pytest

from eakd.analysis.answers import segments, top_share
from eakd.analysis.comparing import comparisons
from eakd.analysis.gap import gap
from eakd.analysis.networks import teacher_file
from eakd.analysis.runs import Runs, glob_runs
from eakd.errors import UserError
from eakd.models import resnet8
from eakd.models.weights import load_weights, save_weights


def test_parts_are_equal_and_ties_keep_their_order():
    parts = segments(np.random.default_rng(0).permutation(103).astype(float))
    assert sorted(map(len, parts)) == [10] * 7 + [11] * 3
    assert sorted(np.concatenate(parts)) == list(range(103))
    assert np.concatenate(segments(np.zeros(103))).tolist() == list(range(103))
    assert [part.tolist() for part in segments(np.arange(10.0)[::-1])] == [
        [9 - place] for place in range(10)
    ]
    with pytest.raises(UserError, match="found 9, allowed are at least 10"):
        segments(np.zeros(9))
    assert sorted(top_share(np.arange(30.0), 0.1)) == [27, 28, 29]
    assert len(top_share(np.arange(3.0), 0.1)) == 1


def test_what_is_compared():
    assert comparisons(["kd", "ea_kd", "kd+matched", "dkd"]) == [
        ("ea_kd", "kd"),
        ("ea_kd", "kd+matched"),
        ("kd+matched", "kd"),
    ]


@pytest.mark.parametrize("by", ("teacher", "student"))
def test_gaps_add_up_to_the_recorded_accuracies(runs, outputs, by):
    result = gap(runs, output_root=outputs, by=by)
    assert list(result.panels) == ["gap", "accuracy", "agreement", "gap_second"]
    sizes = np.array([len(part) for part in segments(np.arange(1717.0))])
    for name in ("kd", "ea_kd", "kd+matched"):
        parts = np.array([result.numbers[f"gap.{name}.{part}"] for part in range(1, 11)])
        accuracy = np.mean([run.summary["top1_last"] for run in runs.of(name)])
        whole = runs[0].summary["teacher_top1"] - accuracy
        assert parts @ sizes / sizes.sum() == pytest.approx(whole, abs=1e-6)
    line = result.panels["gap"].series[0]
    assert line.name == "kd" and sorted(line.by_seed) == [0, 1]
    assert np.allclose(line.y, np.mean([*line.by_seed.values()], axis=0))
    assert (line.low <= line.y).all() and (line.y <= line.high).all()
    assert result.about["entropy_temperature"] == 3 and result.about["samples"] == 1717


def test_differences_are_paired_by_seed(runs, outputs):
    result = gap(runs, output_root=outputs)
    lines = {series.name: series.by_seed for series in result.panels["gap"].series}
    for part in (1, 10):
        each = [lines["ea_kd"][seed][part - 1] - lines["kd"][seed][part - 1] for seed in (0, 1)]
        key = f"gap_difference.ea_kd-kd.{part}"
        assert result.numbers[key] == pytest.approx(np.mean(each))
        assert 0 <= result.tests[key] <= 1
    assert len(result.tests) == 30  # three pairs of methods, ten parts


def test_a_student_that_is_its_teacher_has_no_gap(runs, tmp_path):
    shutil.copytree(runs.of("kd")[0].directory, tmp_path / "runs" / "kd")
    (run,) = glob_runs(str(tmp_path / "runs" / "*"))
    model = resnet8(10)
    load_weights(model, teacher_file(run))
    save_weights(model, run.directory / "last.safetensors")
    # In float32, as folding rounds otherwise.
    result = gap(Runs([run]), output_root=str(tmp_path), precision="float32")
    assert [result.numbers[f"gap.kd.{part}"] for part in range(1, 11)] == [0] * 10
    assert [result.numbers[f"agreement.kd.{part}"] for part in range(1, 11)] == [100] * 10
    assert result.panels["gap"].series[0].low is None  # one seed has no interval
    assert not result.tests


def test_entropies_are_at_the_temperature_of_the_run(runs, outputs):
    weighted = [
        dataclasses.replace(run, config={**run.config, "weighting": {"entropy_temperature": 1}})
        for run in runs
    ]
    result = gap(Runs(weighted), output_root=outputs)
    assert result.about["entropy_temperature"] == 1
    assert "gap_second" not in result.panels  # the same as the first
    other = gap(runs, output_root=outputs)
    assert np.array_equal(result.panels["gap"].series[0].y, other.panels["gap_second"].series[0].y)


def test_a_damaged_run_is_left_out_and_named(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    runs = glob_runs(str(tmp_path / "runs" / "**"))
    for run in (runs.of("kd")[0], *runs.of("ea_kd")):
        (run.directory / "last.safetensors").write_bytes(b"cut off")
    result = gap(runs, output_root=str(tmp_path))
    assert [series.name for series in result.panels["gap"].series] == ["kd", "kd+matched"]
    assert sorted(result.panels["gap"].series[0].by_seed) == [1]
    assert sum("damaged" in note for note in result.notes) == 3
    for run in runs:
        (run.directory / "last.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="damaged"):
        gap(runs, output_root=str(tmp_path))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"by": "loss"}, "by: found 'loss', allowed is one of teacher, student"),
        ({"split": "dev"}, "split: found 'dev'"),
        ({"second_temperature": 0}, "second_temperature: found 0"),
        ({"device": "gpu"}, "device: found 'gpu'"),
    ],
)
def test_wrong_settings(runs, outputs, settings, message):
    with pytest.raises(UserError) as caught:
        gap(runs, output_root=outputs, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
