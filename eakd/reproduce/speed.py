"""Seconds per epoch of the runs of a plan, where no run has recorded them yet."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eakd.config import CONFIGS, compose
from eakd.files import write_json
from eakd.reproduce.plan import Job, Plan, State, device_of, recorded_epochs, speed_file
from eakd.training.record import read_json

log = logging.getLogger(__name__)

# Training images and their size in pixels; the number of classes is in the data set's config.
SHAPES = {
    "cifar10": (50_000, 32),
    "cifar100": (50_000, 32),
    "tiny_imagenet": (100_000, 64),
    "digits": (100, 16),
}


def measure(plan: Plan, states: dict[Path, State], steps: int, output_root: str) -> None:
    """Time ``steps`` training steps of each kind of run whose speed is not known on this device.

    Networks are fresh and images are noise, so neither data nor teachers need to be there. The
    seconds per epoch that follow are kept in ``<output_root>/speed.json``, which plans read.
    """
    from eakd.training.benchmark import seconds_per_step
    from eakd.training.record import environment

    device = device_of(environment())
    known = recorded_epochs(plan, states, output_root).get(device, {})
    kinds = {job.kind: job for job in plan.jobs if states[job.directory].name != "done"}
    path = speed_file(output_root)
    for kind, job in kinds.items():
        if kind in known:
            continue
        images, size = SHAPES[job.identified["data"]["name"]]
        batch = job.identified["recipe"]["batch_size"]
        config = compose(
            [*_networks(job), f"batch_size={batch}", f"image_size={size}"], "benchmark"
        )
        config.num_classes = job.identified["data"]["num_classes"]
        seconds = seconds_per_step(config, steps) * -(-images // batch)
        speeds: dict[str, Any] = read_json(path) or {}
        speeds.setdefault(device, {})[kind] = seconds
        write_json(path, speeds)  # after each: the rest may be interrupted
        log.info("%s: %.1f seconds an epoch", kind, seconds)


def _networks(job: Job) -> list[str]:
    """The part of a job's command line that decides how long a step takes."""
    student = job.identified["student"]["name"]
    teacher = job.identified.get("teacher", {"name": student})["name"]
    method = job.identified["distiller"]["name"].removeprefix("ea_").partition("+")[0]
    words = [f"teacher={teacher}", f"student={student}", f"distiller={method}"]
    keys = OmegaConf.load(CONFIGS / "compute.yaml").keys()
    return words + [word for word in job.overrides if word.partition("=")[0] in keys]
