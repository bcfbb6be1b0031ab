"""Two other domains train through the same loop: a language model with a mask, and boxes."""

import json
import os
import signal
import time
from pathlib import Path

import processes
import pytest
import torch
from processes import Command
from safetensors.torch import load_file
from toys.boxes import RegionHead, RegionKD, Scenes
from toys.language import Language, SequenceKD, Text, TinyGPT, number_lines

from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.training.task import check_agreement, load_task
from eakd.weighting import Weighting

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
TIMES = ("train_seconds", "samples_per_second")
DOMAINS = {
    "language": ["data=numbers", "teacher=tiny_gpt", "student=tiny_gpt", "distiller=toy/ea_words"],
    "boxes": [
        *("data=scenes_toy", "teacher=region_head", "student=region_head"),
        "distiller=toy/ea_regions",
    ],
}


def start(words, *, count=1):
    launcher = ["tests/training/launch.py", f"--nproc-per-node={count}"]
    return Command(
        [
            *(launcher if count > 1 else []),
            *("scripts/train.py", f"--config-dir={TESTS / 'toys' / 'configs'}"),
            *(*words, "device=cpu", "threads=1", "precision=float32"),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"},
        merged=True,
    )


def train(words, **settings):
    process = start(words, **settings)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def lines(directory, name="metrics.jsonl"):
    found = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


@pytest.fixture(scope="module", params=DOMAINS)
def whole(request, tmp_path_factory):
    """The words of a run that can be killed in time, and where it was left in peace."""
    folder = tmp_path_factory.mktemp(request.param)
    # An epoch of boxes takes a hundredth of a second.
    job = [
        *DOMAINS[request.param],
        f"recipe.epochs={40 if request.param == 'language' else 300}",
    ]
    train([*job, f"run_dir={folder}"])
    return job, folder


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_continued_bit_for_bit(whole, kill, tmp_path):
    (job, whole), stopped = whole, tmp_path / "stopped"
    process = start([*job, f"run_dir={stopped}"])
    while not (stopped / "metrics.jsonl").exists() or len(lines(stopped)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(kill)
    process.communicate(timeout=60)
    assert not (stopped / "summary.json").exists()  # else there is nothing to continue
    assert "continuing after epoch" in train([*job, f"run_dir={stopped}"])

    names = sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors"))
    assert len(names) == 4  # best, last, and two snapshots
    for name in names:
        expected, found = load_file(whole / name), load_file(stopped / name)
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        assert lines(whole, name) == lines(stopped, name)


def test_metrics_and_units_are_the_tasks(tmp_path):
    text = train([*DOMAINS["language"], f"run_dir={tmp_path / 'language'}"])
    assert "characters %" in text and "top" not in text
    summary = json.loads((tmp_path / "language" / "summary.json").read_text())
    assert summary["metrics"] == {"characters": "characters %"}
    assert summary["characters_best"] >= summary["characters_last"] > 20  # it learns
    assert summary["method"] == "ea_words"
    assert not any("top1" in key for key in summary)
    weights = load_file(tmp_path / "language" / "last.safetensors")
    assert ("embedding.weight" in weights) != ("head.weight" in weights)  # tied: once

    train([*DOMAINS["boxes"], f"run_dir={tmp_path / 'boxes'}"])
    evaluated = [line["epoch"] for line in lines(tmp_path / "boxes") if "test_regions" in line]
    assert evaluated == [2, 4]  # evaluate_every: 2
    summary = json.loads((tmp_path / "boxes" / "summary.json").read_text())
    assert summary["selection"] == "val" and summary["regions_best_epoch"] in evaluated
    # Images without a region have no entropy and are in no segment.
    (segments, *_) = lines(tmp_path / "boxes", "dynamics.jsonl")
    assert sum(segments["by"]["epoch"]["samples"]) == 32  # 40 training images, 8 of them empty


def test_reports_compare_runs_of_any_task(tmp_path):
    for seed in (0, 1):
        train([*DOMAINS["boxes"], f"seed={seed}", f"output_root={tmp_path}"])
    result = processes.run(["scripts/report.py", f"runs={tmp_path}/**"])
    assert "last regions %" in result.stdout and "| ea_regions | 2 |" in result.stdout


def gradients(data, epoch=1):
    """Of the first step, in float64 and without dropout."""
    torch.manual_seed(0)
    networks = [TinyGPT(dropout=0.0).double() for _ in range(2)]
    method = SequenceKD(*networks, Weighting("ea")).train()
    loss = 0.0
    for batch in next(data.epoch(epoch)):
        total = method.total(method(batch, Progress(0, epoch, 0)))
        total.loss.backward()
        loss += total.loss.item()
    return loss, [p.grad for p in method.trainable_parameters()]


@pytest.mark.parametrize("cut", [2, 3, 8])
def test_one_denominator_however_a_step_is_cut(cut):
    whole, expected = gradients(Text(number_lines()))
    loss, found = gradients(Text(number_lines(), accumulate=cut))
    assert loss == pytest.approx(whole, rel=1e-12)
    parts = [gradients(Text(number_lines(), accumulate=cut, part=(rank, 2))) for rank in (0, 1)]
    assert sum(part for part, _ in parts) == pytest.approx(whole, rel=1e-12)
    for place, gradient in enumerate(expected):
        torch.testing.assert_close(found[place], gradient, rtol=1e-10, atol=1e-13)
        summed = parts[0][1][place] + parts[1][1][place]
        torch.testing.assert_close(summed, gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_two_processes_and_micro_batches_train_the_same_model(tmp_path):
    job = [*DOMAINS["language"], "+student.dropout=0", "recipe.epochs=2", "recipe.accumulate=1"]
    train([*job, f"run_dir={tmp_path / 'one'}"])
    train([*job, f"run_dir={tmp_path / 'two'}"], count=2)
    train([*job, "recipe.accumulate=4", f"run_dir={tmp_path / 'cut'}"])
    expected = lines(tmp_path / "one")
    for name in ("two", "cut"):
        for a, b in zip(expected, lines(tmp_path / name), strict=True):
            assert a.keys() == b.keys()
            for key in a.keys() - {"weight_std"}:  # a small difference of large squares
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=0.05), (name, key)


def test_a_step_without_any_region_costs_nothing():
    data = Scenes()
    method = RegionKD(RegionHead(), RegionHead(), Weighting("matched"))
    empty = data.batch([0, 5, 10])
    assert len(empty.labels) == 0
    total = method.total(method(empty, Progress(0, 1, 0)))
    total.loss.backward()
    assert total.loss == 0
    assert all((p.grad == 0).all() for p in method.trainable_parameters())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.Task", "data.task: found 'nowhere.Task', allowed is the dotted name"),
        ("toys.language.Nothing", "data.task: found 'toys.language.Nothing'"),
        ("toys.language.Text", "data.task"),
        ("collections.OrderedDict", "allowed is anything but Python's own library"),
        ("eakd.training.Recipe", "has no build, inputs, measure, evaluate, export, metrics"),
    ],
)
def test_what_is_no_task_is_named(name, words):
    with pytest.raises(UserError) as caught:
        load_task(name)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(load_task("toys.language.Language"), Language)


def test_data_of_another_recipe_is_refused():
    from eakd.training import Recipe

    data = Text(number_lines(), batch_size=8, seed=3)
    check_agreement(data, Recipe(epochs=1, batch_size=8), seed=3)
    for recipe, seed, words in (
        (Recipe(epochs=1, batch_size=16), 3, "batch_size: found 8 in the data and 16"),
        (Recipe(epochs=1, batch_size=8), 4, "seed: found 3 in the data and 4"),
        (Recipe(epochs=1, batch_size=8, accumulate=2), 3, "accumulate: found 1 in the data"),
        (Recipe(epochs=1, batch_size=8, steps_per_epoch=5), 3, "steps_per_epoch: found 18"),
    ):
        with pytest.raises(UserError, match=words):
            check_agreement(data, recipe, seed)


def test_a_method_of_another_domain_is_refused(tmp_path):
    for words, message in (
        (
            ["data=numbers", "teacher=tiny_gpt", "student=tiny_gpt", "distiller=kd"],
            "error: distiller: found kd, a method for eakd.classification.Classification, allowed "
            "with data=numbers is toy/words",
        ),
        (
            ["data=digits", "distiller=toy/ea_words"],
            "error: distiller: found words, a method for toys.language.Language, allowed with "
            "data=digits is ctkd, dkd, dkd_ls, fcfd, kd",
        ),
    ):
        process = start([*words, f"run_dir={tmp_path / 'run'}"])
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        (line,) = output.strip().splitlines()
        assert line.startswith(message), line
        assert not (tmp_path / "run").exists()
