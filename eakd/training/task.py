"""What the training loop asks of a domain: two small protocols, and nothing else.

The loop, the records, the plan and the reports know neither images nor texts. A data set's file
names its task (``data.task``), a class that is called without arguments. `Classification` is the
first one; ``docs/add-a-domain.md`` builds another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eakd.config import DEFAULT_TASK
from eakd.errors import UserError
from eakd.targets import locate

if TYPE_CHECKING:  # planners import this module, without torch
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from eakd.distillers.base import Distiller, Terms
    from eakd.training.device import Compute
    from eakd.training.schedule import Recipe


class Data(Protocol):
    """The training batches of a run, and the splits that it is evaluated on.

    What `epoch` yields is a step: a batch, or a list of them, micro-batches whose gradients add up
    to the step's. A batch is whatever the method takes, with an attribute ``index``: ``(n,)`` int64
    on the device, the positions of its samples in the training set.
    """

    @property
    def train_size(self) -> int:
        """Samples of the training split."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps."""

    @property
    def splits(self) -> Collection[str]:
        """What can be evaluated, ``"test"`` at least; ``"val"`` chooses the best epoch if there."""

    @property
    def fingerprint(self) -> str:
        """Hex digest that identifies the content."""

    def step_size(self, step: int) -> int:
        """Samples of a step (counted from 0), of all micro-batches and processes together."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The steps of an epoch (counted from 1) but for the first ``start``.

        A function of the seed and ``epoch`` alone: step k is the same whatever ``start`` is, so
        that a run continues where it stopped. With several processes, this one's part.
        """


class Built(NamedTuple):
    """All that a task builds for one run.

    Attributes:
        data, distiller: on the device.
        teacher: the teacher's metrics on the test split; empty without one.
        teacher_entropy: ``(N,)`` in nats, of each sample of the training set without augmentation,
            by its `Data` index: the ranking that records keep through all epochs, or ``None``.
        inputs: see `Task.inputs`.
        notes: what else records tell of the run; it may be otherwise when the run continues.
    """

    data: Data
    distiller: Distiller
    teacher: Mapping[str, float] = {}
    teacher_entropy: Tensor | None = None
    inputs: Mapping[str, str] = {}
    notes: Mapping[str, str] = {}


class Task(Protocol):
    """A domain: what a run is built of, and how it is measured.

    Attributes:
        metrics: name → heading with unit, such as ``{"top1": "top-1 %"}``. Higher is better, the
            first one chooses the best epoch.
    """

    metrics: Mapping[str, str]

    def build(self, config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
        """Everything from a run's config; nothing is written to the run's directory."""

    def inputs(self, config: DictConfig) -> Mapping[str, str]:
        """Name → digest of the files that a run of this config is made from, as they are now.

        ``data_fingerprint``, and ``teacher_digest`` where there is a teacher. A finished run is
        skipped only if they are what it was made from.

        Raises:
            UserError: something is not there.
        """

    def measure(self, batch: Any, terms: Terms) -> dict[str, Tensor]:
        """Values of each sample ``(n,)`` of a training batch, averaged as ``train_<name>``."""

    def evaluate(
        self, model: nn.Module, data: Data, split: str, compute: Compute
    ) -> dict[str, float]:
        """The `metrics` on a split, of all processes together; the model's mode is put back."""

    def export(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the plain student to ``path``, which has no ending yet, whole or not at all."""


def load_task(name: str | None = None) -> Task:
    """The task behind a data file's ``task`` key, `DEFAULT_TASK` where a file has none.

    Raises:
        UserError: nothing of that name, or something that is no task.
    """
    target = locate(name or DEFAULT_TASK, "data.task")
    members = [m for m in (*vars(Task), *Task.__annotations__) if not m.startswith("_")]
    missing = [member for member in members if not hasattr(target, member)]
    if not isinstance(target, type) or missing:  # before it is called, whatever it is
        raise UserError(
            f"data.task: found {name!r}, which has no {', '.join(missing)}, allowed is a class "
            f"with {', '.join(members)}"
        )
    try:
        return target()
    except TypeError as error:
        raise UserError(
            f"data.task: found {name!r}, allowed is a class that is called without arguments"
        ) from error


def samples(data: Data, start: int = 0) -> int:
    """Samples of an epoch but for its first ``start`` steps."""
    return sum(map(data.step_size, range(start, data.steps_per_epoch)))


def check_agreement(data: Data, recipe: Recipe, seed: int) -> None:
    """Refuse data that was built for another recipe or seed: the record would name the wrong one.

    Raises:
        UserError: the value that differs.
    """
    wanted = {"batch_size": recipe.batch_size, "accumulate": recipe.accumulate, "seed": seed}
    if recipe.steps_per_epoch is not None:
        wanted["steps_per_epoch"] = recipe.steps_per_epoch
    for name, value in wanted.items():
        found = getattr(data, name, value)
        if found != value:
            raise UserError(
                f"{name}: found {found} in the data and {value} in the recipe or the call of fit, "
                "allowed are equal values"
            )
