"""Files in archives of strangers, read where they lie: no path of an archive is ever written to."""

from __future__ import annotations

import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from eakd.errors import UserError, shortened
from eakd.models.weight_files import FOREIGN

MAX_BYTES = 1 << 30  # of one file of weights, unpacked; the largest of the zoo has 0.2 GB

Members = dict[str, Callable[[], IO[bytes]]]  # name → what opens the file


def copy_member(archive: Path, wanted: str, target: Path, label: str) -> str:
    """Copy one file out of ``archive``.

    Args:
        archive: a tar archive, a zip archive or a folder.
        wanted: the file in it, ``resnet56_vanilla/ckpt_epoch_240.pth``, below any outer folders.
        target: where to.
        label: what messages call ``archive``.

    Returns:
        The SHA-256 of its bytes.

    Raises:
        UserError: there is no such regular file in it, or too large a one, or ``archive`` is
            damaged or something else. OSError: ``target`` cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with ExitStack() as stack:
        with _reading(label):
            members = _members(archive, stack, label)
            found = [name for name in members if f"/{name}".endswith(f"/{wanted}")]
            if not found:
                such_as = f", such as {shortened(min(members))}" if members else ""
                raise UserError(
                    f"{label}: found no {wanted} among {len(members)} files{such_as}, allowed is "
                    "an archive or folder of the public zoo that has it"
                )
            source = stack.enter_context(members[min(found, key=len)]())
        file = stack.enter_context(target.open("wb"))
        while True:
            with _reading(label):
                block = source.read(1 << 20)
            if not block:
                return digest.hexdigest()
            size += len(block)
            if size > MAX_BYTES:
                raise UserError(f"{label}: found more than {MAX_BYTES / 1e9:.1f} GB in {wanted}")
            file.write(block)
            digest.update(block)


def check_archive(archive: Path, label: str) -> None:
    """Raise `UserError` unless ``archive`` can hold files for `copy_member`."""
    with _reading(label), ExitStack() as stack:
        _members(archive, stack, label)


def _members(path: Path, stack: ExitStack, label: str) -> Members:
    """The regular files in an archive, which ``stack`` closes; links and devices are left out."""
    if path.is_dir():
        files = (each for each in path.rglob("*") if each.is_file())
        return {each.relative_to(path).as_posix(): partial(each.open, "rb") for each in files}
    if not path.is_file():  # opening a pipe would wait for ever
        raise UserError(f"{label}: found no file or folder, allowed is a tar or zip archive")
    with path.open("rb") as file:
        head = file.read(512)
    # By their first bytes: to zipfile, a tar archive that ends with a zip file is one too.
    if head.startswith(b"PK\x03\x04"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        plain = [each for each in archive.infolist() if not each.is_dir() and _is_plain(each)]
        return {each.filename: partial(archive.open, each) for each in plain}
    try:
        tar = stack.enter_context(tarfile.open(path, "r:"))  # noqa: SIM115, the stack closes it
    except tarfile.ReadError as error:
        raise UserError(f"{label}: found {_kind(head)}") from error
    return {each.name: partial(tar.extractfile, each) for each in tar if each.isreg()}


def _is_plain(member: zipfile.ZipInfo) -> bool:
    # Archives made elsewhere than on Unix have no mode.
    return stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)


def _kind(head: bytes) -> str:
    """What a file that is no archive is, and the way on."""
    allowed = "allowed is a tar or zip archive"
    for magic, what, remedy in FOREIGN:
        if head.startswith(magic):
            return f"{what}, {allowed}: {remedy}"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return f"a web page, of a login or an error perhaps, {allowed}: download the file itself"
    what = "a damaged archive or another file" if head else "an empty file"
    return f"{what}, {allowed}: fetch it again"


@contextmanager
def _reading(label: str) -> Iterator[None]:
    """Tell a damaged archive in one line; zip archives may also be encrypted or of a new kind."""
    kinds = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)
    try:
        yield
    except UserError:
        raise
    except (*kinds, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{label}: found a damaged archive ({reason}): fetch it again") from error
