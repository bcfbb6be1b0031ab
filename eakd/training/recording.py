"""What a run leaves while it trains: its lines, the best and the last student, snapshots.

``dynamics.jsonl``, the snapshots and the values of single samples are for figures. They change no
number of the run and are no part of its identity. The first two are on by default, because a run
without them must be trained again when somebody wants to look into it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from eakd.errors import UserError, check_choice, check_number
from eakd.training.dynamics import in_short, segments
from eakd.training.meters import Meters
from eakd.training.reading import DYNAMICS, PREVIOUS, SNAPSHOTS, text_digest
from eakd.training.sample_values import sample_file, sample_values, write_samples
from eakd.training.schedule import Recipe
from eakd.training.state import State
from eakd.training.task import Task, samples


@dataclass(frozen=True)
class Recording:
    """What is recorded besides metrics and weights.

    Args:
        dynamics: write a line of `segments` after each epoch.
        snapshots: epochs after which the student's weights are kept; values below 1 are fractions
            of the run, rounded. The last epoch's are kept anyway.
        samples: epochs, or fractions, after which the values of every training sample are written
            (`eakd.training.sample_values`); ``"all"`` epochs, or ``None``.

    Raises:
        UserError: a value out of range.
    """

    dynamics: bool = True
    snapshots: tuple[float, ...] = (1 / 6, 1 / 2)
    samples: tuple[float, ...] | str | None = None

    def __post_init__(self) -> None:
        check_choice("dynamics", self.dynamics, (True, False))
        _check_moments("snapshots", self.snapshots, "a list of numbers")
        if self.samples not in (None, "all"):
            _check_moments("samples", self.samples, "null, all or a list of numbers")

    def snapshot_epochs(self, epochs: int) -> set[int]:
        """The epochs of a run of ``epochs`` after which a snapshot is written.

        Raises:
            UserError: an epoch that the run does not have.
        """
        return _epochs("snapshots", self.snapshots, epochs) - {epochs}

    def sample_epochs(self, epochs: int) -> set[int]:
        """The epochs of a run of ``epochs`` after which the values of samples are written.

        Raises:
            UserError: an epoch that the run does not have.
        """
        if isinstance(self.samples, str):
            return set(range(1, epochs + 1))
        return _epochs("samples", self.samples or (), epochs)


def _check_moments(name: str, values: object, allowed: str) -> None:
    if not isinstance(values, list | tuple):
        raise UserError(f"{name}: found {values!r}, allowed is {allowed}")
    for value in values:
        check_number(name, value, above=0)
        check_number(name, value, above=0, integer=value >= 1)


def _epochs(name: str, values: Iterable[float], epochs: int) -> set[int]:
    for value in values:
        if value > epochs:
            raise UserError(
                f"record.{name}: found {value}, allowed is at most {epochs}, the epochs of the run"
            )
    return {epoch_at(value, epochs) for value in values}


def epoch_at(value: float, epochs: int) -> int:
    """The epoch that ``value`` means in a run of ``epochs``: below 1 a fraction of it, rounded."""
    return max(1, round(value * epochs)) if value < 1 else int(value)


class Recorder:
    """Writes what each epoch and the whole run leave, in the units and names of the task.

    Args:
        teacher_entropy: ``(N,)`` of the training set, see `eakd.training.task.Built`.
    """

    def __init__(
        self,
        task: Task,
        state: State,
        recipe: Recipe,
        recording: Recording,
        teacher_entropy: np.ndarray | None = None,
    ):
        self.task, self.state, self.recipe = task, state, recipe
        self.dynamics, self.teacher_entropy = recording.dynamics, teacher_entropy
        self.snapshots = recording.snapshot_epochs(recipe.epochs)
        self.samples = recording.sample_epochs(recipe.epochs)
        self.tracked: dict[str, float] = {}  # of the last epoch, for trackers only
        self.selection = "val" if "val" in state.data.splits else "test"
        self.metric = next(iter(task.metrics))

    def keep(self, epoch: int, line: dict[str, Any], meters: Meters) -> None:
        """Write what an epoch leaves, all of it before the checkpoint that makes it final.

        Args:
            line: of metrics.
            meters: of all processes.
        """
        state, chosen = self.state, f"{self.selection}_{self.metric}"
        if chosen in line and (state.best is None or line[chosen] > state.best[chosen]):
            state.best = {
                k: v for k, v in line.items() if k == "epoch" or k.startswith(("val_", "test_"))
            }
            self.export("best", state.best)
        if epoch in self.snapshots:
            self.export(f"{SNAPSHOTS}/epoch{epoch:03d}", line)
        if epoch in self.samples and state.record.writes and (values := sample_values(meters)):
            write_samples(sample_file(state.record.directory, epoch), values)
        if self.dynamics and state.record.writes:
            temperature = getattr(state.distiller.weighting, "entropy_temperature", 3.0)
            dynamics = segments(meters, temperature, self.teacher_entropy)
            if dynamics["by"]:
                state.record.append(DYNAMICS, {"epoch": epoch, **dynamics})
            self.tracked = in_short(dynamics)
        state.record.append_metrics(line)

    def export(self, name: str, line: dict[str, Any]) -> None:
        """Write the plain student, with the metrics it was measured at."""
        record, ends = self.state.record, tuple(self.task.metrics)
        if record.writes:
            metadata = {k: str(v) for k, v in line.items() if k == "epoch" or k.endswith(ends)}
            student = self.state.distiller.inference_model
            self.task.export(student, record.directory / name, metadata)

    def describe(self, line: dict[str, Any]) -> str:
        """``loss 1.2345, train 50.00, test 48.00 top-1 %, 900 samples/s``."""
        splits = [s for s in ("train", "val", "test") if f"{s}_{self.metric}" in line]
        parts = [f"{split} {line[f'{split}_{self.metric}']:.2f}" for split in splits]
        if parts:
            parts[-1] += f" {self.task.metrics[self.metric]}"
        speed = f"{line['samples_per_second']:.0f} samples/s"
        return ", ".join([f"loss {line['train_loss']:.4f}", *parts, speed])

    def result(self) -> dict[str, Any]:
        """Export the last student and return what the run came to; see `eakd.training.fit`."""
        state, first = self.state, self.metric
        # The files as this process knows them: nothing that happened to them decides a result.
        state.record.restore_lines(state.record.lines())
        last = state.compute.processes.from_first(lambda: state.record.metrics()[-1])
        self.export("last", last)
        if state.record.writes:  # the second checkpoint is for runs that may yet be killed
            (state.record.directory / PREVIOUS).unlink(missing_ok=True)
        found: dict[str, Any] = {"selection": self.selection}
        for name in self.task.metrics:
            found[f"{name}_last"] = last[f"test_{name}"]
            found[f"{name}_best"] = state.best[f"test_{name}"]
        found[f"{first}_best_epoch"] = state.best["epoch"]
        if self.selection == "val":
            found[f"val_{first}_best"] = state.best[f"val_{first}"]
        return {
            **found,
            "metrics": dict(self.task.metrics),
            **state.inputs,
            "lines": {name: text_digest(text) for name, text in state.record.lines().items()},
            "seed": state.seed,
            "epochs": self.recipe.epochs,
            "seconds": state.seconds,
            "train_seconds": state.seconds,
            "samples_per_second": self.recipe.epochs * samples(state.data) / state.seconds,
        }
