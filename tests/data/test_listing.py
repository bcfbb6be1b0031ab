"""Which files of a folder are a set's images, what is left out, and what is no file at all."""

import io
import logging
import os
import shutil
import socket
import stat
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image
from synthetic import (
    class_files,
    encoded,
    picture,
    tiny_files,
    without_privileges,
    write_folder,
    write_zip,
)
from test_files import refused

from eakd.data import cifar100, image_folder, tiny_imagenet
from eakd.errors import UserError

FILES = class_files()
PNG = FILES["train/dog/1.png"]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "set", FILES)


@pytest.fixture
def plain(tmp_path):
    """The set without anything foreign in it."""
    return image_folder(write_folder(tmp_path / "plain", FILES), cache_dir=tmp_path / "other")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


# --- which files ---


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_one_line_counts_what_was_read_and_left_out(tmp_path, cache, plain, said, kind):
    junk = {
        "train/cat/notes.txt": b"x",
        "train/dog/more.TXT": b"x",
        "train/cat/picture": PNG,
        "train/loose.png": PNG,
        "train/@eaDir/0.png": PNG,
        "train/lost+found/x": b"x",
        "train/__MACOSX/._0.png": b"x",
        "test/__pycache__/x.pyc": b"x",
        "test/.hidden/0.png": PNG,
        "test/cat/.0.png": b"x",
        "extra/0.png": PNG,
    }
    write = {"folder": write_folder, "zip": write_zip}[kind]
    source = write(tmp_path / f"set.{kind}", FILES | junk)
    for _ in range(2):  # decoded, and from the cache
        data = image_folder(source, name="pets", cache_dir=cache)
        assert data.fingerprint == plain.fingerprint
    line = said()[-1]
    assert said()[-2:] == [line, line] and "\n" not in line
    assert line == (
        "pets: 6 training and 4 test images of 2 classes; left out: .txt files: 2 "
        "(train/cat/notes.txt), files without a suffix: 1 (train/cat/picture), folders beside "
        "train/ and test/: 1 (extra), hidden or of the system: 6 (test/.hidden), images in no "
        "class folder: 1 (train/loose.png)"
    )


def test_nothing_left_out_is_said_too(root, cache, said):
    image_folder(root, cache_dir=cache)
    assert said() == ["image_folder: 6 training and 4 test images of 2 classes"]


@pytest.mark.parametrize(
    ("suffix", "format"),
    [
        *((".gif", "GIF"), (".jfif", "JPEG"), (".JPEG", "JPEG"), (".jpe", "JPEG")),
        *((".webp", "WEBP"), (".ppm", "PPM"), (".PGM", "PPM"), (".tga", "TGA")),
        (".jp2", "JPEG2000"),
        *((".Tiff", "TIFF"), (".dib", "DIB"), (".qoi", "QOI"), (".apng", "PNG"), (".pcx", "PCX")),
    ],
)  # fmt: skip
def test_suffixes_of_images(tmp_path, cache, suffix, format):
    files = FILES | {f"train/cat/new{suffix}": encoded(picture(7), format)}
    data = image_folder(write_folder(tmp_path / "s", files), cache_dir=cache)
    assert data.train_labels.tolist() == [0] * 4 + [1] * 3


@pytest.mark.parametrize(
    "unlabelled",
    [
        {"test/0.png": PNG, "test/1.png": PNG},
        {"test/images/0.png": PNG},
        {"test/@eaDir/0.png": b"x", "test/0.png": PNG},
        {"test/readme.txt": b"x", "valid/everything/0.png": PNG},
    ],
)
def test_an_unlabelled_test_folder_does_not_hide_a_labelled_one(
    tmp_path, cache, plain, said, unlabelled
):
    files = class_files(test_folder="val") | unlabelled
    for source in (write_folder(tmp_path / "s", files), write_zip(tmp_path / "s.zip", files)):
        data = image_folder(source, cache_dir=cache)
        assert data.classes == plain.classes and len(data.test_labels) == 4
        assert "left out: folders beside train/ and val/: " in said()[-1]
        assert " (test)" in said()[-1]


@pytest.mark.parametrize("place", ["train/cat", "train", "test/dog", "train/cat/deep"])
def test_a_folder_that_cannot_be_listed_is_refused(open_folder, place):
    root = write_folder(open_folder / "set", FILES | {"train/cat/deep/9.png": PNG})
    (root / place).chmod(0)
    with without_privileges(root):
        refused(
            lambda: image_folder(root, cache_dir=open_folder / "cache"),
            root / place,
            "unreadable (Permission denied)",
            cache=open_folder / "cache",
        )


def test_an_unreadable_image_or_root_is_refused(open_folder):
    root = write_folder(open_folder / "set", FILES)
    cache = open_folder / "cache"
    (root / "train/cat/0.png").chmod(0)
    with without_privileges(root):
        refused(lambda: image_folder(root, cache_dir=cache), "cat/0.png", "denied", cache=cache)
    root.chmod(0)
    with without_privileges(root):
        for load in (image_folder, tiny_imagenet, cifar100):
            refused(lambda load=load: load(root, cache_dir=cache), root, "denied", cache=cache)


# --- what is no file ---


def fifo(path, root):
    os.mkfifo(path)


def unix_socket(path, root):
    place = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(place)


def device(path, root):
    path.symlink_to("/dev/zero")


def random_device(path, root):
    path.symlink_to("/dev/random")


def link_to_fifo(path, root):
    os.mkfifo(root.parent / "pipe")
    path.symlink_to(root.parent / "pipe")


FOREIGN = [fifo, unix_socket, device, random_device, link_to_fifo]


@pytest.mark.parametrize("make", FOREIGN)
def test_foreign_things_are_left_out(root, cache, plain, said, make):
    for number, place in enumerate(("train/cat/9.png", "test/dog/x.jpg", "train/cat/no suffix")):
        if make is not link_to_fifo or not number:
            make(root / place, root)
    data = image_folder(root, cache_dir=cache)
    assert data.fingerprint == plain.fingerprint
    assert "neither files nor folders: " in said()[-1]


@pytest.mark.parametrize("make", FOREIGN)
def test_a_class_of_foreign_things_has_no_image(root, cache, make):
    for split in ("train", "test"):
        (root / split / "bird").mkdir()
    make(root / "train/bird/0.png", root)
    refused(
        lambda: image_folder(root, cache_dir=cache),
        *("no image in", "train/bird", "left out: neither files nor folders: 1"),
        cache=cache,
    )


@pytest.mark.parametrize("make", [fifo, unix_socket, device])
@pytest.mark.parametrize(
    ("load", "name"),
    [
        *((image_folder, "set"), (image_folder, "set.zip")),
        *((cifar100, "cifar100.zip"), (cifar100, "cifar-100-python.tar.gz")),
        *((tiny_imagenet, "tiny-imagenet-200.zip"), (tiny_imagenet, "tiny-imagenet-200")),
    ],
)
def test_a_foreign_root_is_refused(tmp_path, cache, load, name, make):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data" / name, tmp_path)
    for root in {
        tmp_path / "data" / name,
        tmp_path / "data" / (name if load is image_folder else ""),
    }:
        options = {} if load is image_folder else {"download": False}
        refused(lambda r=root, o=options: load(r, cache_dir=cache, **o), root, cache=cache)


def test_links_to_files_are_read_and_broken_ones_refused(root, cache, plain):
    (root / "train/cat/0.png").rename(root.parent / "elsewhere.png")
    (root / "train/cat/0.png").symlink_to(root.parent / "elsewhere.png")
    assert image_folder(root, cache_dir=cache).fingerprint == plain.fingerprint
    shutil.rmtree(cache)
    for target in ("nowhere.png", "itself.PNG"):
        link = root / "train/cat/itself.PNG"
        link.symlink_to(target)
        refused(lambda: image_folder(root, cache_dir=cache), link, "leads to no file", cache=cache)
        link.unlink()


@pytest.mark.parametrize(
    ("link", "target"),
    [
        *(("train/cat/a", "."), ("train/cat/a", ".."), ("train/cat/a", "../..")),
        *(("train/cat/a", "../../.."), ("train/cat/a", "/"), ("train/cat/a", "../dog")),
        *(("train/cat/deep/a", "../../dog"), ("train/dog/a", "../cat/deep")),
    ],
)
def test_no_folder_is_read_twice(tmp_path, cache, said, link, target):
    files = FILES | {"train/cat/deep/9.png": PNG}
    expected = image_folder(write_folder(tmp_path / "plain", files), cache_dir=cache)
    root = write_folder(tmp_path / "set", files)
    (root / link).symlink_to(target, target_is_directory=True)
    assert image_folder(root, cache_dir=cache).fingerprint == expected.fingerprint
    assert f"links to folders that are read elsewhere: 1 ({link})" in said()[-1]


def test_many_links_to_each_other_end(root, cache, plain):
    for number in range(12):
        folder = root / f"train/cat/{number}"
        folder.mkdir()
        for other in range(12):
            (folder / f"to{other}").symlink_to(f"../{other}")
    assert image_folder(root, cache_dir=cache).fingerprint == plain.fingerprint


def test_a_root_that_holds_itself_ends(tmp_path, cache):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/again").symlink_to(".")
    refused(lambda: image_folder(tmp_path / "set", cache_dir=cache), "train", cache=cache)


def test_linked_folders_are_read(tmp_path, cache, plain):
    write_folder(tmp_path / "far", FILES)
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    for name in ("cat", "dog"):  # a subset of a larger set
        (root / "train" / name).symlink_to(tmp_path / "far/train" / name)
    (root / "test").symlink_to(tmp_path / "far/test")
    assert image_folder(root, cache_dir=cache).fingerprint == plain.fingerprint
    beside = write_folder(tmp_path / "beside", FILES)
    (beside / "train").rename(beside / "images")
    (beside / "train").symlink_to("images")
    assert image_folder(beside, cache_dir=cache).fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", ["train/cat/9.png", "test/dog/9.webp", "train/dog/deep/9.TIFF"])
def test_a_huge_sparse_file_is_refused(root, cache, name):
    (root / name).parent.mkdir(exist_ok=True)
    with (root / name).open("wb") as file:
        file.truncate(40 << 30)
    refused(
        lambda: image_folder(root, cache_dir=cache), name, str(40 << 30), "may have", cache=cache
    )


def test_huge_files_of_published_sets_are_refused(tmp_path, cache):
    for name in ("train", "test", "meta"):
        path = tmp_path / "cifar-100-python" / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(40 << 30)
    refused(lambda: cifar100(tmp_path, cache_dir=cache), str(40 << 30), cache=cache)
    root = write_folder(tmp_path / "tiny", tiny_files())
    with (root / "tiny-imagenet-200/wnids.txt").open("wb") as file:
        file.truncate(40 << 30)
    refused(lambda: tiny_imagenet(root, cache_dir=cache), "wnids.txt", str(40 << 30), cache=cache)


def test_links_and_repeated_names_in_a_zip(tmp_path, cache, plain, said):
    path = write_zip(tmp_path / "s.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/cat/link.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "0.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("train/cat/1.png", FILES["train/cat/1.png"])
    assert image_folder(path, cache_dir=cache).fingerprint == plain.fingerprint
    assert "neither files nor folders: 1 (train/cat/link.png)" in said()[-1]


def test_frames_after_the_first_are_left_out(tmp_path, cache, said):
    frames = [picture(number) for number in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    root = write_folder(tmp_path / "s", FILES | {"train/cat/3.png": buffer.getvalue()})
    data = image_folder(root, cache_dir=cache)
    assert np.array_equal(data.train_images[3], np.asarray(frames[0]))
    assert said()[-1].endswith("left out: frames after the first: 1 (train/cat/3.png)")


# --- changes and names ---


@pytest.mark.parametrize("change", ["grow", "same size", "vanish", "pipe"])
def test_a_file_that_changes_while_the_set_is_read_is_refused(root, cache, monkeypatch, change):
    """The first image is decoded, then the last one of the training set changes."""
    import eakd.data.source as source

    last, plain_decode = root / "train/dog/2.png", source.decode

    def decode(content, size=None):
        if change == "grow":
            last.write_bytes(last.read_bytes() + b"more")
        elif change == "same size":
            last.write_bytes(last.read_bytes()[::-1])
        elif last.exists():
            last.unlink()
            if change == "pipe":
                os.mkfifo(last)
        return plain_decode(content, size)

    monkeypatch.setattr(source, "decode", decode)
    refused(lambda: image_folder(root, cache_dir=cache), last, "damaged", cache=cache)


def test_a_class_that_vanishes_between_two_starts(root, cache):
    image_folder(root, cache_dir=cache)
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dog")
    assert image_folder(root, cache_dir=cache).classes == ("cat",)
    shutil.rmtree(root)
    with pytest.raises(UserError, match="No such file"):
        image_folder(root, cache_dir=cache)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_names_that_look_the_same_are_refused(tmp_path, cache, kind):
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write = {"folder": write_folder, "zip": write_zip}[kind]
    twins = write(tmp_path / f"twins.{kind}", class_files((one, other)))
    refused(lambda: image_folder(twins, cache_dir=cache), "'caf\\xe9'", "\\u0301", cache=cache)
    files = {name.replace("dog", one if "train" in name else other): c for name, c in FILES.items()}
    across = write(tmp_path / f"across.{kind}", files)
    refused(lambda: image_folder(across, cache_dir=cache), "'caf\\xe9'", "\\u0301", cache=cache)


def test_names_that_differ_in_case_are_two_classes(tmp_path, cache):
    root = write_folder(tmp_path / "letters", class_files(("a", "A")))
    if len(list((root / "train").iterdir())) < 2:
        pytest.skip("this file system knows one case only")
    assert image_folder(root, cache_dir=cache).classes == ("A", "a")


def test_names_that_are_no_text(tmp_path, cache, said):
    root = write_folder(tmp_path / "set", FILES)
    strange = os.fsdecode(b"caf\xe9\n")
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / strange)
    data = image_folder(root, cache_dir=cache)
    assert data.classes == tuple(sorted((strange, "cat")))
    assert image_folder(root, cache_dir=cache).fingerprint == data.fingerprint
    (root / "train" / strange / "0.png").write_bytes(b"x")
    shutil.rmtree(cache)
    refused(lambda: image_folder(root, cache_dir=cache), "caf\\udce9\\n", "0.png", cache=cache)


@pytest.mark.parametrize("value", ["", " ", None, 5, True, "a\0b", "~no such user/x", "x" * 5000])
@pytest.mark.parametrize("load", [image_folder, cifar100, tiny_imagenet])
def test_a_root_that_is_no_path_is_refused(cache, load, value):
    options = {} if load is image_folder else {"download": False}
    with pytest.raises(UserError, match=r"^root: found .*allowed is [^\n]*$"):
        load(value, cache_dir=cache, **options)


def test_pixels_of_a_set_with_every_kind_of_file(tmp_path, cache):
    """Sixteen bits, transparency and orientation arrive in the arrays, at the given size too."""
    deep = np.full((32, 32), 32768, np.uint16)
    clear = np.zeros((32, 32, 4), np.uint8)
    files = FILES | {
        "train/cat/3.png": encoded(Image.fromarray(deep)),
        "train/cat/4.png": encoded(Image.fromarray(clear)),
    }
    root = write_folder(tmp_path / "set", files)
    for size in (None, 16):
        images = image_folder(root, size, cache_dir=cache).train_images
        assert (images[3] == 128).all() and (images[4] == 255).all()
