"""Seconds per epoch of the runs of a plan, where no run has recorded them yet."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from eakd.composing import compose
from eakd.config import CONFIGS
from eakd.errors import UserError
from eakd.files import write_json
from eakd.reproduce.plan import ROLES, Plan, State
from eakd.reproduce.progress import recorded_epochs
from eakd.training.protocol import device_of, read_speeds, speed_file

log = logging.getLogger(__name__)


def measure(plan: Plan, states: dict[Path, State], steps: int, output_root: str) -> None:
    """Time ``steps`` training steps of each kind of run whose speed is not known on this device.

    Networks are fresh and images are noise, so neither data nor teachers need to be there. The
    seconds per epoch that follow are kept in ``<output_root>/speed.json``, which plans read.

    Raises:
        UserError: the data set's file does not say how large the set is.
    """
    from eakd.benchmark import seconds_per_step
    from eakd.training.environment import environment

    device = device_of(environment())
    known = recorded_epochs(plan, states, output_root).get(device, {})
    kinds = {job.kind: job for job in plan.jobs if states[job.directory].name != "done"}
    path = speed_file(output_root)
    for kind, job in kinds.items():
        if kind in known:
            continue
        config = compose(list(job.overrides))
        samples, recipe = _fact(config, "samples"), config.recipe
        epoch = recipe.steps_per_epoch or -(-samples // recipe.batch_size)
        seconds = epoch * seconds_per_step(_benchmark(config), steps)
        speeds = read_speeds(output_root)
        speeds.setdefault(device, {})[kind] = seconds
        write_json(path, speeds)  # after each: the rest may be interrupted
        log.info("%s: %.1f seconds an epoch", kind, seconds)


def measurable(plan: Plan) -> bool:
    """Whether `measure` can time the runs: whether the data set's file says what it must."""
    facts = compose([f"data={plan.table.data}"]).data.get("plan") or {}
    return "samples" in facts and "image_size" in facts


def _benchmark(config: DictConfig) -> DictConfig:
    """The benchmark of a run's method and networks, computed as the run is."""
    found = compose([], "benchmark")
    OmegaConf.set_struct(found, False)
    for key in (*OmegaConf.load(CONFIGS / "compute.yaml"), *ROLES, "distiller"):
        found[key] = config[key]
    found.batch_size, found.image_size = config.recipe.batch_size, _fact(config, "image_size")
    found.num_classes = config.data.num_classes
    return found


def _fact(config: DictConfig, key: str) -> int:
    """What the data set's file says of the set before it is there."""
    value = OmegaConf.select(config, f"data.plan.{key}")
    if value is None:
        raise UserError(
            f"measure: found no plan.{key} in the file of the data set {config.data.name}, allowed "
            "is a file with plan.samples, the size of the training set, and plan.image_size, pixels"
        )
    return value
