"""Decoded sets on disk, so that only the first start decodes.

An entry is a folder of ``.npy`` files and a ``meta.json``. It appears whole, by a rename, or not
at all; the images are memory-mapped when it is read. Any number of processes may build the same
entry at once: the first to finish provides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eakd.data.base import ImageData, fingerprint
from eakd.errors import UserError
from eakd.files import sync_directory

log = logging.getLogger(__name__)

# Raise when decoding changes, so that entries of earlier versions are no longer found.
VERSION = 1
IMAGES, LABELS = ("train_images", "test_images"), ("train_labels", "test_labels")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]


class Labels(NamedTuple):
    """What a builder returns besides the images it has written.

    Attributes:
        classes: names, the label is the position.
        train, test: ``(M,)`` int64.
    """

    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray


Build = Callable[[Allocate], Labels]


def default_cache_dir() -> Path:
    """``$EAKD_CACHE``, else the user's cache folder: the same wherever a run is started."""
    if os.environ.get("EAKD_CACHE"):
        return Path(os.environ["EAKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eakd"


def cached(name: str, key: str, cache_dir: str | Path | None, build: Build) -> ImageData:
    """The set ``name`` from the cache, or from ``build`` and then from the cache.

    Args:
        name: of the set.
        key: identifies the source and how it is read.
        cache_dir: where entries lie, `default_cache_dir` if ``None``.
        build: calls its argument once for ``"train_images"`` and once for ``"test_images"``, with
            the shape ``(M, H, W, 3)``, and fills the uint8 arrays it gets.

    Raises:
        UserError: the cache cannot be written, or whatever ``build`` raises; the cache is then
            what it was before.
    """
    directory = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    digest = hashlib.sha256(f"{VERSION}\n{name}\n{key}".encode()).hexdigest()
    entry = directory / f"{name}-{digest[:16]}"
    for _ in range(3):  # another process may replace the entry at any time
        if entry.exists():
            try:
                return _load(name, entry)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = " ".join(str(error).split())
                log.warning("the cache entry %s is damaged (%s): building it anew", entry, reason)
        try:
            _discard(entry)
            _build(entry, build)
        except OSError as error:
            raise UserError(
                f"cache_dir: found {directory} ({error.strerror or error}), allowed is a folder "
                f"with room for the decoded set; choose it with cache_dir or EAKD_CACHE"
            ) from error
    return _load(name, entry)


def _load(name: str, entry: Path) -> ImageData:
    meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    for array in ARRAYS:
        if _sample(entry / f"{array}.npy") != meta["checks"][array]:
            raise ValueError(f"{array}.npy is not what was written")
    # "c": a tensor on it may be written to (torch wants that), the file may not.
    images = {a: np.load(entry / f"{a}.npy", mmap_mode="c", allow_pickle=False) for a in IMAGES}
    labels = {a: np.load(entry / f"{a}.npy", allow_pickle=False) for a in LABELS}
    return ImageData(
        name, tuple(meta["classes"]), fingerprint=meta["fingerprint"], **images, **labels
    )


def _build(entry: Path, build: Build) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}.", suffix=".tmp"))
    try:
        arrays: dict[str, np.ndarray] = {}

        def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
            arrays[name] = np.lib.format.open_memmap(
                temporary / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape
            )
            return arrays[name]

        labels = build(allocate)
        for name, values in zip(LABELS, labels[1:], strict=True):
            arrays[name] = values.astype(np.int64)
            np.save(temporary / f"{name}.npy", arrays[name])
        for name in IMAGES:
            arrays[name].flush()
        meta = {
            "classes": labels.classes,
            "fingerprint": fingerprint(labels.classes, *(arrays[name] for name in ARRAYS)),
            "checks": {name: _sample(temporary / f"{name}.npy") for name in ARRAYS},
        }
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        sync_directory(temporary)
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock colleagues out of a shared cache
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.exists():  # not merely the second to finish
                raise
        sync_directory(entry.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sample(path: Path) -> str:
    """Digest of the size and of 64 evenly spaced blocks: finds what copying and crashes do to a
    file, in a millisecond."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for block in range(64):
            file.seek(max(size - 4096, 0) * block // 63)
            digest.update(file.read(4096))
    return digest.hexdigest()


def _discard(entry: Path) -> None:
    """Remove an entry at once, by a rename, so that nobody reads half of it."""
    with contextlib.suppress(FileNotFoundError):
        grave = tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}.", suffix=".tmp")
        with contextlib.suppress(FileNotFoundError):
            entry.rename(Path(grave) / "entry")
        shutil.rmtree(grave, ignore_errors=True)


def _remove_leftovers(entry: Path) -> None:
    """What a killed process left behind a day ago or earlier."""
    for path in entry.parent.glob(f".{entry.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)
