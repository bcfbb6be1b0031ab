"""One process at a time works in a run directory, on one machine or on many that share it.

The lock is a file that names its owner and is touched every few seconds. An owner on this machine
is dead when its process is gone, any other when it has been silent for `STALE` seconds; a dead
owner's lock is taken over. Who finds the lock of a process elsewhere watches it until it is touched
again or silent for long enough: a job that a cluster moves meets its own former lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from eakd.errors import UserError

NAME = "lock.json"
BEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds of silence after which an owner on another machine is dead


class Locked(UserError):
    """Another process works in the directory."""


class RunLock:
    """Hold the lock of ``directory`` from `acquire` to `release`, or as a context.

    Raises:
        Locked: somebody alive holds it.
    """

    def __init__(self, directory: Path):
        self.path = directory / NAME
        self.token = secrets.token_hex(8)
        self._stop = threading.Event()
        self._lost = False

    def acquire(self) -> RunLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create(self.path)
        except FileExistsError:
            self._take_over()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def _create(self, path: Path) -> None:
        """Write ``path``, of which only one process can be the creator."""
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(json.dumps({**_process(os.getpid()), "token": self.token}) + "\n")
                file.flush()
            except OSError:
                path.unlink()
                raise

    def _take_over(self) -> None:
        owner = self._watch()
        if owner is None or owner["alive"]:  # None: released this instant
            raise Locked(f"{self.path}: found the lock of {describe(owner)}")
        # Whoever creates the claim on this dead owner, one process, may replace its lock.
        claim = self.path.with_name(f".{NAME}.{owner['token']}")
        with contextlib.suppress(FileNotFoundError):
            if _age(claim) > STALE:  # its creator died before the last line
                claim.unlink()
        try:
            self._create(claim)
        except FileExistsError:
            raise Locked(f"{self.path}: another process is just taking over this lock") from None
        now = read_owner(self.path.parent)
        if now is None or now["token"] != owner["token"]:  # somebody was faster
            claim.unlink()
            raise Locked(f"{self.path}: found the lock of {describe(now)}")
        os.replace(claim, self.path)

    def _watch(self) -> dict[str, Any] | None:
        """The owner, once it is certain whether it is alive."""
        owner = before = read_owner(self.path.parent)
        while owner and owner["alive"] and not owner["here"]:
            if owner["silent"] < before["silent"] or owner["token"] != before["token"]:
                break  # a sign of life
            before = owner
            time.sleep(min(1.0, BEAT / 10))
            owner = read_owner(self.path.parent)
        return owner

    def check(self) -> None:
        """Raise `Locked` if the lock was taken over, after this process seemed dead for long."""
        if self._lost:
            raise Locked(f"{self.path}: lost the lock to {describe(read_owner(self.path.parent))}")

    def release(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError, ValueError):
            if self._is_mine():
                self.path.unlink()

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_mine(self) -> bool:
        return json.loads(self.path.read_text(encoding="utf-8"))["token"] == self.token

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                if not self._is_mine():
                    self._lost = True
                    return
                os.utime(self.path)
            except (FileNotFoundError, ValueError):
                self._lost = True
                return
            except OSError:  # an unreachable disk: try again later
                continue


def read_owner(directory: Path) -> dict[str, Any] | None:
    """Who holds the lock of a run directory, or ``None``.

    Returns:
        ``host``, ``pid``, ``token``, ``silent`` (seconds since the last sign of life), ``here`` (on
        this machine), ``alive`` (for a process elsewhere: it may be).
    """
    path = directory / NAME
    try:
        silent = _age(path)
    except OSError:
        return None
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        complete = {"host", "system", "pid", "started", "token"} <= owner.keys()
    except (OSError, ValueError, AttributeError):
        complete = False
    if not complete:
        owner = {"host": "an unknown host", "pid": "?", "token": "unreadable"}
        # It may just be being written.
        return {**owner, "silent": silent, "here": False, "alive": silent < STALE}
    mine = _process(os.getpid())
    here = all(owner[key] == mine[key] for key in ("host", "system"))
    alive = silent < STALE
    if here:
        alive = _process(owner["pid"]) == {k: v for k, v in owner.items() if k != "token"}
    return {**owner, "silent": silent, "here": here, "alive": alive}


def describe(owner: dict[str, Any] | None) -> str:
    """``process 12 on node3, silent for 4 s``."""
    if owner is None:
        return "nobody"
    return f"process {owner['pid']} on {owner['host']}, silent for {owner['silent']:.0f} s"


def _age(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def _process(pid: int) -> dict[str, Any]:
    """What tells a process from every other one, also from later ones with its number."""
    return {"host": socket.gethostname(), "system": _system(), "pid": pid, "started": _started(pid)}


def _system() -> str:
    """The boot and the process namespace in which a process number means something."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process started: ``"?"`` if the system does not tell, ``None`` for no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # a zombie works no more
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # somebody else's process
    return "?"
