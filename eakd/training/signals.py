"""Signals that ask a run to stop: collected during training, obeyed once the state is saved."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eakd.errors import Interrupted
from eakd.training.parallel import Processes

log = logging.getLogger(__name__)


class Inbox:
    """The signals that have arrived.

    Attributes:
        claimed: the handler that each collected signal had before.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.claimed: dict[int, Any] = {}

    def first(self, processes: Processes) -> int | None:
        """The signal that stops all processes, whichever received it."""
        return max(processes.gather(self.received[0] if self.received else 0)) or None

    def obey(self, stopping: int, checkpoint: str) -> None:
        """Stop the run, whose state is saved: this process or another one received ``stopping``.

        But where another handler had claimed SIGTERM, that one decides. Under submitit it lets
        SIGTERM pass: the scheduler either requeues the job itself or sends the signal that asks for
        it, and a job that ended by itself before would be a finished one.

        Raises:
            Interrupted: unless the signals may pass.
        """
        if stopping not in self.received:
            raise Interrupted(stopping, checkpoint)
        while self.received:
            number = self.received.pop(0)
            if number != signal.SIGTERM or not callable(self.claimed[number]):
                raise Interrupted(number, checkpoint)
            log.warning("SIGTERM: state saved to %s", checkpoint)
            self.claimed[number](number, None)

    def handle(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt  # somebody presses Ctrl-C again: at once, without saving
        self.received.append(number)
        log.warning("%s: saving after this step", signal.Signals(number).name)


@contextmanager
def collected() -> Iterator[Inbox]:
    """Collect the signals that ask a run to stop, instead of dying; a second SIGINT stops at once.

    SIGUSR1 and SIGUSR2 are taken only where a handler waits for them: tools of schedulers announce
    the end of a job's time by one of them, and requeue the job.
    """
    inbox = Inbox()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only, and only it may set handlers.
        yield inbox
        return
    announcing = (getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2"))
    awaited = [n for n in announcing if n is not None and callable(signal.getsignal(n))]
    numbers = (signal.SIGTERM, signal.SIGINT, *awaited)
    inbox.claimed = {number: signal.signal(number, inbox.handle) for number in numbers}
    try:
        yield inbox
    finally:
        for number, handler in inbox.claimed.items():
            signal.signal(number, handler)
