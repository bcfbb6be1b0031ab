"""What a run is about to do, in one line, and how long such runs took. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from eakd.config import base_method, identity, needs_teacher
from eakd.errors import UserError
from eakd.training.reading import read_json, read_metrics

# Of a recipe, what decides how long an epoch takes.
PACE = ("batch_size", "accumulate", "steps_per_epoch", "strong_view")


def describe_protocol(config: DictConfig) -> str:
    """One line: recipe, epochs, batch size, optimiser and rate, schedule, and the time it takes.

    The time follows from the seconds of an epoch on record: of runs of the same kind (`kind_of`)
    under ``output_root``, or else in `speed_file`. A damaged record counts as none.
    """
    return f"{describe_recipe(config.recipe, config.recipe.get('name', 'custom'))}; {_time(config)}"


def describe_recipe(recipe: DictConfig, name: str) -> str:
    """The same without the time."""
    steps = recipe.get("steps_per_epoch")
    parts = [
        f"protocol {name}: {recipe.epochs} epochs",
        *([f"{steps} steps each"] if steps else []),
        f"batch size {recipe.batch_size}",
        f"{_optimizer(recipe)} at {recipe.lr:g}",
        _schedule(recipe),
    ]
    return ", ".join(parts)


def _optimizer(recipe: DictConfig) -> str:
    if recipe.get("optimizer", "sgd") != "sgd":
        return {"adamw": "AdamW"}.get(recipe.optimizer, str(recipe.optimizer))
    return "SGD with Nesterov momentum" if recipe.get("nesterov") else "SGD"


def _schedule(recipe: DictConfig) -> str:
    kind = recipe.get("schedule", "step")
    # As `Recipe.learning_rate` reads them: fractions of the epochs below 1.
    ends = sorted(m * recipe.epochs if m < 1 else m for m in recipe.get("milestones") or ())
    if kind != "step":
        text = f"{kind} to {recipe.get('min_lr', 0):g}"
    elif ends:
        text = f"×{recipe.get('gamma', 0.1):g} after {', '.join(f'{end:g}' for end in ends)}"
    else:
        text = "constant"
    warmup = recipe.get("warmup_epochs")
    return f"{text}, warm-up of {warmup:g}" if warmup else text


def _time(config: DictConfig) -> str:
    seconds = {**timed_epochs(config.output_root, kind_of(config)), **_of_earlier_runs(config)}
    if not seconds:
        return "the first epoch will tell how long it takes"
    taken = [
        f"about {duration(each * config.recipe.epochs)} on {device}"
        for device, each in sorted(seconds.items(), key=lambda item: item[1])
    ]
    return ", ".join(taken)


def duration(seconds: float) -> str:
    """``40 seconds``, ``12 minutes``, ``3.5 hours`` or ``2.1 days``."""
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def kind_of(config: DictConfig) -> str:
    """Runs of one kind take equally long: data set, networks and method.

    Without the weighting, which costs nothing that one would see: EA-KD takes as long as KD.
    """
    return f"{config.data.name} {_pair(config)} {config.distiller.name}"


def _pair(config: DictConfig) -> str:
    student = str(config.student.name)
    return f"{config.teacher.name}-{student}" if needs_teacher(config) else student


def speed_file(output_root: Path | str) -> Path:
    """``{device: {kind of run: seconds per epoch}}`` of what was timed for a plan."""
    return Path(output_root) / "speed.json"


def read_speeds(output_root: Path | str) -> dict[str, dict[str, float]]:
    """What is in `speed_file`, without what is damaged."""
    found = read_json(speed_file(output_root))
    return {
        str(device): {str(kind): each for kind, each in kinds.items() if _is_time(each)}
        for device, kinds in (found.items() if isinstance(found, dict) else ())
        if isinstance(kinds, dict)
    }


def timed_epochs(output_root: Path | str, kind: str) -> dict[str, float]:
    """``{device: seconds per epoch}`` of one kind of run, from `speed_file`."""
    speeds = read_speeds(output_root).items()
    return {device: kinds[kind] for device, kinds in speeds if kind in kinds}


def recorded_epochs(directories: Iterable[Path]) -> dict[str, list[float]]:
    """``{device: seconds of each epoch}`` of runs; what is damaged counts as not there."""
    taken: dict[str, list[float]] = defaultdict(list)
    for directory in directories:
        try:
            lines = read_metrics(directory)
        except (UserError, OSError):
            continue
        environment = read_json(directory / "environment.json")
        device = device_of(environment if isinstance(environment, dict) else {})
        seconds = [line.get("train_seconds") for line in lines]
        taken[device] += [each for each in seconds if _is_time(each)]
    return {device: seconds for device, seconds in taken.items() if seconds}


def _is_time(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def device_of(environment: Mapping[str, Any]) -> str:
    """``NVIDIA H100``, or ``x86_64 with 2 threads``."""
    count = environment.get("threads")
    threads = f"{environment.get('processor')} with {count} thread{'s' * (count != 1)}"
    return str(environment.get("accelerator") or threads)


def _of_earlier_runs(config: DictConfig) -> dict[str, float]:
    """``{device: mean seconds per epoch}`` of runs that take as long on the same device."""
    place = Path(config.output_root) / str(config.data.name) / _pair(config)
    wanted = identity(config)

    def alike(directory: Path) -> bool:
        found = read_json(directory / "config.json")
        if not isinstance(found, dict) or not isinstance(found.get("recipe"), dict):
            return False
        recipes = found["recipe"], wanted["recipe"]
        same = all(recipes[0].get(key) == recipes[1].get(key) for key in PACE)
        return same and found.get("data") == wanted["data"]

    runs = [
        path
        for path in sorted(place.glob("*/seed*"))
        if base_method(path.parent.name) == config.distiller.name and alike(path)
    ]
    return {device: statistics.fmean(each) for device, each in recorded_epochs(runs).items()}
