"""Folders and zip files of images, read in place as one kind of thing.

A zip file is never extracted, so nothing in it can be written anywhere; its members are checked
against their CRC while they are read. Of a folder only regular files are read, and links to them:
a pipe would block, a device never end.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath

from eakd.data.pixels import Decoded, Refused, decode, is_image
from eakd.errors import UserError

# No file of an image set is larger; one that claims to be is damaged or malicious.
MAX_FILE_BYTES = 256 << 20
# What systems and tools leave in folders, besides names with a leading dot; lower case.
JUNK = frozenset(
    (
        *("__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "lost+found"),
        *("$recycle.bin", "system volume information"),
    )
)
MAX_WRAPPERS = 8  # folders around a set; a link to the folder it lies in would never end


def is_visible(name: str) -> bool:
    """Whether one part of a path is neither hidden nor what systems leave behind."""
    return not name.startswith(".") and name.lower() not in JUNK


def printable(text: object) -> str:
    """``text`` in one line, with escapes for what no terminal or log file can show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def as_path(key: str, value: object) -> Path:
    """``value`` as a path, with a leading ``~`` expanded.

    Raises:
        UserError: it is no text, empty, or nothing that a path can be.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UserError(f"{key}: found {value!r}, allowed is the path of a folder or file")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # no such user
        raise UserError(f"{key}: found {text!r} ({error}), allowed is an existing home") from error


def read_regular(path: Path, limit: int | None = None) -> tuple[bytes, os.stat_result]:
    """Content and status of a regular file.

    Raises:
        OSError: it cannot be read, is no regular file or larger than ``limit`` bytes, by
            default `MAX_FILE_BYTES`.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        _check_size(status.st_size, limit)
        content = file.read(status.st_size)
        return content, os.fstat(file.fileno())


def _check_size(size: int, limit: int | None) -> None:
    limit = limit or MAX_FILE_BYTES
    if size > limit:
        raise OSError(f"{size} bytes, more than the {limit} that a file may have")


def signature(path: Path) -> str:
    """Path, size and modification time: equal for a file that has not been touched.

    Raises:
        UserError: it cannot be looked up.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"root: found {printable(path)} unreadable ({error.strerror or error}), allowed is an "
            f"existing file"
        ) from error
    return f"{path.resolve()} {_stamp(status)}"


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


class Source(ABC):
    """Files below a root, under relative names with forward slashes.

    Attributes:
        path: the folder or archive.
        prefix: where in it the root is, ``""`` or ending with a slash.
        left_out: names of what was not read, by kind.
    """

    def __init__(self, path: Path, prefix: str = ""):
        self.path = path
        self.prefix = prefix
        self.left_out: dict[str, set[str]] = {}

    @abstractmethod
    def children(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Sorted names of the visible regular files and of the folders directly in ``folder``.

        Raises:
            UserError: it cannot be listed.
        """

    @abstractmethod
    def below(self, folder: str) -> list[str]:
        """Sorted relative names of the regular files in ``folder``, at any depth.

        A directory that links lead to a second time is not read again. What is left out is noted.

        Raises:
            UserError: a folder cannot be listed, or an image is a broken link.
        """

    @abstractmethod
    def _read(self, name: str, limit: int | None) -> bytes: ...

    @abstractmethod
    def signature(self, arrange: Callable[[], object]) -> str:
        """Changes when a file of the set changes; does not read images.

        Args:
            arrange: lists the set, for a source that knows its files only then.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the archive."""

    def enter_single_folder(self, landmarks: Iterable[str]) -> None:
        """Move the root down while there is one folder only and none of ``landmarks``."""
        for _ in range(MAX_WRAPPERS):
            files, folders = self.children()
            if files or len(folders) != 1 or folders[0] in landmarks:
                return
            self.prefix += f"{folders[0]}/"

    def leave_out(self, kind: str, name: str) -> None:
        """Note that ``name`` is not read; ``kind`` says why."""
        self.left_out.setdefault(kind, set()).add(name)

    def summary(self) -> str:
        """What was left out: how many of each kind, and one of them; empty if nothing was."""
        kinds = sorted(self.left_out.items())
        return ", ".join(f"{kind}: {len(n):,} ({printable(min(n))})" for kind, n in kinds)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Content of a file of at most ``limit`` bytes, by default `MAX_FILE_BYTES`.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self._read(name, limit)
        except (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise self.damaged(name, error) from error

    def picture(self, name: str, size: tuple[int, int] | None = None) -> Decoded:
        """What an image file shows.

        Args:
            size: width and height that it must have; see `decode`.

        Raises:
            UserError: it cannot be read.
        """
        content = self.read(name)
        try:
            return decode(content, size)
        except Refused as error:
            raise UserError(
                f"root: found {self.describe(name)} {error.found}, allowed is {error.allowed}"
            ) from error
        except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
            raise self.damaged(name, error) from error

    def damaged(self, name: str, reason: object) -> UserError:
        """The error to raise for a file that is not what it should be."""
        if isinstance(reason, OSError):
            reason = reason.strerror or reason
        reason = " ".join(str(reason).split()) or type(reason).__name__
        return UserError(
            f"root: found {self.describe(name)} damaged ({printable(reason)}), allowed is a "
            f"complete copy: fetch the set again"
        )

    def describe(self, name: str) -> str:
        """How messages call a file."""
        return printable(self.path / (self.prefix + name))


class Folder(Source):
    """A folder on disk.

    Attributes:
        stamps: size and time of each file that was listed or read.
    """

    def __init__(self, path: Path, prefix: str = ""):
        super().__init__(path, prefix)
        self.stamps: dict[str, str] = {}

    @contextmanager
    def _listing(self, folder: str) -> Iterator[None]:
        """Let what the system refuses name ``folder``."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"root: found {self.describe(folder)} unreadable ({error.strerror or error}), "
                f"allowed is a folder that can be listed: change its permissions or remove it"
            ) from error

    def _entries(self, folder: str) -> Iterator[tuple[os.DirEntry, os.stat_result | None]]:
        """What is in a folder, links followed; ``None`` for one that leads nowhere."""
        with self._listing(folder), os.scandir(self.path / (self.prefix + folder)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            try:
                yield entry, entry.stat()
            except OSError:
                yield entry, None

    def children(self, folder: str = "") -> tuple[list[str], list[str]]:
        files, folders = [], []
        for entry, status in self._entries(folder):
            if status and is_visible(entry.name):
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                elif stat.S_ISREG(status.st_mode):
                    files.append(entry.name)
        return files, folders

    def below(self, folder: str) -> list[str]:
        files = []
        with self._listing(folder):
            top = self.path / (self.prefix + folder)
            # A link to a folder around this one would lead here again.
            around = {*top.absolute().parents, *top.resolve().parents}
            seen = {_identity(parent.stat()) for parent in around}
            # Real folders first: each keeps its place whatever links to it.
            real, linked = deque([(folder, top.stat())]), deque()
        while real or linked:
            place, status = (real or linked).popleft()
            if _identity(status) in seen:
                self.leave_out("links to folders that are read elsewhere", place)
                continue
            seen.add(_identity(status))
            for entry, status in self._entries(place):
                name = f"{place}/{entry.name}"
                if not is_visible(entry.name):
                    self.leave_out("hidden or of the system", name)
                elif status is None:
                    if is_image(name):
                        raise self.damaged(name, "it leads to no file")
                    self.leave_out("broken links", name)
                elif stat.S_ISDIR(status.st_mode):
                    (linked if entry.is_symlink() else real).append((name, status))
                elif stat.S_ISREG(status.st_mode):
                    self.stamps[name] = _stamp(status)
                    files.append(name)
                else:
                    self.leave_out("neither files nor folders", name)
        return sorted(files)

    def _read(self, name: str, limit: int | None) -> bytes:
        content, status = read_regular(self.path / (self.prefix + name), limit)
        stamp = self.stamps.setdefault(name, _stamp(status))
        if stamp != _stamp(status) or len(content) != status.st_size:
            raise OSError("it changed while the set was read")
        return content

    def signature(self, arrange: Callable[[], object]) -> str:
        arrange()
        digest = hashlib.sha256(os.fsencode(self.prefix))
        for name, stamp in sorted(self.stamps.items()):
            digest.update(os.fsencode(f"{name} {stamp}\n"))
        return f"{self.path.resolve()} {digest.hexdigest()}"

    def close(self) -> None:
        pass


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


class Zip(Source):
    """A zip file."""

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        """Opened when needed: reading the table of 60,000 members takes half a second."""
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"root: found {printable(self.path)} damaged ({error}), allowed is a complete zip "
                f"file: fetch it again"
            ) from error
        for name in archive.namelist():
            if name.startswith(("/", "\\")) or ".." in PurePosixPath(name).parts:
                archive.close()
                raise UserError(
                    f"root: found {name!r} in {printable(self.path)}, allowed are names inside "
                    f"the archive: fetch the set from a source you trust"
                )
        return archive

    def _inside(self, folder: str) -> Iterator[str]:
        """Names of members in ``folder``, relative to it; those of folders end with a slash."""
        start = self.prefix + (f"{folder}/" if folder else "")
        for name in self._archive.NameToInfo:  # once each, though a zip may have a name twice
            if name.startswith(start) and name != start:
                yield name.removeprefix(start)

    def children(self, folder: str = "") -> tuple[list[str], list[str]]:
        files, folders = set(), set()
        for name in self._inside(folder):
            first, slash, _ = name.partition("/")
            if is_visible(first):
                (folders if slash else files).add(first)
        return sorted(files), sorted(folders)

    def below(self, folder: str) -> list[str]:
        files = []
        for inside in self._inside(folder):
            name, parts = f"{folder}/{inside}", inside.rstrip("/").split("/")
            hidden = next((i for i, part in enumerate(parts, 1) if not is_visible(part)), None)
            if hidden:
                self.leave_out("hidden or of the system", "/".join((folder, *parts[:hidden])))
            elif not inside.endswith("/"):
                info = self._archive.getinfo(self.prefix + name)
                kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
                if kind in (0, stat.S_IFREG):
                    files.append(name)
                else:  # a link's content is the name of a file
                    self.leave_out("neither files nor folders", name)
        return sorted(files)

    def _read(self, name: str, limit: int | None) -> bytes:
        info = self._archive.getinfo(self.prefix + name)
        _check_size(info.file_size, limit)
        return self._archive.read(info)

    def signature(self, arrange: Callable[[], object]) -> str:
        return signature(self.path)

    def close(self) -> None:
        if "_archive" in self.__dict__:
            self._archive.close()

    def describe(self, name: str) -> str:
        return printable(f"{self.path}:{self.prefix}{name}")


def open_source(path: Path) -> Source:
    """A folder or a zip file.

    Raises:
        UserError: it is neither, or missing.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(
            f"root: found {printable(path)} ({error.strerror or error}), allowed is an existing "
            f"folder or zip file"
        ) from error
    if stat.S_ISDIR(mode):
        return Folder(path)
    if stat.S_ISREG(mode) and (path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)):
        return Zip(path)
    raise UserError(f"root: found {printable(path)}, allowed is a folder or a zip file")
