"""A run directory belongs to one config."""

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file

from eakd.data import Pipeline, digits
from eakd.distillers import KD, CrossEntropy
from eakd.errors import Diverged, Interrupted, UserError
from eakd.models import resnet8
from eakd.reproduce.comparison import compare, read_runs
from eakd.training import Compute, Recipe, RunRecord, fit
from eakd.training.lock import Locked
from eakd.weighting import Weighting

CONFIG = {"recipe": {"epochs": 3, "lr": 0.1}, "seed": 0}


def test_another_config_is_refused_and_nothing_changes(tmp_path):
    RunRecord(tmp_path, CONFIG).begin()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = {"recipe": {"epochs": 4, "lr": 0.1}, "seed": 0}
    with pytest.raises(UserError, match=r"recipe\.epochs \(found 3, wanted 4\)"):
        RunRecord(tmp_path, other)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_results_without_a_readable_config_are_refused(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    record.append_metrics({"epoch": 1})
    (tmp_path / "config.json").write_text('{"recipe": {"ep')
    with pytest.raises(UserError, match=r"holds metrics\.jsonl but no readable config\.json"):
        RunRecord(tmp_path, CONFIG)


def test_opening_writes_nothing(tmp_path):
    RunRecord(tmp_path / "new", CONFIG)
    assert not (tmp_path / "new").exists()


def test_metrics_survive_a_cut_line_and_restart_where_training_does(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    for epoch in (1, 2, 3):
        record.append_metrics({"epoch": epoch, "test_top1": 1 / 3 * epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "test_')
    assert [line["epoch"] for line in record.metrics()] == [1, 2, 3]
    record.keep_metrics(2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["test_top1"] == 1 / 3 * 2  # full precision


def test_fresh_start_removes_the_old_results(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    record.append_metrics({"epoch": 1})
    record.write_summary({"top1_last": 1.0})
    record.close()
    record.begin(fresh=True)
    assert record.summary is None and record.metrics() == []


def test_the_block_leaves_status_and_summary(tmp_path):
    with RunRecord(tmp_path, CONFIG) as record:
        assert status(tmp_path) == "running" and (tmp_path / "lock.json").exists()
        with pytest.raises(Locked), RunRecord(tmp_path, CONFIG):
            pass
        record.finish({"top1_last": 12.5})
        assert record.summary is None  # only the end of the block makes it so
    assert status(tmp_path) == "finished" and not (tmp_path / "lock.json").exists()
    assert record.summary["top1_last"] == 12.5
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with RunRecord(tmp_path, CONFIG) as again:
        assert again.summary["top1_last"] == 12.5
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == stamps


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Interrupted(15, "last.pt"), "interrupted"),
        (SystemExit(0), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (Diverged("loss: found a non-finite value"), "diverged"),
        (RuntimeError("out of memory"), "failed"),
        (OSError(28, "No space left on device"), "failed"),
        (None, "interrupted"),  # the block ended before anything was finished
    ],
)
def test_the_status_tells_how_the_block_was_left(error, state, tmp_path):
    with contextlib.suppress(BaseException), RunRecord(tmp_path, CONFIG):
        if error is not None:
            raise error
    assert status(tmp_path) == state
    assert not (tmp_path / "summary.json").exists() and not (tmp_path / "lock.json").exists()
    with RunRecord(tmp_path, CONFIG):
        assert status(tmp_path) == "running"


def status(directory):
    return json.loads((directory / "status.json").read_text())["state"]


# --- without Hydra ---


def notebook(directory, data_seed=0, batch_size=20):
    """What `docs/own-loop.md` shows: a whole run in a few lines."""
    recipe = Recipe(epochs=3, batch_size=20, lr=0.05)
    data = Pipeline(
        digits(), batch_size=batch_size, seed=data_seed, mean=[0.3] * 3, std=[0.3] * 3, flip=False
    )
    torch.manual_seed(0)
    teacher, student = resnet8(num_classes=10), resnet8(num_classes=10)
    distiller = KD(student, teacher, Weighting("ea"))
    compute = Compute.create("cpu", precision="float32")
    with RunRecord(directory, {"method": "ea_kd", "seed": 0}) as record:
        return fit(distiller, data, recipe, compute, record)


def test_fit_from_a_notebook_leaves_a_finished_resumable_run(tmp_path, monkeypatch):
    summary = notebook(tmp_path / "whole")
    assert status(tmp_path / "whole") == "finished"
    assert json.loads((tmp_path / "whole" / "summary.json").read_text()) == summary
    assert summary["epochs"] == 3 and summary["seed"] == 0 and summary["top1_last"] > 0

    from eakd.training import state

    save = state.save_checkpoint

    def die(directory, contents):
        save(directory, contents)
        if contents["epoch"] == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(state, "save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        notebook(tmp_path / "parts")
    assert status(tmp_path / "parts") == "interrupted"
    monkeypatch.setattr(state, "save_checkpoint", save)
    notebook(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / n / "last.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    (row,) = compare(read_runs([tmp_path / "whole"]))
    assert row.method == "ea_kd" and row.seeds == (0,)
    began = (tmp_path / "whole" / "last.pt").stat().st_mtime_ns
    assert notebook(tmp_path / "whole") == summary  # not trained again
    assert (tmp_path / "whole" / "last.pt").stat().st_mtime_ns == began


def test_values_that_must_agree_are_refused_when_they_differ(tmp_path):
    with pytest.raises(UserError, match="batch_size: found 16 in the data and 20 in the recipe"):
        notebook(tmp_path, batch_size=16)
    assert status(tmp_path) == "failed"


def test_fit_outside_the_block_is_refused(tmp_path):
    record = RunRecord(tmp_path / "run", CONFIG)
    data = Pipeline(digits(), batch_size=64, mean=[0.3] * 3, std=[0.3] * 3)
    distiller = CrossEntropy(resnet8(num_classes=10))
    with pytest.raises(UserError, match="allowed is a call inside `with record:`"):
        fit(distiller, data, Recipe(epochs=1), Compute.create("cpu"), record)
    assert not (tmp_path / "run").exists()
