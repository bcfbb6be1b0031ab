"""The learning rate and the rest of a training protocol, apart from the method."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from eakd.errors import UserError, check_choice, check_number, check_numbers


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; the same for every method.

    Args:
        epochs: ≥ 1.
        batch_size: samples per optimiser step, over all devices together.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: peak learning rate.
        momentum, nesterov: of SGD.
        betas: of AdamW.
        weight_decay: of either.
        clip_norm: largest norm of the gradient of all parameters together; ``None`` for no bound.
        accumulate: micro-batches that a step is cut into, to save memory. Batch norms normalise
            each by itself, so it changes the numbers of networks that have some.
        steps_per_epoch: optimiser steps that count as an epoch; ``None`` for a pass over the data.
        schedule: ``"step"`` (multiply by ``gamma`` at each milestone), ``"cosine"`` or ``"linear"``
            (both to ``min_lr``). All follow the step, not the epoch.
        milestones: epochs after which the rate drops; values below 1 are fractions of ``epochs``.
        gamma: factor of one drop.
        min_lr: where ``cosine`` and ``linear`` end.
        warmup_epochs: linear warm-up from zero, may be fractional.
        evaluate_every: epochs between two evaluations; 0 for the last epoch only. The last epoch is
            always evaluated, and only evaluated epochs can be the best.
        strong_view: a second view of each image: ``"auto"`` (if the method needs it), ``"none"`` or
            ``"randaugment"``.
        name: what tables call this protocol.

    Raises:
        UserError: a value out of range, named.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: str = "step"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    strong_view: str = "auto"
    name: str = "custom"
    optimizer: str = "sgd"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    accumulate: int = 1
    steps_per_epoch: int | None = None
    min_lr: float = 0.0
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        def number(name: str, **bounds: Any) -> None:  # kept as Python's own
            object.__setattr__(self, name, check_number(name, getattr(self, name), **bounds))

        number("epochs", at_least=1, integer=True)
        number("batch_size", at_least=1, integer=True)
        number("lr", above=0)
        number("momentum", at_least=0, at_most=1)
        number("weight_decay", at_least=0)
        check_choice("nesterov", self.nesterov, (True, False))
        check_choice("schedule", self.schedule, ("step", "cosine", "linear"))
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        check_numbers("betas", self.betas, 2, at_least=0, at_most=1)
        if self.clip_norm is not None:
            number("clip_norm", above=0)
        number("accumulate", at_least=1, integer=True)
        if self.steps_per_epoch is not None:
            number("steps_per_epoch", at_least=1, integer=True)
        number("min_lr", at_least=0, at_most=self.lr)
        number("evaluate_every", at_least=0, integer=True)
        check_choice("strong_view", self.strong_view, ("auto", "none", "randaugment"))
        number("gamma", above=0, at_most=1)
        number("warmup_epochs", at_least=0)
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov: found true with momentum 0, allowed with momentum > 0")
        check_numbers("milestones", self.milestones, above=0)

    def learning_rate(self, elapsed: float) -> float:
        """The rate after ``elapsed`` epochs (2.5 is the middle of the third epoch)."""
        if elapsed < self.warmup_epochs:
            return self.lr * elapsed / self.warmup_epochs
        if self.schedule != "step":
            span = max(self.epochs - self.warmup_epochs, 1e-9)
            done = elapsed - self.warmup_epochs
            cosine = self.schedule == "cosine"
            left = (1 + math.cos(math.pi * done / span)) / 2 if cosine else 1 - done / span
            return self.min_lr + (self.lr - self.min_lr) * left
        ends = sorted(m * self.epochs if m < 1 else m for m in self.milestones)
        return self.lr * self.gamma ** bisect_right(ends, elapsed)

    def evaluates(self, epoch: int) -> bool:
        """Whether the student is evaluated after ``epoch`` (counted from 1)."""
        every = self.evaluate_every
        return epoch == self.epochs or (every > 0 and epoch % every == 0)
