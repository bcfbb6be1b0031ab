"""Finding a trained teacher. Imports no torch, so that plans are quick."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import yaml

import eakd
from eakd.download import Archive, download
from eakd.errors import UserError, check_text
from eakd.places import command_words


def file_version(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; nothing of a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def weights_digest(path: Path) -> str:
    """SHA-256, in hex, of the weights in a file, computed once per process and version of it.

    Of a safetensors file it is taken over names, types, shapes and values, because the order of the
    header is another one each time that the same weights are written; of any other file, over its
    bytes.
    """
    return _weights_digest(path, *file_version(path))


@lru_cache(maxsize=16)  # a file may have hundreds of MB, and several readers
def _weights_digest(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        header = _safetensors_header(file) if path.suffix == ".safetensors" else None
        if header is None:
            file.seek(0)
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        start = file.tell()
        for name in sorted(header):
            entry = header[name]
            first, last = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(start + first)
            digest.update(file.read(last - first))
    return digest.hexdigest()


def _safetensors_header(file: BinaryIO) -> dict[str, Any] | None:
    """The entries of the tensors, and the file behind them; ``None`` of a damaged file."""
    try:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        for entry in header.values():
            first, last = entry["data_offsets"]
            if not 0 <= first <= last or not {"dtype", "shape"} <= entry.keys():
                return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError):
        return None
    return header


def manifest_entry(manifest: Path, data: str, name: str) -> dict[str, Any]:
    """What ``checkpoints/manifest.yaml`` says of a teacher: url, sha256, top1; empty if nothing."""
    if not manifest.exists():
        return {}
    entries = yaml.safe_load(manifest.read_text(encoding="utf-8")) or {}
    return (entries.get(data) or {}).get(name) or {}


def teacher_files(root: Path, data: str, name: str) -> list[Path]:
    """Where ``teacher.checkpoint=auto`` looks, the first place first."""
    return [root / data / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]


def shipped_teacher(config: Any) -> Path | None:
    """The trained teacher of a run that the package brings with it, or ``None``.

    ``plan.shipped`` in a data set's file says which there are. One that was trained here, in
    ``checkpoint_root``, comes before it.
    """
    plan, name = config.data.get("plan") or {}, config.teacher.name
    place = (plan.get("shipped") or {}).get(name)
    if place is None or config.teacher.checkpoint != "auto":
        return None
    return Path(eakd.__file__).parent / place


def find_checkpoint(
    checkpoint: str,
    data: str,
    name: str,
    root: Path,
    entry: dict[str, Any],
    *,
    command: Callable[[], str] | None = None,
    key: str = "teacher.checkpoint",
) -> Path:
    """The file behind ``teacher.checkpoint``.

    Args:
        checkpoint: a path, or ``"auto"``: ``root/<data>/<name>.safetensors`` or ``.pth``, then a
            download if ``entry`` has a URL and a SHA-256.
        command: says what trains the network, see `eakd.training.hints.teacher_command`, which
            takes a second; by default, the command for a data set and a network that are called as
            their config files are.
        key: of ``checkpoint``, for messages.

    Raises:
        UserError: no file; the message says which command trains the teacher.
    """
    check_text(key, checkpoint)
    if checkpoint != "auto":
        path = Path(checkpoint)
        if not os.path.isfile(path):  # False, too, for what cannot be a path
            raise UserError(f"{key}: found no file {checkpoint!r}, allowed is auto or a file")
        return path
    places = teacher_files(root, data, name)
    for path in places:
        if path.is_file():
            return path
    url, digest = entry.get("url"), entry.get("sha256")
    if url and digest:
        archive = Archive(f"{name} for {data}", url, digest)
        return download(archive, root / data, f"{name}.pth", key=key)
    published = ""
    if entry.get("archive"):
        words = ["mode=fetch", f"data={data}", f"teachers=[{name}]"]
        published = f"fetch it with: {shlex.join([*command_words('teachers'), *words])}; or "
    words = [f"data={data}", f"student={name}", "distiller=none", "save_teacher=true"]
    default = shlex.join([*command_words("train"), *words])
    # The command ends the line, so that it is easy to copy.
    raise UserError(
        f"{key}: found no trained {name} for {data} ({places[0]}); {published}train it with: "
        f"{command() if command else default}"
    )
