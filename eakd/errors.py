"""The errors a user can cause, each one line: the key or file, what was found, what is allowed."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can put right. Entry points print it as one line, exit status 2."""


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    integer: bool = False,
) -> None:
    """Raise `UserError` unless ``value`` is a finite number inside the stated bounds."""
    kind = "an integer" if integer else "a number"
    bounds = [
        f"{word} {bound:g}"
        for word, bound in ((">", above), (">=", at_least), ("<=", at_most))
        if bound is not None
    ]
    allowed = " ".join([kind, " and ".join(bounds)]).strip()
    numeric = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if (
        not numeric
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise UserError(f"{name}: found {value!r}, allowed is {allowed}")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise `UserError` unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(
            f"{name}: found {value!r}, allowed is one of {', '.join(map(str, allowed))}"
        )


class Diverged(RuntimeError):
    """The loss became infinite or NaN."""


class Interrupted(RuntimeError):
    """A signal stopped a run after its state was saved.

    Args:
        number: the signal; the process exits with ``128 + number``.
        checkpoint: where the state is.
    """

    def __init__(self, number: int, checkpoint: str):
        name = signal.Signals(number).name
        super().__init__(f"{name}: state saved to {checkpoint}; the same command continues the run")
        self.number, self.checkpoint = number, checkpoint
        self.exit_status = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        # Launchers pickle a job's error, and an exception is made again from its message only.
        return type(self), (self.number, self.checkpoint), self.__dict__

    def hand_on(self) -> None:
        """Give the signal to the scheduler's tool that waits for it, to requeue the job and exit.

        To be called when everything is closed. SIGTERM and SIGINT have done their work by then.
        """
        if self.number not in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(self.number)
