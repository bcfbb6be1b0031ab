"""Sets of image files: where they may lie, in which layouts, and everything that can be wrong."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from synthetic import class_files, encoded, picture, tiny_files, write_folder, write_zip

from eakd.data import image_folder, tiny_imagenet
from eakd.errors import UserError


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def refused(load, *parts, cache):
    """The one line of a refusal; it names each of ``parts``, and the cache stays empty."""
    with pytest.raises(UserError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("root: found ") and "allowed" in message
    for part in parts:
        assert str(part) in message
    assert not cache.exists() or not list(cache.iterdir())


# --- class folders ---


def test_pixels_labels_and_order(tmp_path, cache):
    files = class_files(("dog", "cat"))
    root = write_folder(tmp_path / "set", files)
    data = image_folder(root, name="pets", cache_dir=cache)
    assert data.name == "pets" and data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.shape == (6, 32, 32, 3)
    expected = np.asarray(Image.open(root / "train/dog/1.png"))
    assert np.array_equal(data.train_images[4], expected)


@pytest.mark.parametrize("top", ["", "set/", "outer/inner/"])
@pytest.mark.parametrize("test_folder", ["test", "val", "valid", "validation"])
def test_layouts_in_folder_and_zip_are_the_same_set(tmp_path, cache, top, test_folder):
    files = {top + name: c for name, c in class_files(test_folder=test_folder).items()}
    junk = {f"{top}__MACOSX/train/._a.png": b"x", f"{top}.DS_Store": b"x"}
    junk |= {f"{top}train/cat/notes.txt": b"x", f"{top}README.md": b"x"} if top != "set/" else {}
    loaded = [
        image_folder(write_folder(tmp_path / "plain", class_files()), cache_dir=cache),
        image_folder(write_folder(tmp_path / "f", {**files, **junk}), cache_dir=cache),
        image_folder(write_zip(tmp_path / "z.zip", {**files, **junk}), cache_dir=cache),
    ]
    assert len({data.fingerprint for data in loaded}) == 1
    assert len({data.train_images.tobytes() for data in loaded}) == 1


def test_formats_and_modes(tmp_path, cache):
    files = class_files()
    grey = picture(1, mode="L")
    files["train/cat/3.PNG"] = encoded(grey)
    files["train/cat/4.bmp"] = encoded(picture(2), "BMP")
    palette = picture(3).convert("P")
    files["train/cat/5.png"] = encoded(palette)
    files["train/cat/deep/6.png"] = encoded(picture(4).convert("RGBA"))
    data = image_folder(write_zip(tmp_path / "z.zip", files), cache_dir=cache)
    assert np.array_equal(data.train_images[3], np.stack([np.asarray(grey)] * 3, axis=-1))
    assert np.array_equal(data.train_images[4], np.asarray(picture(2)))
    assert np.array_equal(data.train_images[5], np.asarray(palette.convert("RGB")))
    assert np.array_equal(data.train_images[6], np.asarray(picture(4)))


def test_resize_takes_the_centre_square(tmp_path, cache):
    files = class_files(size=(40, 20)) | {"train/cat/9.png": encoded(picture(0, (16, 48)))}
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, :10], halves[:, 30:] = 255, 255  # all that is outside of the centre square
    files["train/cat/0.png"] = encoded(Image.fromarray(halves))
    root = write_folder(tmp_path / "set", files)
    data = image_folder(root, image_size=20, cache_dir=cache)
    assert data.train_images.shape == (7, 20, 20, 3)
    assert not data.train_images[0].any()
    small = image_folder(root, image_size=8, cache_dir=cache)
    assert small.train_images.shape == (7, 8, 8, 3)
    assert small.fingerprint != data.fingerprint


def test_images_of_one_oblong_size_need_no_resizing(tmp_path, cache):
    data = image_folder(write_folder(tmp_path / "s", class_files(size=(40, 20))), cache_dir=cache)
    assert data.train_images.shape[1:] == (20, 40, 3)


def broken(files, name, content=None):
    """The files with one changed, or without it."""
    return {**files, name: content} if content is not None else {
        other: c for other, c in files.items() if not other.startswith(name)
    }  # fmt: skip


FILES = class_files()
PNG = FILES["train/dog/1.png"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, ["train"]),
        (broken(FILES, "train/"), ["without class folders in train/"]),
        (broken(FILES, "test/"), ["without class folders in test/"]),
        ({"train/0.png": PNG, "test/0.png": PNG}, ["without class folders in train/"]),
        (broken(FILES, "test/dog/"), ["'dog'", "missing in test/"]),
        (broken(FILES, "train/dog/"), ["'dog'", "missing in train/"]),
        (broken(broken(FILES, "train/dog/"), "train/dog/a.txt", b"x"), ["no image", "train/dog"]),
        (broken(FILES, "train/dog/1.png", PNG[:200]), ["train/dog/1.png", "damaged"]),
        (broken(FILES, "train/dog/1.png", PNG[:-60]), ["train/dog/1.png", "damaged"]),
        (broken(FILES, "train/dog/1.png", b""), ["train/dog/1.png", "damaged"]),
        (broken(FILES, "train/dog/1.png", b"no image"), ["train/dog/1.png", "damaged"]),
        (broken(FILES, "train/cat/0.png", b"no image"), ["train/cat/0.png", "damaged"]),
        (
            broken(FILES, "test/dog/1.png", encoded(picture(0, (20, 30)))),
            ["test/dog/1.png", "20x30", "32x32"],
        ),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(tmp_path, cache, kind, files, parts):
    root = tmp_path / ("set.zip" if kind == "zip" else "set")
    if kind == "folder":
        root.mkdir()
    (write_zip if kind == "zip" else write_folder)(root, files)
    refused(lambda: image_folder(root, cache_dir=cache), root, *parts, cache=cache)


def test_empty_class_folder_is_refused(tmp_path, cache):
    root = write_folder(tmp_path / "set", FILES)
    for split in ("train", "test"):
        (root / split / "bird").mkdir()
    refused(lambda: image_folder(root, cache_dir=cache), "train/bird", cache=cache)


def test_missing_root_is_refused(tmp_path, cache):
    for name in ("nothing", "nothing.zip"):
        root = tmp_path / name
        refused(lambda root=root: image_folder(root, cache_dir=cache), root, cache=cache)
    root.write_text("not a zip file")
    refused(lambda: image_folder(root, cache_dir=cache), root, "damaged", cache=cache)
    text = tmp_path / "file.txt"
    text.write_text("text")
    refused(lambda: image_folder(text, cache_dir=cache), text, cache=cache)


def test_truncated_zip_is_refused(tmp_path, cache):
    root = write_zip(tmp_path / "set.zip", FILES)
    content = root.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 10):
        root.write_bytes(content[:size])
        refused(lambda: image_folder(root, cache_dir=cache), root, "damaged", cache=cache)


def test_flipped_bit_in_a_zip_is_refused(tmp_path, cache):
    root = write_zip(tmp_path / "set.zip", FILES)
    content = bytearray(root.read_bytes())
    content[content.index(PNG) + len(PNG) // 2] ^= 1
    root.write_bytes(content)
    refused(lambda: image_folder(root, cache_dir=cache), "train/dog/1.png", "CRC", cache=cache)


@pytest.mark.parametrize("name", ["../train/dog/9.png", "/train/dog/9.png", "train/../../x.png"])
def test_names_outside_a_zip_are_refused(tmp_path, cache, name):
    root = write_zip(tmp_path / "set.zip", FILES | {name: PNG})
    refused(lambda: image_folder(root, cache_dir=cache), repr(name), cache=cache)


def test_absurdly_large_member_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("eakd.data.source.MAX_FILE_BYTES", 100_000)
    root = tmp_path / "set.zip"
    with zipfile.ZipFile(root, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (FILES | {"train/dog/9.png": bytes(10**6)}).items():
            archive.writestr(name, content)
    refused(lambda: image_folder(root, cache_dir=cache), "9.png", "1000000 bytes", cache=cache)


def test_image_size_is_checked(tmp_path):
    with pytest.raises(UserError, match="image_size: found 4"):
        image_folder(tmp_path, image_size=4)


# --- Tiny-ImageNet's layout ---


def tiny(root, cache, **options):
    return tiny_imagenet(
        root, **{"download": False, "allow_subset": True, "cache_dir": cache, **options}
    )


def test_tiny_layout(tmp_path, cache):
    files = tiny_files()
    folder = write_folder(tmp_path / "data", files)
    archive = write_zip(tmp_path / "tiny-imagenet-2.zip", files)
    loaded = [
        tiny(root, cache) for root in (folder, folder / "tiny-imagenet-200", archive, tmp_path)
    ]
    assert len({data.fingerprint for data in loaded}) == 1
    data = loaded[0]
    assert data.classes == ("n01", "n02")  # alphabetical, not in the order of wnids.txt
    assert data.train_labels.tolist() == [0] * 3 + [1] * 3
    assert data.test_labels.tolist() == [0] * 2 + [1] * 2
    assert data.train_images.shape == (6, 64, 64, 3)
    grey = data.train_images[0]
    assert (grey == grey[..., :1]).all() and not (
        data.train_images[1][..., 0] == grey[..., 0]
    ).all()


def test_tiny_with_fewer_classes_listed(tmp_path, cache):
    files = tiny_files(("n01", "n02", "n03"))
    files["tiny-imagenet-200/wnids.txt"] = b"n03\r\nn01\r\n"
    data = tiny(write_folder(tmp_path / "data", files), cache)
    assert data.classes == ("n01", "n03")
    assert len(data.train_labels) == 6 and len(data.test_labels) == 4


def test_tiny_with_val_in_class_folders(tmp_path, cache):
    files = tiny_files()
    moved = broken(files, "tiny-imagenet-200/val/")
    for label, name in enumerate(("n02", "n01")):
        for number in range(2):
            leaf = f"val_{label}_{number}.JPEG"
            moved[f"tiny-imagenet-200/val/{name}/images/{leaf}"] = files[
                f"tiny-imagenet-200/val/images/{leaf}"
            ]
    official = tiny(write_folder(tmp_path / "a", files), cache)
    assert tiny(write_folder(tmp_path / "b", moved), cache).fingerprint == official.fingerprint


TINY = tiny_files()
TOP = "tiny-imagenet-200/"


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (broken(TINY, TOP + "wnids.txt"), ["wnids.txt"]),
        (broken(TINY, TOP + "wnids.txt", b"\n"), ["wnids.txt", "empty"]),
        (broken(TINY, TOP + "train/n02"), ["no image", "train/n02"]),
        (broken(TINY, TOP + "val/"), ["no image", "val/n01"]),
        (broken(TINY, TOP + "val/images/val_0_1.JPEG"), ["val_0_1.JPEG", "val_annotations.txt"]),
        (
            broken(TINY, TOP + "val/val_annotations.txt", b"val_0_0.JPEG\tn02\n"),
            ["no image of class n01", "val_annotations.txt"],
        ),
        (
            broken(TINY, TOP + "val/val_annotations.txt", b"val_0_0.JPEG\n"),
            ["val_annotations.txt", "line 1"],
        ),
        (
            broken(TINY, TOP + "train/n01/images/n01_1.JPEG", b"\xff\xd8\xff"),
            ["n01_1.JPEG", "damaged"],
        ),
        (
            broken(TINY, TOP + "train/n01/images/n01_1.JPEG", encoded(picture(0), "JPEG")),
            ["n01_1.JPEG", "32x32", "64x64"],
        ),
    ],
)  # fmt: skip
def test_wrong_tiny_files_are_refused(tmp_path, cache, files, parts):
    root = write_folder(tmp_path / "data", files)
    refused(lambda: tiny(root, cache), root, *parts, cache=cache)


def test_incomplete_tiny_is_refused(tmp_path, cache):
    root = write_folder(tmp_path / "data", TINY)
    refused(
        lambda: tiny(root, cache, allow_subset=False), "3 images of class n01", "500", cache=cache
    )


def test_absent_tiny_says_what_to_fetch(tmp_path, cache):
    refused(lambda: tiny(tmp_path, cache), tmp_path, "tiny-imagenet-200.zip", cache=cache)
    missing = tmp_path / "tiny.zip"
    refused(lambda: tiny(missing, cache, download=True), missing, cache=cache)
