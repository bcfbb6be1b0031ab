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
        busy = Locked(f"{self.path}: another process is just taking over this lock")
        _remove_dead(claim, busy)
        try:
            self._create(claim)
        except FileExistsError:
            raise busy from None
        now = read_owner(self.path.parent)
        if now is None or now["token"] != owner["token"]:  # somebody was faster
            claim.unlink(missing_ok=True)
            raise Locked(f"{self.path}: found the lock of {describe(now)}")
        try:
            os.replace(claim, self.path)
        except FileNotFoundError:
            raise busy from None

    def _watch(self) -> dict[str, Any] | None:
        """The owner, once it is certain whether it is alive."""
        owner = before = read_owner(self.path.parent)
        began = time.monotonic()
        while owner and not owner["here"] and (owner["alive"] or owner["ahead"]):
            if any(owner[key] != before[key] for key in ("touched", "token")):
                return {**owner, "alive": True}  # a sign of life
            # By our own clock: a date ahead of it would never become old.
            if time.monotonic() - began > STALE:
                return {**owner, "alive": False}
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


def _remove_dead(claim: Path, busy: Locked) -> None:
    """Remove the claim of a process that was killed while it took a lock over.

    Raises:
        Locked: ``busy``, if its process may be alive.
    """
    found = _read(claim)
    if found is None:
        return
    if found["alive"]:
        raise busy
    # Moved first, then looked at: another process may just have replaced it by its own.
    moved = claim.with_name(f"{claim.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.rename(claim, moved)
    except FileNotFoundError:
        raise busy from None
    same = (_read(moved) or {}).get("token") == found["token"]
    moved.unlink(missing_ok=True)
    if not same:
        raise busy


def read_owner(directory: Path) -> dict[str, Any] | None:
    """Who holds the lock of a run directory, or ``None``.

    Returns:
        ``host``, ``pid``, ``token``, ``silent`` (seconds since the last sign of life), ``touched``
        (when that was), ``ahead`` (of this machine's clock, so that nobody can tell how long ago),
        ``here`` (on this machine), ``alive`` (for a process elsewhere: it may be).
    """
    return _read(directory / NAME)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        touched = path.stat().st_mtime_ns
    except OSError:
        return None
    age = time.time() - touched / 1e9
    when = {"silent": max(0.0, age), "touched": touched, "ahead": age < -STALE}
    recent = -STALE <= age < STALE
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        complete = {"host", "system", "pid", "started", "token"} <= owner.keys()
        complete = complete and isinstance(owner["pid"], int)
    except (OSError, ValueError, AttributeError):
        complete = False
    if not complete:
        owner = {"host": "an unknown host", "pid": "?", "token": "unreadable"}
        # It may just be being written.
        return {**owner, **when, "here": False, "alive": recent}
    mine = _process(os.getpid())
    here = all(owner[key] == mine[key] for key in ("host", "system"))
    alive = recent
    if here:
        alive = _process(owner["pid"]) == {k: v for k, v in owner.items() if k != "token"}
    return {**owner, **when, "here": here, "alive": alive}


def describe(owner: dict[str, Any] | None) -> str:
    """``process 12 on node3, silent for 4 s``."""
    if owner is None:
        return "nobody"
    return f"process {owner['pid']} on {owner['host']}, silent for {owner['silent']:.0f} s"


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
