"""The line that says what a run is about to do, and how long such runs took."""

import json
import subprocess
import sys

import pytest

from eakd.composing import compose
from eakd.config import identity, run_name
from eakd.training.protocol import describe_protocol, duration, kind_of, speed_file

UNKNOWN = "; the first epoch will tell how long it takes"
PAIR = ["data=cifar100", "teacher=resnet32x4", "student=resnet8x4"]


def described(tmp_path, *overrides):
    return describe_protocol(compose([f"output_root={tmp_path}", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            [*PAIR, "distiller=mld"],
            "protocol authors: 480 epochs, batch size 64, SGD at 0.025, ×0.1 after 150, 180, 210",
        ),
        (
            [*PAIR, "distiller=ea_fcfd"],
            "protocol authors: 240 epochs, batch size 64, SGD with Nesterov momentum at 0.05, "
            "×0.1 after 150, 180, 210",
        ),
        (
            [*PAIR, "recipe=short", "distiller=none"],
            "protocol short: 30 epochs, batch size 64, SGD at 0.05, ×0.1 after 18.75, 22.5, 26.25",
        ),
        (
            ["recipe.steps_per_epoch=7", "recipe.optimizer=adamw", "recipe.schedule=linear"],
            "protocol digits: 60 epochs, 7 steps each, batch size 16, AdamW at 0.05, linear to 0, "
            "warm-up of 1",
        ),
        (
            ["recipe.schedule=step", "recipe.warmup_epochs=0", "recipe.nesterov=false"],
            "protocol digits: 60 epochs, batch size 16, SGD at 0.05, constant",
        ),
    ],
)
def test_the_line_says_what_is_followed(overrides, line, tmp_path):
    text = described(tmp_path, *overrides)
    assert text == line + UNKNOWN


def leave(tmp_path, seconds, *overrides, accelerator="NVIDIA H100"):
    """A run with epochs of these lengths."""
    config = compose([f"output_root={tmp_path}", *overrides])
    folder = tmp_path / run_name(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(identity(config)))
    (folder / "environment.json").write_text(json.dumps({"accelerator": accelerator}))
    lines = [{"epoch": n, "train_seconds": each} for n, each in enumerate(seconds, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_time_comes_from_runs_that_take_as_long(tmp_path):
    leave(tmp_path, [29.0, 31.0], *PAIR, "distiller=ea_kd", "seed=3")
    text = described(tmp_path, *PAIR, "distiller=kd")
    assert text.endswith("; about 2.0 hours on NVIDIA H100")
    leave(tmp_path, [90.0], *PAIR, "distiller=kd", "seed=4", accelerator="Other")
    text = described(tmp_path, *PAIR, "distiller=kd")
    assert text.endswith("; about 2.0 hours on NVIDIA H100, about 6.0 hours on Other")
    for other in (["distiller=dkd"], ["recipe.batch_size=32"], ["data.val_fraction=0.1"]):
        assert described(tmp_path, *PAIR, *other).endswith(
            "the first epoch will tell how long it takes"
        )


def test_what_was_timed_for_a_plan_counts_where_nothing_ran(tmp_path):
    kind = kind_of(compose([*PAIR, "distiller=kd"]))
    speed_file(tmp_path).write_text(json.dumps({"A": {kind: 1.0}, "B": {"other": 1.0}}))
    assert described(tmp_path, *PAIR).endswith("; about 4 minutes on A")
    leave(tmp_path, [60.0], *PAIR, accelerator="A")
    assert described(tmp_path, *PAIR, "seed=1").endswith("; about 4.0 hours on A")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"A": 3}', '{"A": {"%s": "x"}}', '{"A": {"%s": NaN}}']
)
def test_a_damaged_record_counts_as_none(text, tmp_path):
    speed_file(tmp_path).write_text(text.replace("%s", "cifar100 resnet32x4-resnet8x4 kd"))
    folder = leave(tmp_path, [1.0], *PAIR)
    (folder / "metrics.jsonl").write_text("damaged\n")
    assert described(tmp_path, *PAIR).endswith(UNKNOWN)


def test_durations():
    found = [duration(s) for s in (0.4, 40, 89, 120, 5000, 5400, 86400, 200000)]
    assert found[:4] == ["0 seconds", "40 seconds", "89 seconds", "2 minutes"]
    assert found[4:] == ["83 minutes", "1.5 hours", "24.0 hours", "2.3 days"]


def test_no_torch_is_imported():
    code = "import sys, eakd.training.protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
