"""Whole runs on a small set of files: records, exact continuation, evaluation, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from coco_sets import write_set
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.detection import BoxPipeline, evaluate_checkpoint
from eakd.errors import Interrupted, UserError
from eakd.training.run import run

pytest.importorskip("eakd.detection.distillers")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Overrides of a run of two epochs of four steps, with a trained teacher."""
    root = tmp_path_factory.mktemp("runs")
    words = [
        *("data=coco_folder", "data.name=mine", f"data.root={write_set(root / 'set')}"),
        *("data.short_sides=[64,96]", "data.long_side=128", "data.test_short_side=96"),
        *(f"data.cache_dir={root / 'cache'}", "data.workers=0", "recipe.evaluate_every=1"),
        *("recipe.epochs=2", "recipe.steps_per_epoch=4", "recipe.batch_size=2"),
        *("teacher=frcnn_tiny", "student=frcnn_tiny", "device=cpu", "precision=float32"),
        *(f"checkpoint_root={root / 'checkpoints'}", f"output_root={root / 'outputs'}"),
        "progress=false",
    ]
    teacher = [*words, "distiller=detection/none", "seed=7", "save_teacher=true"]
    run(compose([*teacher, f"run_dir={root / 'teacher'}"]))
    return words


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    times = ("train_seconds", "samples_per_second")
    return [{key: v for key, v in line.items() if key not in times} for line in found]


def test_a_run_stopped_anywhere_continues_bit_for_bit(job, tmp_path, monkeypatch):
    """Also with another number of workers."""
    words = [*job, "distiller=detection/ea_kd"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    summary = run(compose([*words, f"run_dir={whole}"]))

    epoch = BoxPipeline.epoch

    def stopping(self, number, start=0):
        for step, batch in enumerate(epoch(self, number, start), start):
            if (number, step) == (2, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(BoxPipeline, "epoch", stopping)
        with pytest.raises(Interrupted):
            run(compose([*words, f"run_dir={stopped}"]))
    again = run(compose([*words, f"run_dir={stopped}", "data.workers=2"]))
    assert lines(whole) == lines(stopped)
    for name in ("best", "last"):
        expected, found = (load_file(d / f"{name}.safetensors") for d in (whole, stopped))
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert (whole / f"{name}.detections.json").read_bytes() == (
            stopped / f"{name}.detections.json"
        ).read_bytes()

    assert summary["ap_last"] == again["ap_last"]
    assert summary["metrics"] == {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"}
    assert set(summary) >= {"teacher_ap", "teacher_ap50", "teacher_ap75", "teacher_digest"}
    (first, _) = lines(whole)
    assert {"test_ap_small", "test_ar100", "train_rois", "weight_mean"} <= first.keys()
    text = (whole / "last.per_class.csv").read_text()
    assert [line.split(",")[:2] for line in text.splitlines()[1:]] == [
        ["cat", "0"],
        ["dog", "1"],
        ["cow", "0"],
    ]


def test_checkpoints_are_evaluated_as_in_training(job, capsys):
    kept = [word for word in job if word.startswith(("data", "checkpoint_root", "device", "prec"))]
    found = evaluate_checkpoint(compose([*kept, "model=frcnn_tiny"], "evaluate"))
    printed = capsys.readouterr().out
    assert f"ap {found['ap']:.2f}, ap50 " in printed and "mine test" in printed
    summary = run(compose([*job, "distiller=detection/none", "seed=7"]))
    assert found["ap"] == summary["ap_last"]
    with pytest.raises(UserError, match="model: found resnet8, which detects nothing, allowed"):
        evaluate_checkpoint(compose([*kept, "model=resnet8", "checkpoint=none"], "evaluate"))


def test_a_refusal_is_one_line_and_leaves_nothing(job, tmp_path):
    words = [word for word in job if not word.startswith(("data.root", "output_root"))]
    words += [f"data.root={tmp_path / 'nowhere'}", f"output_root={tmp_path / 'outputs'}"]
    result = subprocess.run(
        [sys.executable, "scripts/train.py", *words, "distiller=detection/kd"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f"error: data.root: found {tmp_path / 'nowhere'} (No such file or directory), allowed is "
        "an existing folder or zip file"
    )
    assert not list((tmp_path / "outputs").rglob("*"))
