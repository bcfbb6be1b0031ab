"""Checkpoints that survive being killed, cut off or corrupted.

A checkpoint is `torch.save`'s zip archive of tensors and plain containers, so that it loads with
``weights_only=True``; its CRC-32 sums are verified before anything is unpickled. ``previous.pt``
is the one before ``last.pt``.
"""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from eakd.errors import UserError
from eakd.files import write_atomically
from eakd.training.reading import LAST, PREVIOUS

log = logging.getLogger(__name__)


def save_checkpoint(directory: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` as ``last.pt``, keeping the one before as ``previous.pt``."""
    last = directory / LAST

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # Python's file says why when a write fails
            torch.save(state, file)
        # The old file moves only once the new one is complete.
        if last.exists():
            os.replace(last, directory / PREVIOUS)

    write_atomically(last, write)
    return last


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Verify and read one checkpoint.

    Raises:
        UserError: the file is missing, cut off or corrupted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"{path}: found a damaged record {damaged}, allowed is a whole file")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise UserError(f"{path}: found no checkpoint of this program")
        return state
    except UserError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds on damaged bytes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: found an unreadable checkpoint ({reason})") from error


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """The newest sound checkpoint of a run, or ``None`` when there is none.

    Raises:
        UserError: checkpoints exist but none can be read.
    """
    problems = []
    for path in (directory / LAST, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            log.warning("%s; continuing from %s", problem, path)
        return state
    if problems:
        raise UserError("; ".join(problems) + "; remove them (or set resume=false) to start again")
    return None
