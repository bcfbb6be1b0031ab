"""Archives of strangers: one regular file is read, and nothing is written where they say."""

import hashlib
import stat
import tarfile
import zipfile

import pytest
from safetensors.numpy import save_file

import eakd.teachers.archive as archives
from eakd.errors import UserError
from eakd.teachers.archive import check_archive, copy_member

from .conftest import write_tar, write_zip

CONTENT = bytes(range(256)) * 9999
WANTED = "net_vanilla/ckpt.pth"


@pytest.mark.parametrize("write", [write_tar, write_zip])
@pytest.mark.parametrize("prefix", ["", "./", "cifar_teachers/", "a/b/", "../../", "/"])
def test_the_file_is_found_below_any_folder(write, prefix, tmp_path):
    files = {f"{prefix}my_{WANTED}": b"another", f"{prefix}{WANTED}": CONTENT}
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    archive = write(inside / "archive", files)
    digest = copy_member(archive, WANTED, inside / "out", "archive")
    assert (inside / "out").read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {archive, inside / "out"}


def test_a_folder(tmp_path):
    (tmp_path / "zoo" / "net_vanilla").mkdir(parents=True)
    (tmp_path / "zoo" / WANTED).write_bytes(CONTENT)
    for folder in (tmp_path, tmp_path / "zoo"):
        copy_member(folder, WANTED, tmp_path / "out", "folder")
        assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_not_read(kind, tmp_path):
    archive = write_tar(tmp_path / "archive", {"other": b""}, {WANTED: kind})
    with pytest.raises(UserError, match=f"found no {WANTED} among 1 files, such as 'other'"):
        copy_member(archive, WANTED, tmp_path / "out", "archive")
    assert not (tmp_path / "out").exists()


def test_links_in_zip_archives_are_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        link = zipfile.ZipInfo(WANTED)
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="among 0 files"):
        copy_member(tmp_path / "archive", WANTED, tmp_path / "out", "archive")


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_too_large(write, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", len(CONTENT) - 1)
    archive = write(tmp_path / "archive", {WANTED: CONTENT})
    with pytest.raises(UserError, match="more than"):
        copy_member(archive, WANTED, tmp_path / "out", "archive")


def test_a_tar_archive_that_ends_with_a_zip_file_is_a_tar_archive(tmp_path):
    torch_file = write_zip(tmp_path / "ckpt.pth", {"data.pkl": b"weights"}).read_bytes()
    archive = write_tar(tmp_path / "archive", {WANTED: CONTENT, "last/ckpt.pth": torch_file})
    assert zipfile.is_zipfile(archive)
    copy_member(archive, WANTED, tmp_path / "out", "archive")
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"\x1f\x8b\x08" + bytes(600), "packed by gzip"),
        (b"Not Found", "another file"),
        (CONTENT, "another file"),
        (b"PK\x03\x04" + CONTENT, "damaged archive"),
    ],
    ids=["empty", "page", "lfs", "gzip", "text", "noise", "zip"],
)
def test_what_is_no_archive_is_named(content, expected, tmp_path):
    (tmp_path / "archive").write_bytes(content)
    for use in (
        lambda path: check_archive(path, "here"),
        lambda path: copy_member(path, WANTED, tmp_path / "out", "here"),
    ):
        with pytest.raises(UserError, match=f"^here: found .*{expected}") as error:
            use(tmp_path / "archive")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_every_truncation_is_noticed(write, tmp_path):
    whole = write(tmp_path / "whole", {WANTED: CONTENT}).read_bytes()
    # A tar archive may lack its last blocks, which hold nothing.
    end = whole.rindex(CONTENT[-64:]) + 64 if write is write_tar else len(whole)
    for length in (100, 511, 512, 600, end // 2, end - 1):
        (tmp_path / "archive").write_bytes(whole[:length])
        with pytest.raises(UserError, match="found"):
            copy_member(tmp_path / "archive", WANTED, tmp_path / "out", "archive")


def test_other_files_are_no_archives(tmp_path):
    import numpy as np

    save_file({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="another file"):
        check_archive(tmp_path / "a.safetensors", "a")
    with pytest.raises(UserError, match="found no file or folder"):
        check_archive(tmp_path / "absent", "absent")
