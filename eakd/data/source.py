"""Folders and zip files of images, read in place as one kind of thing.

A zip file is never extracted, so nothing in it can be written anywhere; its members are checked
against their CRC while they are read.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from eakd.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
)
# No file of an image set is larger; a member that claims to be is damaged or malicious.
MAX_FILE_BYTES = 256 << 20


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_visible(name: str) -> bool:
    """Not what macOS and file managers leave behind."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def signature(path: Path) -> str:
    """Path, size and modification time: equal for a file that has not been touched."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


class Source(ABC):
    """Files below a root, under relative names with forward slashes.

    Attributes:
        path: the folder or archive.
        prefix: where in it the root is, ``""`` or ending with a slash.
    """

    def __init__(self, path: Path, prefix: str = ""):
        self.path = path
        self.prefix = prefix

    @abstractmethod
    def _listing(self) -> tuple[list[str], list[str]]:
        """Full names of all files and folders."""

    @abstractmethod
    def _read(self, name: str) -> bytes: ...

    @abstractmethod
    def signature(self) -> str:
        """Changes when a file changes; does not read them."""

    @abstractmethod
    def close(self) -> None:
        """Release the archive."""

    def scan(self) -> tuple[list[str], list[str]]:
        """Sorted relative names of the visible files and of the folders."""
        files, folders = (
            sorted(name.removeprefix(self.prefix) for name in names if self._is_mine(name))
            for names in self._listing()
        )
        return files, folders

    def _is_mine(self, name: str) -> bool:
        return name.startswith(self.prefix) and name != self.prefix and _is_visible(name)

    def enter_single_folder(self, landmarks: Iterable[str]) -> None:
        """Move the root down while there is one folder only and none of ``landmarks``."""
        while True:
            files, folders = self.scan()
            top = {name.split("/")[0] for name in (*files, *folders)}
            if top & set(landmarks) or len(top) != 1 or top & set(files):
                return
            self.prefix += f"{top.pop()}/"

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self._read(self.prefix + name)
        except (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self.damaged(name, error) from error

    def damaged(self, name: str, reason: object) -> UserError:
        """The error to raise for a file that is not what it should be."""
        reason = " ".join(str(reason).split()) or type(reason).__name__
        return UserError(
            f"root: found {self.describe(name)} damaged ({reason}), allowed is a complete copy: "
            f"fetch the set again"
        )

    def describe(self, name: str) -> str:
        """How messages call a file."""
        return str(self.path / (self.prefix + name))


class Folder(Source):
    """A folder on disk."""

    def _listing(self) -> tuple[list[str], list[str]]:
        files, folders = [], []
        for parent, names, leaves in os.walk(self.path, followlinks=True):
            names[:] = [name for name in names if _is_visible(name)]
            place = Path(parent).relative_to(self.path)
            folders += [(place / name).as_posix() for name in names]
            files += [(place / leaf).as_posix() for leaf in leaves]
        return files, folders

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def signature(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(self._listing()[0]):
            try:
                status = (self.path / name).stat()
            except OSError as error:  # a dangling link
                raise self.damaged(name, error.strerror or error) from error
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return f"{self.path.resolve()} {digest.hexdigest()}"

    def close(self) -> None:
        pass


class Zip(Source):
    """A zip file."""

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        """Opened when needed: reading the table of 60,000 members takes half a second."""
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"root: found {self.path} damaged ({error}), allowed is a complete zip file: "
                f"fetch it again"
            ) from error
        for name in archive.namelist():
            if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts:
                archive.close()
                raise UserError(
                    f"root: found {name!r} in {self.path}, allowed are names inside the archive: "
                    f"fetch the set from a source you trust"
                )
        return archive

    def _listing(self) -> tuple[list[str], list[str]]:
        files, folders = [], set()
        for name in self._archive.namelist():
            if not name.endswith("/"):
                files.append(name)
            folders.update(str(parent) for parent in PurePosixPath(f"{name}x").parents)
        return files, sorted(folders - {"."})

    def _read(self, name: str) -> bytes:
        info = self._archive.getinfo(name)
        if info.file_size > MAX_FILE_BYTES:
            raise OSError(f"{info.file_size} bytes when unpacked")
        return self._archive.read(info)

    def signature(self) -> str:
        return signature(self.path)

    def close(self) -> None:
        if "_archive" in self.__dict__:
            self._archive.close()

    def describe(self, name: str) -> str:
        return f"{self.path}:{self.prefix}{name}"


def open_source(path: Path) -> Source:
    """A folder or a zip file.

    Raises:
        UserError: it is neither, or missing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"root: found {path} ({reason}), allowed is an existing folder or zip file"
        ) from error
    if stat.S_ISDIR(mode):
        return Folder(path)
    if zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
        return Zip(path)
    raise UserError(f"root: found the file {path}, allowed is a folder or a zip file")


def decode(content: bytes):
    """A Pillow RGB image from the bytes of any supported format; greyscale becomes RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
