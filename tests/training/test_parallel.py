"""Two processes under torchrun do what one does: real launches, on a CPU with gloo."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Command
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.config import config_hash, identity
from eakd.data import ImageData, Pipeline
from eakd.data.randaugment import RandAugment
from eakd.errors import UserError
from eakd.training.run import run
from eakd.training.sample_values import read_samples, sample_file

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

# Sums of float32 numbers in another order, after a dozen steps; measured is a tenth of it. The
# metrics have differences in them (a KL divergence near 0), the weights as whole tensors have not.
METRICS, WEIGHTS = 1e-4, 1e-5
TIMES = ("train_seconds", "samples_per_second")


@pytest.fixture(scope="module")
def common(tiny_with_teacher):
    """90 samples in steps of 17: parts of 9 and 8, and 3 and 2 in the last step of an epoch."""
    student = ["student._target_=parallel_networks.without_batchnorm", "student.name=plain"]
    sizes = ["data.train_per_class=9", "recipe.batch_size=17"]
    return [*tiny_with_teacher, *student, *sizes, "precision=float32", "threads=1"]


def start(*overrides):
    """A launch of two processes."""
    return Command(
        [
            *("tests/training/launch.py", "--nproc-per-node=2"),
            *("scripts/train.py", *overrides),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"},
        merged=True,
    )


def end(process):
    """Its exit status and what it printed; a deadlock is an error."""
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends the processes that it started
    return process.returncode, output


def launch(*overrides):
    status, output = end(start(*overrides))
    assert status == 0, output
    return output


def alone(*overrides):
    return run(compose(list(overrides)))


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_metrics(one, two, tolerance=METRICS):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {*TIMES, "weight_std"}:
            # Counts of samples jump: one whose two largest logits, or one with another whose
            # entropies, are as good as equal may change sides.
            jump = None
            if tolerance > METRICS and ("top" in key or key.startswith("share_")):
                jump = 0.005 if key.startswith("share_") else 1.2 if "train" in key else 0.2
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=jump), key
        if "weight_std" in a:  # a small difference of large squares
            assert a["weight_std"] == pytest.approx(b["weight_std"], abs=2e-3)


def assert_same_weights(one, two, tolerance=WEIGHTS):
    a, b = (load_file(directory / "last.safetensors") for directory in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        difference = (a[name] - b[name]).norm() / a[name].norm()
        assert difference <= tolerance, (name, difference)


def distance(one, two):
    """Of all weights together, relative; single small tensors may be far apart."""
    a, b = (load_file(directory / "last.safetensors") for directory in (one, two))
    pairs = [(a[name].double(), b[name].double()) for name in a]
    difference = sum((x - y).square().sum() for x, y in pairs)
    return (difference / sum(x.square().sum() for x, _ in pairs)).sqrt()


# --- the parts of a batch ---


def noise(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(count) % 5
    return ImageData("noise", tuple("abcde"), images, labels, images, labels, "noise")


def pipeline(**options):
    defaults = {"batch_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "seed": 3, "rotation": 9.0}
    return Pipeline(noise(43), **{**defaults, **options})


@pytest.mark.parametrize("view", [None, RandAugment()])
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_make_up_the_batch(view, size):
    whole = pipeline(strong_view=view)
    parts = [pipeline(strong_view=view, part=(rank, size)) for rank in range(size)]
    for start_at in (0, 1):
        epochs = [list(p.epoch(2, start_at)) for p in (whole, *parts)]
        assert len({len(batches) for batches in epochs}) == 1
        for batch, *pieces in zip(*epochs, strict=True):
            sizes = [len(piece.targets) for piece in pieces]
            assert max(sizes) - min(sizes) <= 1
            for expected, *found in zip(batch, *pieces, strict=True):
                if expected is not None:
                    assert torch.equal(expected, torch.cat(found))
    assert [whole.step_size(step) for step in range(3)] == [16, 16, 11]

    expected = torch.cat([batch.index for batch in whole.evaluation("test")])
    found = [b.index for rank in range(size) for b in whole.evaluation("test", (rank, size))]
    assert torch.equal(expected, torch.cat(found))


@pytest.mark.parametrize(("batch_size", "smallest"), [(1, 1), (14, 1), (3, 1)])
def test_a_step_without_a_sample_for_each_process_is_refused(batch_size, smallest):
    with pytest.raises(UserError, match=rf"batch_size: found {batch_size}, with {smallest} of 43"):
        pipeline(batch_size=batch_size, part=(0, 2))
    pipeline(batch_size=batch_size)
    if batch_size > 1:
        pipeline(batch_size=batch_size, part=(0, 2), drop_last=True)


# --- two processes against one ---


KD = "distiller=kd"


@pytest.mark.parametrize(
    "method", [["distiller=ea_kd"], [KD, "weighting=matched"], [KD, "weighting=focal_rescaled"]]
)
def test_two_processes_compute_what_one_does(common, tmp_path, method):
    one, two = tmp_path / "one", tmp_path / "two"
    method = [*method, "record.samples=[2]"]
    summary = alone(*common, *method, f"run_dir={one}")
    output = launch(*common, *method, f"run_dir={two}")
    assert output.count("epoch 1/2") == 1  # one process speaks
    assert_same_metrics(metrics(one), metrics(two))
    assert_same_weights(one, two)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()} - {"train.log"}

    expected, samples = (read_samples(sample_file(folder, 2)) for folder in (one, two))
    assert expected.keys() == samples.keys() and len(samples["index"]) == 90
    for name, values in expected.items():
        if name == "correct":  # two logits that are as good as equal may change sides
            assert (values != samples[name]).sum() <= 1
        else:
            np.testing.assert_allclose(samples[name], values, rtol=5e-3, atol=1e-3)

    found = json.loads((two / "summary.json").read_text())
    assert (summary["processes"], found["processes"]) == (1, 2)
    for key in ("config_hash", "top1_last", "top5_best", "teacher_top1", "parameters"):
        assert found[key] == summary[key]
    assert found["samples_per_second"] == pytest.approx(180 / found["train_seconds"])


@pytest.mark.slow
def test_a_stopped_launch_continues_on_two_processes_or_one(common, tmp_path):
    """Steps of 3, so that an epoch is longer than the steps between two looks at a signal."""
    job = [*common, "distiller=ea_kd", "recipe.epochs=6", "recipe.batch_size=3", "recipe.lr=0.01"]
    job.append("recipe.evaluate_every=3")
    whole, stopped, single = (tmp_path / name for name in ("whole", "stopped", "single"))
    launch(*job, f"run_dir={whole}")

    process = start(*job, f"run_dir={stopped}")
    while not (stopped / "metrics.jsonl").exists() or not metrics(stopped):
        assert process.poll() is None, end(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, output = end(process)
    assert status != 0
    assert output.count("the same command continues the run") == 1, output
    assert json.loads((stopped / "status.json").read_text())["state"] == "interrupted"
    state = torch.load(stopped / "last.pt", weights_only=True)
    assert state["step"] in (0, 25) and state["epoch"] < 6
    if state["step"]:  # what both processes saw until then
        assert state["meters"]["seen"] == 75
        assert (~state["meters"]["samples"][0].isnan()).sum() == 75

    shutil.copytree(stopped, single)
    launch(*job, f"run_dir={stopped}")
    assert_same_metrics(metrics(whole), metrics(stopped))
    assert_same_weights(whole, stopped, tolerance=0)  # bit for bit

    alone(*job, f"run_dir={single}")
    # Rounding grows with the steps, differently on each processor: compared closely in the epoch
    # that was continued, and as weights, after hundreds of steps, to a hundredth.
    continued = state["epoch"] + 1
    assert_same_metrics(metrics(whole)[:continued], metrics(single)[:continued], tolerance=1e-3)
    assert distance(whole, single) <= 1e-2


# --- what ends a launch ---


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["recipe.batch_size=1"], "error: data.batch_size: found 1"),
        (["sync_batchnorm=true"], "error: sync_batchnorm: found true on cpu, allowed is"),
        (["device=cpu:0"], "error: device: found 'cpu:0', allowed with 2 processes is"),
        (
            ["student._target_=parallel_networks.refused_by_the_second"],
            "error: student.depth: found 8",
        ),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_run(common, tmp_path, overrides, line):
    target = tmp_path / "run"
    status, output = end(start(*common, "device=cpu", *overrides, f"run_dir={target}"))
    assert status != 0
    assert output.count("error: ") == 1 and line in output, output
    # The first process may have logged the teacher's accuracy before another one refuses.
    assert not target.exists() or [p.name for p in target.iterdir()] == ["train.log"]


def test_divergence_is_told_once(common, tmp_path):
    status, output = end(start(*common, "recipe.lr=1e30", f"run_dir={tmp_path}"))
    assert status != 0
    assert output.count("error: loss: found a non-finite value in epoch 1") == 1, output
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "diverged"
    assert not (tmp_path / "summary.json").exists()


def test_a_crash_of_one_process_ends_the_launch(common, tmp_path):
    broken = "student._target_=parallel_networks.broken_in_the_second"
    status, output = end(start(*common, broken, f"run_dir={tmp_path}"))
    assert status != 0 and "a bug in one process" in output
    assert not (tmp_path / "summary.json").exists()


def test_synchronised_batch_norms_need_cuda_and_are_part_of_a_run(common, tmp_path):
    with pytest.raises(UserError, match="sync_batchnorm: found true on cpu, allowed is"):
        alone(*common, "sync_batchnorm=true", "device=cpu", f"run_dir={tmp_path}")
    off, on = (compose([f"sync_batchnorm={value}"]) for value in ("false", "true"))
    assert "sync_batchnorm" not in identity(off)
    assert config_hash(identity(on)) != config_hash(identity(off))


# --- every method ---

LINEAR = ("none", "dkd", "ea_ctkd", "ea_dkd_ls")  # no term compares the samples of a batch
COUPLED = ("ea_mld", "ea_reviewkd", "ea_fcfd")  # they do, or the method's own batch norms do


@pytest.mark.slow
def test_every_method_runs_on_two_processes(common, tmp_path):
    """In a sweep, of which every run is a launch's."""
    job = [*common, "recipe.epochs=1"]
    two = tmp_path / "two"
    launch("-m", *job, f"output_root={two}", f"distiller={','.join((*LINEAR, *COUPLED))}")
    folders = {p.parent.parent.name: p.parent for p in two.rglob("summary.json")}
    assert folders.keys() == {*LINEAR, *COUPLED}
    for method, folder in folders.items():
        assert json.loads((folder / "summary.json").read_text())["processes"] == 2
        one = tmp_path / method
        alone(*job, f"distiller={method}", f"run_dir={one}")
        if method in LINEAR:
            assert_same_metrics(metrics(one), metrics(folder))
            assert_same_weights(one, folder)
        else:
            (ours,), (theirs,) = metrics(folder), metrics(one)
            assert ours.keys() == theirs.keys()
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.5)


def test_a_table_answers_for_the_teacher_in_both(common, tmp_path):
    (word,) = (word for word in common if word.startswith("checkpoint_root="))
    shutil.copytree(word.partition("=")[2], tmp_path / "checkpoints")
    words = [*common, f"checkpoint_root={tmp_path / 'checkpoints'}"]
    words += ["data.train_per_class=8", "recipe.batch_size=32"]
    summaries = {}
    for table in ("false", "true"):
        launch(*words, f"teacher.table={table}", f"run_dir={tmp_path / table}")
        summaries[table] = json.loads((tmp_path / table / "summary.json").read_text())
    (folder,) = (tmp_path / "checkpoints" / "answers").iterdir()
    assert summaries["false"]["teacher_table"] == "none"
    assert summaries["true"]["teacher_table"] == folder.name
    assert_same_weights(tmp_path / "false", tmp_path / "true", tolerance=0)
