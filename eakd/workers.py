"""Processes and cores: each worker of a sweep keeps to its own part of the machine, one GPU or some
cores, and a command's own helper processes to the cores that it may use.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import TypeVar

from eakd.errors import UserError

log = logging.getLogger(__name__)

MOST = 4096  # slots of one sweep
Item, Answer = TypeVar("Item"), TypeVar("Answer")
SWEEP = os.getppid()  # of a worker process: the one that started it


def pin(count: int, device: str | None = None, threads: int | None = None) -> int:
    """Keep this process to its part of the machine; returns its slot among ``count`` workers.

    With GPUs it sees one of them, so it must be called before CUDA is initialised. Without, or
    with ``device="cpu"``, it gets its share of the cores, unless ``threads`` says how many. A
    ``device`` with an index is the user's choice and stays.

    Args:
        count: joblib's ``n_jobs``; negative numbers count from the number of cores.
    """
    import torch  # the command line answers without it

    _follow()
    count = count if count > 0 else max(1, len(cores()) + 1 + count)
    slot = claim(SWEEP, count)
    if device in (None, "auto", "cuda") and (gpu := _gpu(slot)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    elif device in (None, "auto", "cpu") and threads is None:
        mine = share(cores(), slot, count)
        torch.set_num_threads(len(mine))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, mine)
    return slot


def is_worker() -> bool:
    """Whether this is a worker process; joblib with one worker runs inside the main process."""
    return multiprocessing.current_process().name != "MainProcess"


def is_orphan() -> bool:
    """Whether the process that started this one has ended."""
    return os.getppid() != SWEEP


@cache
def _follow() -> None:
    """Stop this process as by SIGTERM when the sweep has ended, however that happened."""

    def watch() -> None:
        while not is_orphan():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may use: a job of a cluster rarely has the whole machine."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@cache
def cores() -> tuple[int, ...]:
    """The cores that this process might use when it began, before `pin`."""
    return usable_cores()


def share(all_cores: tuple[int, ...], slot: int, count: int) -> tuple[int, ...]:
    """The cores of one worker: ``len(all_cores) // count`` of its own, at least one."""
    each = max(1, len(all_cores) // count)
    first = slot * each % len(all_cores)
    return all_cores[first : first + each]


@cache
def _gpu(slot: int) -> str | None:
    """The GPU of a slot as ``CUDA_VISIBLE_DEVICES`` names it, ``None`` without GPUs."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        names = [str(index) for index in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name.strip()] if _has_gpus() else []
    return names[slot % len(names)] if names else None


def _has_gpus() -> bool:
    import torch

    return torch.cuda.device_count() > 0


@cache
def claim(sweep: int, count: int) -> int:
    """A number below ``count`` that no other living process of the sweep has.

    Workers are reused and may crash, so the claim is a lock that the system releases when the
    process ends: byte ``sweep * MOST + slot`` of a file that all sweeps of a user share.

    Args:
        sweep: the process id of the sweep.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return os.getpid() % count
    try:
        file = _open_lock()
    except OSError as error:
        log.warning("%s: workers may share a slot", error)
        return os.getpid() % count
    give_up = time.monotonic() + 30
    while True:
        for slot in range(count):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, sweep * MOST + slot)
            except OSError:
                continue
            return slot
        if time.monotonic() > give_up:
            log.warning("found no free slot among %d workers, sharing one", count)
            return os.getpid() % count
        time.sleep(0.1)  # the worker that this one replaces is still ending


def _open_lock() -> int:
    """The descriptor of the user's lock file, which lies where everybody may write.

    Raises:
        OSError: in one line; nothing but a plain file of this user's own is opened and locked.
    """
    path = Path(tempfile.gettempdir()) / f"eakd-workers-{os.getuid()}.lock"
    # Not through a link to a file elsewhere, and without waiting for the other end of a pipe.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        raise OSError(
            f"{path}: found no lock file to open ({error.strerror}); remove it, or set TMPDIR"
        ) from error
    found = os.fstat(file)
    # A second name could be a file of the user's that somebody else linked there.
    mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_nlink == 1
    if not mine:
        os.close(file)
        raise OSError(
            f"{path}: found a file that is not this user's own lock; remove it, or set TMPDIR"
        )
    if stat.S_IMODE(found.st_mode) != 0o600:
        os.fchmod(file, 0o600)  # others who may open it could hold every slot
    return file


def in_processes(
    function: Callable[[Item], Answer], items: Sequence[Item], most: int = 16, chunk: int = 1
) -> list[Answer]:
    """``[function(item) for item in items]``, on as many of the usable cores as there is work for.

    Args:
        function: of a module, so that another process finds it.
        most: processes, each with its own libraries in memory.
        chunk: items that a process takes at once.

    Raises:
        UserError: a process was killed. What ``function`` raises is raised here.
    """
    count = min(len(usable_cores()), math.ceil(len(items) / chunk), most)
    if count < 2:
        return [function(item) for item in items]
    # Started afresh: a process forked from one with threads and a GPU may hang.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, _leave_interrupts) as pool:
            return list(pool.map(function, items, chunksize=chunk))
    except BrokenProcessPool as error:
        raise UserError(
            f"a helper process was killed, perhaps for want of memory: {count} were at work"
        ) from error


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; the one that started the others ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
