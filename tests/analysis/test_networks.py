"""Opening runs: the same numbers that were recorded, and a line for what can't be opened."""

import dataclasses
import shutil

import numpy as np
import pytest

from eakd.analysis.networks import Networks, epochs_of, first_with_teacher, student_file
from eakd.analysis.runs import glob_runs
from eakd.errors import UserError
from eakd.training.recording import Recording


@pytest.fixture
def runs(trained, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(trained, tmp_path / "runs")
    return glob_runs(str(tmp_path / "runs" / "**"))


@pytest.fixture
def networks(tmp_path):
    return Networks(tmp_path / "outputs")


def cached(networks, name="answers"):
    return sorted(networks.cache.glob(f"{name}-*.npz"))


def test_answers_are_those_of_the_evaluation(runs, networks):
    run = runs.of("ea_kd")[0]
    last, first = networks.answers(run), networks.answers(run, epoch=1)
    lines = run.metrics
    assert 100 * last.correct.mean() == pytest.approx(run.summary["top1_last"], abs=1e-9)
    assert 100 * first.correct.mean() == pytest.approx(lines[0]["test_top1"], abs=1e-9)
    teacher = networks.teacher_answers(run)
    assert 100 * teacher.correct.mean() == pytest.approx(run.summary["teacher_top1"], abs=1e-9)
    assert last.logits.dtype == np.float32 and last.classes.tolist() == list("0123456789")
    assert last.pooled.shape == (len(last.labels), 64) and len(last.labels) == 1717
    assert len({last.key, first.key, teacher.key, networks.answers(run, "train").key}) == 4


def test_the_cache_is_read_and_damage_is_computed_again(runs, networks, tmp_path):
    run = runs[0]
    found = networks.answers(run)
    (file,) = cached(networks)
    when, content = file.stat().st_mtime_ns, file.read_bytes()
    assert np.array_equal(networks.answers(run).logits, found.logits)
    assert file.stat().st_mtime_ns == when
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damage in (bytes(flipped), content[: len(content) // 2], b"", b"no archive"):
        file.write_bytes(damage)
        again = networks.answers(run)
        assert np.array_equal(again.logits, found.logits)
        assert np.array_equal(again.pooled, found.pooled)
        assert file.read_bytes() == content
    # A cache of something else under this name is no answer.
    other = networks.answers(run, epoch=1)
    (wrong,) = set(cached(networks)) - {file}
    shutil.copy(wrong, file)
    assert np.array_equal(networks.answers(run).logits, found.logits)
    assert not np.array_equal(other.logits, found.logits)


def test_a_cache_that_cannot_be_written_costs_no_figure(runs, tmp_path, caplog):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "figures").write_text("a file, not a folder")
    networks = Networks(tmp_path / "outputs")
    assert len(networks.answers(runs[0]).labels) == 1717
    assert "not kept" in caplog.text


def test_precision_is_part_of_the_cache(runs, tmp_path):
    keys = {Networks(tmp_path, precision=p).answers(runs[0]).key for p in ("float32", "bf16")}
    assert len(keys) == 2


def test_a_damaged_snapshot_is_one_line_and_other_runs_go_on(runs, networks):
    run, other = runs.of("kd")
    path = student_file(run, 1)
    path.write_bytes(path.read_bytes()[:2000])
    assert networks.attempt(networks.answers, run, "test", 1) is None
    assert networks.attempt(networks.answers, run, "test", 1) is None
    (line,) = networks.notes
    assert line.startswith(f"{path}: damaged (") and line.endswith(
        "delete it, and retrain=true trains its run again"
    )
    assert "\n" not in line
    assert networks.attempt(networks.answers, other, "test", 1) is not None


def test_a_missing_snapshot_says_what_records_it(runs, networks):
    with pytest.raises(UserError, match=r"no snapshot of epoch 7 \(recorded with record.snapshots"):
        networks.answers(runs[0], epoch=7)
    (runs[0].directory / "last.safetensors").unlink()
    with pytest.raises(UserError, match=r"last\.safetensors: found no weights"):
        networks.answers(runs[0])


def test_other_data_or_another_teacher_is_refused(runs, networks):
    run = runs[0]
    other = dataclasses.replace(run, summary={**run.summary, "teacher_digest": "0" * 64})
    with pytest.raises(UserError, match="found another teacher"):
        networks.teacher_answers(other)
    other = dataclasses.replace(run, summary={**run.summary, "data_fingerprint": "0" * 64})
    with pytest.raises(UserError, match="was trained on other data"):
        networks.answers(other)


def test_a_run_without_its_config_is_named(runs, networks):
    (runs[0].directory / ".hydra" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: found a damaged file"):
        networks.answers(runs[0])
    (runs[0].directory / ".hydra" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config\.yaml: found no file"):
        networks.answers(runs[0])


def test_a_method_without_a_teacher_is_named(runs):
    alone = [dataclasses.replace(run, teacher="", method="none") for run in runs]
    with pytest.raises(UserError, match="found no method with a teacher"):
        first_with_teacher(alone)


@pytest.mark.parametrize("epochs", (2, 6, 12, 240, 480))
def test_epochs_are_those_that_were_recorded(runs, epochs):
    config = {**runs[0].config, "recipe": {"epochs": epochs}}
    run = dataclasses.replace(runs[0], config=config)
    for snapshots in ((0.1667, 0.5), (1 / 6, 1 / 2), (1, 0.99)):
        recorded = Recording(snapshots=snapshots).snapshot_epochs(epochs)
        assert epochs_of(run, snapshots) == sorted({*recorded, epochs})
