"""Writing files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFTOVER = 3600.0  # seconds of silence after which a temporary file may be a killed process's


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, flush it to disk, then rename it.

    ``write`` fills that file, which is there and empty, and must not put another in its place.
    The file gets the permissions that the process's umask leaves, as any new file does. Neighbours
    that writers of ``path`` left when they were killed are removed.

    Raises:
        OSError: naming ``path``, when the disk is full, or whatever else the system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)  # first: they may be what fills the disk
    with writing(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        # Not by `tempfile`, whose files are 0600: only here does the system apply the umask.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary neighbours of ``path`` that nobody is writing any more.

    They are silent for an hour, which goes for writers on other machines, and no process here has
    the number in their name.
    """
    for left in _leftovers(path):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            os.unlink(left)


def _leftovers(path: Path) -> Iterator[str]:
    # Without a number: of versions until 0.2.
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:(\d+)\.)?[a-z0-9_]{{8}}\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = name.fullmatch(entry.name)
            if not match or (match[1] and _lives(int(match[1]))):
                continue
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER:
                    yield entry.path


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary neighbour of the folder ``path``, then rename it.

    ``write`` makes that folder. What was at ``path`` before is replaced; between the two renames of
    a replacement there is no ``path``. Neighbours that killed writers left are removed.

    Raises:
        OSError: naming ``path``, when the disk is full, or whatever else the system refuses.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _leftovers(path):
        shutil.rmtree(left, ignore_errors=True)
    temporary, old = (
        path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp") for _ in range(2)
    )
    with writing(path):
        try:
            write(temporary)
            for file in filter(Path.is_file, temporary.rglob("*")):
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            if path.exists():
                os.rename(path, old)
            try:
                os.rename(temporary, path)
            except OSError:
                if old.exists():
                    os.rename(old, path)
                raise
            sync_directory(path.parent)
        finally:
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether a process on this machine has the number; the age alone decides on Windows."""
    if os.name != "posix":  # where this call would end it
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what the system refuses inside name ``path``.

    A failed write has no file name, and torch reports its own confusion instead.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__context__
        if cause is None:
            raise
        if cause.filename and Path(cause.filename).parent != path.parent:
            raise  # about another file, which it names
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` survive a power cut (a no-op where unsupported)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(directory, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, atomically; line breaks stay as they are, on every system."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
