"""Two processes train a detector on the sum of their parts' losses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.detection import distillers
from eakd.detection.build import build_data, build_run
from eakd.distillers.base import Progress
from eakd.targets import build
from eakd.training.optimizer import make_optimizer
from eakd.training.parallel import Processes
from eakd.training.run import build_compute, run
from eakd.training.schedule import Recipe

ROOT = Path(__file__).parents[2]
SMALL = [
    *("data=scenes", "data.image_size=64", "data.train_images=12", "data.test_images=3"),
    *("recipe.epochs=1", "recipe.steps_per_epoch=1", "recipe.batch_size=5"),
    *("recipe.warmup_epochs=0", "precision=float32", "threads=1", "device=cpu"),
]
STUDENT = ["student=frcnn_tiny", "student._target_=detection_networks.without_batchnorm"]


@pytest.mark.parametrize("weighting", ["ea", "matched"])
def test_a_step_of_two_processes_is_that_of_their_parts(weighting, tmp_path, monkeypatch):
    """Parts of three images and two; each process samples regions by numbers of its own."""
    roots = [f"output_root={tmp_path / 'outputs'}", f"checkpoint_root={tmp_path / 'teachers'}"]
    common = [*SMALL, *roots]
    run(compose([*common, "student=frcnn_tiny", "distiller=detection/none", "save_teacher=true"]))
    words = [*common, *STUDENT, "teacher=frcnn_tiny", "distiller=detection/kd"]
    words.append(f"weighting={weighting}")
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    launched = processes.run(
        [
            *("tests/training/launch.py", "--nproc-per-node=2", "scripts/train.py"),
            *(*words, f"run_dir={tmp_path / 'two'}"),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        merged=True,
    )
    assert launched.returncode == 0, launched.stdout

    config = compose(words)
    recipe, compute = build(config.recipe, "recipe", Recipe), build_compute(config)
    distiller = build_run(config, recipe, compute).distiller.train()
    parts, weights = [], []
    for rank in (0, 1):
        part = replace(compute, processes=Processes(rank, 2))
        parts.append(next(build_data(config, config.seed, part, recipe).epoch(1)))
    assert [len(batch.index) for batch in parts] == [3, 2]

    def totals():
        for rank, batch in enumerate(parts):
            monkeypatch.setattr(distillers, "rank", lambda rank=rank: rank)
            progress = Progress(config.seed, 1, 0)
            terms = distiller(batch, progress)
            yield batch, distiller.total(terms, progress)

    if weighting == "matched":  # one mean over the regions of both
        distiller.weighting.batch_mean = lambda weight: weights.append(weight) or weight.mean()
        for _ in totals():
            pass
        mean = torch.cat(weights).mean()
        distiller.weighting.batch_mean = lambda weight: mean
    loss, optimizer = 0.0, make_optimizer(distiller, recipe, compute)
    for batch, total in totals():
        share = len(batch.index) / 5 * total.loss
        share.backward()
        loss += share.item()
    torch.nn.utils.clip_grad_norm_(distiller.trainable_parameters(), recipe.clip_norm)
    optimizer.step()

    (line,) = map(json.loads, (tmp_path / "two" / "metrics.jsonl").read_text().splitlines())
    assert line["train_loss"] == pytest.approx(loss, rel=1e-5)
    found = load_file(tmp_path / "two" / "last.safetensors")
    begun = dict(build_run(config, recipe, compute).distiller.student.state_dict())
    for name, value in distiller.student.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    moved = [name for name, value in begun.items() if not torch.equal(found[name], value)]
    assert len(moved) > len(begun) / 2  # a step was taken
