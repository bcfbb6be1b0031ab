"""What a run needs to continue exactly: weights, optimiser, sums of the epoch, random numbers."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eakd.distillers.base import Distiller
from eakd.errors import UserError
from eakd.training.checkpoint import load_checkpoint, save_checkpoint
from eakd.training.device import Compute
from eakd.training.meters import Meters
from eakd.training.reading import LAST, read_metrics
from eakd.training.record import INPUTS, RunRecord
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
        inputs: name → digest of what the run is made from; a checkpoint of others is refused.
    """

    seed: int
    distiller: Distiller
    optimizer: torch.optim.Optimizer
    data: Data
    compute: Compute
    record: RunRecord
    inputs: Mapping[str, str] = field(default_factory=dict)
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
            self._check_inputs(state.get("inputs", {}))
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
        if state is not None and "lines" in state:
            texts = {name: _unpacked(packed) for name, packed in state["lines"].items()}
            self.record.restore_lines(texts)
        else:  # no checkpoint, or one of version 0.1, which kept no lines in it
            self.record.keep_metrics(self.epoch)
        # Equal seeds give equal weights on equal devices only.
        processes.broadcast([*self.distiller.parameters(), *self.distiller.buffers()])

    def _check_inputs(self, made_from: Mapping[str, str]) -> None:
        for name, digest in self.inputs.items():
            if made_from.get(name, digest) != digest:
                raise UserError(
                    f"{name}: found {digest[:12]}, but the checkpoint in {self.record.directory} "
                    f"was made with {made_from[name][:12]}: other {INPUTS.get(name, 'inputs')} "
                    "than then; resume=false starts this run again, another output_root keeps both"
                )

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
            "inputs": dict(self.inputs),
            # So that a damaged file of lines can be written again.
            "lines": {name: _packed(text) for name, text in self.record.lines().items()},
        }
        if processes.first:
            save_checkpoint(self.record.directory, state)
        return str(self.record.directory / LAST)


def repair_lines(record: RunRecord) -> None:
    """Write a finished run's damaged files of lines again, from its checkpoint.

    Raises:
        UserError: they are damaged, and the checkpoint is gone or damaged too.
    """
    damaged = []
    for name in (record.summary or {}).get("lines", {}):
        try:
            if not read_metrics(record.directory, name):
                raise UserError(f"{record.directory / name}: found no line")
        except UserError as error:
            damaged.append(str(error))
    if not damaged:
        return
    state = load_checkpoint(record.directory) or {}
    if "lines" not in state:
        raise UserError(f"{damaged[0]}; found no checkpoint either, resume=false runs it again")
    record.restore_lines({name: _unpacked(packed) for name, packed in state["lines"].items()})


def _packed(text: str) -> Tensor:
    """Compressed: a checkpoint holds tensors and plain containers, and lines are repetitive."""
    return torch.from_numpy(np.frombuffer(zlib.compress(text.encode()), np.uint8).copy())


def _unpacked(packed: Tensor) -> str:
    return zlib.decompress(packed.numpy().tobytes()).decode()


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    # On another number of devices there is nothing to put back; layers with random numbers of
    # their own then go on with others.
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
