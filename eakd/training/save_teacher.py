"""Keeping a finished student as the teacher that ``teacher.checkpoint=auto`` finds."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from eakd.errors import UserError
from eakd.files import write_atomically
from eakd.training.find_teacher import teacher_files, weights_digest
from eakd.training.reading import read_json

log = logging.getLogger(__name__)


def save_teacher(source: Path, root: Path, data: str, name: str, metric: str) -> Path | None:
    """Copy ``source`` to ``root/<data>/<name>.safetensors``, unless a better teacher is there.

    What ``teacher.checkpoint=auto`` finds now, be it that file or one of the public zoo, is
    replaced only if both files say how good they are and the new one is better. The old one is kept
    as ``<name>.replaced-<digest>.safetensors`` then.

    Args:
        source: weights of a finished run, with ``metric`` in their header.
        metric: ``test_top1``, say; larger is better.

    Returns:
        The file, or ``None`` if what was there before stays; the log says why.

    Raises:
        UserError: there is no ``source``, or the folder cannot be written.
    """
    if not source.is_file():
        raise UserError(
            f"save_teacher: found no {source}, allowed is a finished run that has it; "
            "resume=false trains it again"
        )
    places = teacher_files(root, data, name)
    try:
        known = next((path for path in places if path.is_file()), None)
        if known is None or _may_replace(known, source, places[0], metric):
            write_atomically(places[0], lambda path: shutil.copyfile(source, path))
            log.info("saved %s", places[0])
            return places[0]
    except OSError as error:
        raise UserError(
            f"save_teacher: found {error.filename or places[0]} ({error.strerror}), allowed is a "
            f"checkpoint_root that can be written; the finished student is {source}"
        ) from error
    return None


def save_teacher_folder(source: Path, root: Path, data: str, name: str, metric: str) -> Path | None:
    """The same for a model that is a folder: ``root/<data>/<name>/``.

    Args:
        source: of a finished run, with ``metric`` in its ``eakd.json``.
    """
    target = root / data / name
    old, new = (read_json(place / "eakd.json") or {} for place in (target, source))
    try:
        if target.exists():
            if old == new:
                log.info("saved before: %s", target)
                return target
            if not float(new.get(metric, "-inf")) > float(old.get(metric, "inf")):
                log.warning(
                    "save_teacher: kept %s (%s %s) rather than this run (%s)",
                    *(target, metric, old.get(metric, "unknown"), new.get(metric, "unknown")),
                )
                return None
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        # Before the old one is moved: a full disk must not leave the folder without a teacher.
        shutil.copytree(source, temporary)
        if target.exists():
            digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
            os.replace(target, target.with_name(f"{name}.replaced-{digest[:8]}"))
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"save_teacher: found {error.filename or target} ({error.strerror}), allowed is a "
            f"checkpoint_root that can be written; the finished student is {source}"
        ) from error
    log.info("saved %s", target)
    return target


def _may_replace(known: Path, source: Path, target: Path, metric: str) -> bool:
    """Whether ``source`` is better than ``known``, of which there is a copy then."""
    if weights_digest(known) == weights_digest(source):
        log.info("saved before: %s", known)
        return False
    old, new = recorded(known, metric), recorded(source, metric)
    if old is None or new is None or new <= old:
        words = [metric, *("unknown" if x is None else f"{x:g}" for x in (old, new))]
        command = shlex.join(["cp", str(source), str(target)])
        log.warning(
            "save_teacher: kept %s (%s %s) rather than this run (%s); to replace it: %s",
            known,
            *words,
            command,
        )
        return False
    backup = set_aside(known)
    log.info("%s of before (%s %g, now %g) is kept as %s", known, metric, old, new, backup)
    return True


def set_aside(known: Path) -> Path:
    """Copy a teacher that is about to be replaced to ``<name>.replaced-<digest>``."""
    digest = weights_digest(known)
    backup = known.with_name(f"{known.stem}.replaced-{digest[:8]}{known.suffix}")
    write_atomically(backup, lambda path: shutil.copyfile(known, path))
    return backup


def recorded(path: Path, metric: str) -> float | None:
    """The number under ``metric`` in the header of a safetensors file, ``None`` without one."""
    try:
        with safe_open(path, "pt") as file:
            value = float((file.metadata() or {})[metric])
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    return value if math.isfinite(value) else None
