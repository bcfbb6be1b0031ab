"""Fetching published files. Nothing has its name before it is complete and checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from eakd.errors import UserError, check_name
from eakd.files import remove_leftovers, sync_directory


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


class Unreachable(Exception):
    """A file could not be had from where it is published; the message is the reason alone."""


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

    def check(_: Path, digest: str) -> None:
        if digest != archive.sha256:
            raise UserError(
                f"{key}: found a download of {archive.title} with SHA-256 {digest}, "
                f"allowed is the published file; {advice}"
            )

    try:
        retrieve(archive.url, target, archive.title, check)
    except Unreachable as error:
        raise UserError(
            f"{key}: found no {archive.title} in {folder} and could not download it ({error}); "
            f"{advice}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{key}: found {folder} ({error.strerror or error}), allowed is a folder to write "
            f"{archive.title} to, or one that has it"
        ) from error
    return target


def retrieve(
    url: str,
    target: Path,
    title: str,
    check: Callable[[Path, str], None],
    max_bytes: int | None = None,
) -> None:
    """Fetch ``url`` to ``target``, with a progress bar.

    Args:
        title: what it is, for the bar.
        check: called with the complete file, still under another name, and its SHA-256; what it
            raises is raised.
        max_bytes: a larger file is refused.

    Raises:
        Unreachable: ``url`` does not give the file. OSError: ``target`` cannot be written.
            Nothing is left in both cases.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)  # of downloads that were killed
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _copy(url, file, title, max_bytes)
            file.flush()
            os.fsync(file.fileno())
        check(Path(name), digest)
        os.chmod(name, 0o644)
        os.replace(name, target)
        sync_directory(target.parent)
    finally:
        Path(name).unlink(missing_ok=True)


def is_secure(url: str) -> bool:
    """Whether nobody between here and the server can exchange what comes from ``url``."""
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return parts.scheme == "https" or (parts.scheme == "http" and local)


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Lets no server lead from a secure place to one that is not."""

    def redirect_request(self, request, *arguments):
        if is_secure(request.full_url) and not is_secure(arguments[-1]):
            raise URLError(f"redirected to {arguments[-1]}, allowed is https")
        return super().redirect_request(request, *arguments)


def _copy(url: str, file: BinaryIO, title: str, max_bytes: int | None) -> str:
    """Write what ``url`` gives to ``file``; its SHA-256.

    Raises:
        Unreachable: it does not give all. OSError: the disk's own.
    """
    digest, size = hashlib.sha256(), 0
    with _reaching():
        response = urllib.request.build_opener(_SecureRedirects).open(url, timeout=30)
        total = int(response.headers.get("Content-Length") or 0)
    bar = tqdm(
        desc=f"downloading {title}",
        total=total or None,
        unit="B",
        unit_scale=True,
        disable=None,  # no bar where the output is not a terminal
    )
    with response, bar:
        while True:
            with _reaching():
                block = response.read(1 << 20)
            if not block:
                break
            size += len(block)
            if max_bytes is not None and max(size, total) > max_bytes:
                raise Unreachable(f"more than {max_bytes / 1e9:g} GB")
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    if size < total:
        raise Unreachable(f"the connection ended after {size} of {total} bytes")
    return digest.hexdigest()


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:
        raise Unreachable(" ".join(str(error).split())) from error
