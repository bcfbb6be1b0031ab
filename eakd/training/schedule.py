"""The learning rate and the rest of a training protocol, apart from the method."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from eakd.errors import UserError, check_choice, check_number


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; the same for every method.

    Args:
        epochs: ≥ 1.
        batch_size: samples per optimiser step, over all devices together.
        lr: peak learning rate.
        momentum, weight_decay, nesterov: of SGD.
        schedule: ``"step"`` (multiply by ``gamma`` at each milestone) or ``"cosine"`` (to zero).
        milestones: epochs after which the rate drops; values below 1 are fractions of ``epochs``.
        gamma: factor of one drop.
        warmup_epochs: linear warm-up from zero, may be fractional.
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

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, at_least=1, integer=True)
        check_number("batch_size", self.batch_size, at_least=1, integer=True)
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, at_least=0, at_most=1)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_choice("nesterov", self.nesterov, (True, False))
        check_choice("schedule", self.schedule, ("step", "cosine"))
        check_choice("strong_view", self.strong_view, ("auto", "none", "randaugment"))
        check_number("gamma", self.gamma, above=0, at_most=1)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0)
        if self.nesterov and self.momentum == 0:
            raise UserError("nesterov: found true with momentum 0, allowed with momentum > 0")
        for milestone in self.milestones:
            check_number("milestones", milestone, above=0)

    def learning_rate(self, elapsed: float) -> float:
        """The rate after ``elapsed`` epochs (2.5 is the middle of the third epoch)."""
        if elapsed < self.warmup_epochs:
            return self.lr * elapsed / self.warmup_epochs
        if self.schedule == "cosine":
            span = max(self.epochs - self.warmup_epochs, 1e-9)
            return self.lr / 2 * (1 + math.cos(math.pi * (elapsed - self.warmup_epochs) / span))
        ends = sorted(m * self.epochs if m < 1 else m for m in self.milestones)
        return self.lr * self.gamma ** bisect_right(ends, elapsed)
