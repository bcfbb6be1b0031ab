"""Writing files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, flush it to disk, then rename it.

    Raises:
        OSError: naming ``path``, when the disk is full, or whatever else the system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let what the system refuses inside name ``path``.

    A failed write has no file name, torch reports its own confusion instead, and safetensors puts
    the system's number into a sentence.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__context__
        told = re.search(r"\(os error (\d+)\)", str(error))
        if cause is None and told is None:
            raise
        if cause is not None and cause.filename and Path(cause.filename).parent != path.parent:
            raise  # about another file, which it names
        number = cause.errno if cause is not None else int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error


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
