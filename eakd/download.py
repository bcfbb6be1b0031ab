"""Fetching published archives. No file is used before its SHA-256 has been checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from eakd.errors import UserError, check_name
from eakd.files import sync_directory


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        title: what it is, for messages.
        url: where its authors publish it.
        sha256: of the file, in hex.
    """

    title: str
    url: str
    sha256: str

    @property
    def filename(self) -> str:
        return self.url.rpartition("/")[2]


def download(
    archive: Archive, folder: Path, filename: str | None = None, key: str = "root"
) -> Path:
    """Fetch ``archive`` into ``folder``, with a progress bar.

    Args:
        archive: what to fetch.
        folder: made if needed.
        filename: its name there, by default the published one.
        key: the config key that asked for it, for messages.

    Returns:
        The file, complete and checked.

    Raises:
        UserError: it cannot be fetched or is not what was published; nothing is left then.
    """
    filename = filename or archive.filename
    check_name("the name of the download", filename)
    target = folder / filename
    advice = f"fetch {archive.url} (SHA-256 {archive.sha256}) elsewhere and put it at {target}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{target.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(
            f"{key}: found {folder} ({error.strerror or error}), allowed is a folder to write "
            f"{archive.title} to, or one that has it"
        ) from error
    try:
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as file:
            try:
                _copy(archive, file, digest)
            except (OSError, HTTPException) as error:
                raise UserError(
                    f"{key}: found no {archive.title} in {folder} and could not download it "
                    f"({' '.join(str(error).split())}); {advice}"
                ) from error
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != archive.sha256:
            raise UserError(
                f"{key}: found a download of {archive.title} with SHA-256 {digest.hexdigest()}, "
                f"allowed is the published file; {advice}"
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        sync_directory(folder)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _copy(archive: Archive, file, digest) -> None:
    with urllib.request.urlopen(archive.url, timeout=30) as response:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(
            desc=f"downloading {archive.title}",
            total=total or None,
            unit="B",
            unit_scale=True,
            disable=None,  # no bar where the output is not a terminal
        ) as bar:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        if file.tell() < total:
            raise OSError(f"the connection ended after {file.tell()} of {total} bytes")
