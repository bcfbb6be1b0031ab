"""What a run needs to continue exactly: weights, optimiser, sums of the epoch, random numbers."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from eakd.distillers.base import Distiller
from eakd.training.checkpoint import load_checkpoint, save_checkpoint
from eakd.training.device import Compute
from eakd.training.meters import Meters
from eakd.training.record import LAST, RunRecord
from eakd.training.task import Data, samples

log = logging.getLogger(__name__)


@dataclass
class State:
    """Where a training stands.

    Attributes:
        seed: of what a method draws.
        epoch: finished epochs.
        step: finished steps of the next one.
        best: the line of the best epoch so far, or ``None``.
        seconds: of training, in all processes that worked on the run one after the other.
        meters: of the epoch under way.
    """

    seed: int
    distiller: Distiller
    optimizer: torch.optim.Optimizer
    data: Data
    compute: Compute
    record: RunRecord
    epoch: int = 0
    step: int = 0
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    meters: Meters = field(init=False)

    def __post_init__(self) -> None:
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.step, self.meters = 0, Meters(self.compute.device, samples(self.data))

    def restore(self) -> None:
        """Continue from the directory's checkpoint, if there is one."""
        processes = self.compute.processes
        state = processes.from_first(lambda: load_checkpoint(self.record.directory))
        if state is not None:
            self.distiller.load_state_dict(state["distiller"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.best, self.seconds = state["best"], state["seconds"]
            if self.step and processes.first:  # what all have seen is counted once
                self.meters.load_state_dict(state["meters"])
            randoms = [state["random"], *state.get("random_of_others", [])]
            if processes.rank < len(randoms):
                _set_random_state(randoms[processes.rank])
            log.info("continuing after epoch %d, step %d", self.epoch, self.step)
        # A run that was killed after a line and before its checkpoint trains that epoch again.
        self.record.keep_metrics(self.epoch)
        # Equal seeds give equal weights on equal devices only.
        processes.broadcast([*self.distiller.parameters(), *self.distiller.buffers()])

    def save(self, spent: float = 0.0) -> str:
        """Write the checkpoint and return its path.

        Args:
            spent: seconds in the epoch under way.
        """
        self.record.lock.check()
        processes = self.compute.processes
        random, *others = processes.gather(_random_state())
        state = {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds + spent,
            "meters": self.meters.merged(processes).state_dict() if self.step else None,
            "random": random,
            "random_of_others": others,
        }
        if processes.first:
            save_checkpoint(self.record.directory, state)
        return str(self.record.directory / LAST)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    # On another number of devices there is nothing to put back; layers with random numbers of
    # their own then go on with others.
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
