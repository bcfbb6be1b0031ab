"""What a figure computed from weights, kept on the disk: safe to delete, made again if damaged."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eakd.files import write_atomically

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def cache_folder(output_root: str | Path) -> Path:
    return Path(output_root) / "figures" / "cache"


def digest(facts: Mapping[str, Any]) -> str:
    """Sixteen hex digits of whatever decides a computation; the order of keys does not matter."""
    return hashlib.sha256(_text(facts).encode()).hexdigest()[:16]


def remembered(
    folder: Path, name: str, facts: Mapping[str, Any], compute: Callable[[], Arrays]
) -> Arrays:
    """The arrays of ``compute()``, from ``folder`` if they were computed before.

    Args:
        name: what they are, the beginning of the file's name.
        facts: all that decides them, as JSON has it.
    """
    path = folder / f"{name}-{digest(facts)}.npz"
    found = read_arrays(path, facts)
    if found is None:
        found = compute()
        write_arrays(path, facts, found)
    return found


def read_arrays(path: Path, facts: Mapping[str, Any]) -> Arrays | None:
    """What `write_arrays` wrote, or ``None`` where that is not what lies there.

    Every byte is read: the archive holds a checksum of each array.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    except Exception:  # not there, or damaged, at which numpy raises whatever it trips over
        return None
    about = found.pop("facts", None)
    return found if about is not None and str(about) == _text(facts) else None


def write_arrays(path: Path, facts: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a cache; a place that cannot be written costs the same work next time, no figure."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # by its name, numpy would add an ending
            np.savez(stream, facts=np.array(_text(facts)), **arrays)

    try:
        write_atomically(path, write)
    except OSError as error:
        log.warning("%s: not kept (%s)", path, error.strerror or error)


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True)
