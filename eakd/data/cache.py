"""Decoded sets on disk, so that only the first start decodes.

An entry is a folder of ``.npy`` files and a ``meta.json``. It appears whole, by a rename, or not
at all; at every start all of it is checked, then the images are memory-mapped. Any number of
processes may build the same entry at once: the first to finish provides it. Where no entry can be
written the set is decoded into memory.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eakd.data.base import ImageData, fingerprint
from eakd.data.source import as_path, printable, read_regular
from eakd.errors import UserError, check_name
from eakd.files import sync_directory

log = logging.getLogger(__name__)

# Raise when decoding changes, so that entries of earlier versions are no longer found.
VERSION = 2
IMAGES, LABELS = ("train_images", "test_images"), ("train_labels", "test_labels")
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
BLOCK = 4 << 20  # bytes under one checksum

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]


class Labels(NamedTuple):
    """What a builder returns besides the images it has written.

    Attributes:
        classes: names, the label is the position.
        train, test: ``(M,)`` int64.
        left_out: what of the source was not read, for the log.
    """

    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray
    left_out: str = ""


Build = Callable[[Allocate], Labels]


def default_cache_dir() -> Path:
    """``$EAKD_CACHE``, else the user's cache folder: the same wherever a run is started."""
    if os.environ.get("EAKD_CACHE"):
        return Path(os.environ["EAKD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eakd"


def cached(name: str, key: str, cache_dir: str | Path | None, build: Build) -> ImageData:
    """The set ``name`` from the cache, or from ``build`` and then from the cache.

    One line of the log says what was read and left out, at every start. A damaged entry and a
    cache that cannot be written are one warning each.

    Args:
        name: of the set, see `eakd.errors.check_name`.
        key: identifies the source and how it is read.
        cache_dir: where entries lie, `default_cache_dir` if ``None``.
        build: calls its argument once for ``"train_images"`` and once for ``"test_images"``, with
            the shape ``(M, H, W, 3)``, and fills the uint8 arrays it gets.

    Raises:
        UserError: the set has room neither in the cache nor in memory, or whatever ``build``
            raises; the cache is then what it was before.
    """
    check_name("name", name)
    directory = default_cache_dir() if cache_dir is None else as_path("cache_dir", cache_dir)
    # Names of files need not be text.
    key = f"{VERSION}\n{name}\n{key}"
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    entry = directory / f"{name}-{digest[:16]}"
    reason: object = "it is damaged again and again"
    for _ in range(3):  # another process may replace the entry at any time
        if os.path.lexists(entry):
            try:
                data, left_out = _load(name, digest, entry)
                return _announced(data, left_out)
            except Exception as error:  # reading damaged files raises almost anything
                log.warning(
                    "the cache entry %s is damaged (%s): decoding again",
                    printable(entry),
                    printable(" ".join(str(error).split())),
                )
        try:
            _discard(entry)
            _build(digest, entry, build)
        except OSError as error:
            reason = error.strerror or error
            break
    advice = "choose another folder with data.cache_dir or EAKD_CACHE"
    log.warning(
        *("cannot keep the decoded %s in %s (%s): every start decodes it; %s", name),
        *(printable(directory), reason, advice),
    )
    try:
        arrays: dict[str, np.ndarray] = {}

        def allocate(array: str, shape: tuple[int, ...]) -> np.ndarray:
            arrays[array] = np.empty(shape, np.uint8)
            return arrays[array]

        labels = _fill(arrays, build, allocate)
    except MemoryError as error:
        raise UserError(
            f"cache_dir: found {printable(directory)} ({reason}), allowed is a folder with room "
            f"for the decoded set, which memory has not: {advice}"
        ) from error
    mark = fingerprint(labels.classes, *(arrays[array] for array in ARRAYS))
    return _announced(ImageData(name, labels.classes, **arrays, fingerprint=mark), labels.left_out)


def _announced(data: ImageData, left_out: str) -> ImageData:
    log.log(
        logging.WARNING if left_out else logging.INFO,
        "%s: %s training and %s test images of %s classes%s",
        data.name,
        *(f"{n:,}" for n in (len(data.train_labels), len(data.test_labels), data.num_classes)),
        left_out and f"; left out: {left_out}",
    )
    return data


def _fill(arrays: dict[str, np.ndarray], build: Build, allocate: Allocate) -> Labels:
    labels = build(allocate)
    arrays["train_labels"] = labels.train.astype(np.int64)
    arrays["test_labels"] = labels.test.astype(np.int64)
    return labels


def _load(name: str, digest: str, entry: Path) -> tuple[ImageData, str]:
    """The set and what was left out; any exception means damage."""
    meta = json.loads(read_regular(entry / "meta.json")[0])
    content = meta["content"]
    if meta["checksum"] != _checksum(content) or content["key"] != digest:
        raise ValueError("meta.json is not what was written")
    for array in ARRAYS:
        if _checksums(entry / f"{array}.npy") != content["checksums"][array]:
            raise ValueError(f"{array}.npy is not what was written")
    # "c": a tensor on it may be written to (torch wants that), the file may not.
    images = {a: np.load(entry / f"{a}.npy", mmap_mode="c", allow_pickle=False) for a in IMAGES}
    labels = {a: np.load(entry / f"{a}.npy", allow_pickle=False) for a in LABELS}
    classes, mark = tuple(content["classes"]), content["fingerprint"]
    data = ImageData(name, classes, fingerprint=mark, **images, **labels)
    return data, content["left_out"]


def _build(digest: str, entry: Path, build: Build) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(entry)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}.", suffix=".tmp"))
    try:
        arrays: dict[str, np.ndarray] = {}

        def allocate(name: str, shape: tuple[int, ...]) -> np.ndarray:
            path = temporary / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            _reserve(path)
            return arrays[name]

        labels = _fill(arrays, build, allocate)
        for name in LABELS:
            np.save(temporary / f"{name}.npy", arrays[name])
        for name in IMAGES:
            arrays[name].flush()
        content = {
            "key": digest,
            "classes": labels.classes,
            "left_out": labels.left_out,
            "fingerprint": fingerprint(labels.classes, *(arrays[name] for name in ARRAYS)),
            "checksums": {name: _checksums(temporary / f"{name}.npy") for name in ARRAYS},
        }
        meta = json.dumps({"checksum": _checksum(content), "content": content})
        (temporary / "meta.json").write_text(meta, encoding="utf-8")
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


def _reserve(path: Path) -> None:
    """Room on the disk: a mapped page without it would end the process with a signal."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise


def _checksums(path: Path) -> list[int]:
    """CRC-32 of each `BLOCK` of a file, in order: 3 GB a second, so all of CIFAR in a tenth."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    with path.open("rb") as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]


def _checksum(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _discard(entry: Path) -> None:
    """Remove an entry at once, by a rename, so that nobody reads half of it."""
    with contextlib.suppress(FileNotFoundError):
        grave = tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}.", suffix=".tmp")
        with contextlib.suppress(FileNotFoundError):
            entry.rename(Path(grave) / "entry")
        shutil.rmtree(grave, ignore_errors=True)


def _remove_leftovers(entry: Path) -> None:
    """What a killed process left behind a day ago or earlier."""
    for path in entry.parent.glob(f".{glob.escape(entry.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path, ignore_errors=True)
