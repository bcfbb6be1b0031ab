"""Sets of image files: class folders of any origin, and Tiny-ImageNet in its own layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eakd.data.base import ImageData
from eakd.data.cache import Allocate, Labels, cached
from eakd.data.source import Source, decode, is_image, open_source
from eakd.download import Archive
from eakd.download import download as fetch_archive
from eakd.errors import UserError, check_choice, check_number

TEST_FOLDERS = ("test", "val", "valid", "validation")
CHUNK = 128  # images decoded per task

TINY_IMAGENET = Archive(
    "Tiny-ImageNet-200",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)


class Listing(NamedTuple):
    """Which files make up a set.

    Attributes:
        classes: names, the label is the position.
        train, test: file name and label of each image.
    """

    classes: tuple[str, ...]
    train: list[tuple[str, int]]
    test: list[tuple[str, int]]


def image_folder(
    root: str | Path,
    image_size: int | None = None,
    *,
    name: str = "image_folder",
    cache_dir: str | Path | None = None,
) -> ImageData:
    """Any folder or zip file of class folders.

    Args:
        root: holds ``train/<class>/`` and ``test/<class>/`` (or ``val``, ``valid``,
            ``validation``), possibly inside one more folder. Images may lie deeper in a class.
            Classes are labelled in alphabetical order.
        image_size: scale the shorter side to it and cut out the centre square; by default all
            images must have one size.
        name: how runs and tables call the set.
        cache_dir: see `eakd.data.cache.default_cache_dir`.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    if image_size is not None:
        check_number("image_size", image_size, at_least=8, at_most=4096, integer=True)
    with closing(open_source(Path(root).expanduser())) as source:

        def build(allocate: Allocate) -> Labels:
            return read(source, class_folders(source), allocate, resize=image_size)

        key = f"folders {image_size} {source.signature()}"
        return cached(name, key, cache_dir, build)


def tiny_imagenet(
    root: str | Path,
    download: bool = True,
    *,
    allow_subset: bool = False,
    cache_dir: str | Path | None = None,
) -> ImageData:
    """Tiny-ImageNet-200 (Stanford CS231n): 64x64, 500 training images and 50 others per class.

    The labelled validation images are the test split; the official test images have no labels.
    Classes are WordNet ids in alphabetical order, the labels of published checkpoints.

    Args:
        root: a folder that holds ``tiny-imagenet-200`` or ``tiny-imagenet*.zip``, or one of these
            itself. ``wnids.txt`` may list fewer classes; ``val`` may have been sorted into class
            folders.
        download: fetch the official archive into ``root`` if nothing is there.
        allow_subset: accept other numbers of images per class.
        cache_dir: see `eakd.data.cache.default_cache_dir`.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    check_choice("download", download, (True, False))
    check_choice("allow_subset", allow_subset, (True, False))
    places = ["tiny-imagenet-200", "tiny-imagenet*.zip"]
    path = locate(root, ("wnids.txt", "train"), places, TINY_IMAGENET, fetch=download)
    with closing(open_source(path)) as source:

        def build(allocate: Allocate) -> Labels:
            return read(source, _tiny_listing(source, allow_subset), allocate, size=(64, 64))

        key = f"tiny {allow_subset} {source.signature()}"
        return cached("tiny_imagenet", key, cache_dir, build)


def locate(
    root: str | Path, landmarks: Iterable[str], places: list[str], archive: Archive, fetch: bool
) -> Path:
    """Where a published set lies: a place in ``root``, ``root`` itself, or a fresh download.

    Args:
        root: as the user gave it.
        landmarks: names of which a folder has one if it is the set itself.
        places: patterns of names to look for in ``root``, best first.
        archive: what to download.
        fetch: whether to.
    """
    root = Path(root).expanduser()
    if root.is_file():
        return root
    for place in places:
        found = sorted(root.glob(place))
        if found:
            return found[0]
    # The set itself, or the only folder around it.
    inside = [path for path in root.glob("[!._]*") if path.is_dir()] if root.is_dir() else []
    for folder in (root, *(inside if len(inside) == 1 else ())):
        if any((folder / landmark).exists() for landmark in landmarks):
            return folder
    if fetch and not root.suffix:  # a missing "x.zip" is a slip, not a folder to create
        return fetch_archive(archive, root)
    what = "without it" if root.exists() else "which does not exist"
    raise UserError(
        f"root: found {root}, {what}, allowed is {archive.title} itself or a folder with "
        f"{' or '.join(places)}; data.download=true fetches {archive.url}"
    )


def class_folders(source: Source, numbered: bool = False) -> Listing:
    """The images below ``train/<class>`` and ``test/<class>``.

    Args:
        source: entered down to ``train``.
        numbered: label classes that are called 0, 1, 2 ... by that number; otherwise "10" comes
            before "2", as in torchvision's ImageFolder.
    """
    source.enter_single_folder(("train", *TEST_FOLDERS))
    files, folders = source.scan()
    classes = {
        split: {folder.split("/")[1] for folder in folders if folder.startswith(f"{split}/")}
        for split in ("train", *TEST_FOLDERS)
    }
    test = next((split for split in TEST_FOLDERS if classes[split]), None)
    if not classes["train"] or test is None:
        missing = "train" if not classes["train"] else "test"
        raise UserError(
            f"root: found {source.describe('')} without class folders in {missing}/, allowed is a "
            f"folder or zip file with train/<class>/ and test/<class>/ (or val/<class>/)"
        )
    for ours, theirs in (("train", test), (test, "train")):
        alone = sorted(classes[ours] - classes[theirs])
        if alone:
            raise UserError(
                f"root: found class {alone[0]!r} of {source.describe(ours)} missing in {theirs}/, "
                f"allowed are the same classes in both ({len(alone)} differ)"
            )
    names = sorted(classes["train"])
    if numbered and all(name.isdecimal() for name in names):
        names.sort(key=int)
    return Listing(
        tuple(names), *(_by_class(source, files, split, names) for split in ("train", test))
    )


def _by_class(
    source: Source, files: list[str], split: str, names: Iterable[str]
) -> list[tuple[str, int]]:
    """Images of ``split/<class>/``, class by class."""
    members: dict[str, list[str]] = {name: [] for name in names}
    for file in files:
        parts = file.split("/")
        if len(parts) > 2 and parts[0] == split and parts[1] in members and is_image(file):
            members[parts[1]].append(file)
    for name, images in members.items():
        if not images:
            raise UserError(
                f"root: found no image in {source.describe(f'{split}/{name}')}, allowed is at "
                f"least one per class: add some or remove the class"
            )
    return [(file, label) for label, name in enumerate(members) for file in members[name]]


def _tiny_listing(source: Source, allow_subset: bool) -> Listing:
    source.enter_single_folder(("train", "val", "wnids.txt"))
    files, _ = source.scan()
    if "wnids.txt" not in files or not any(file.startswith("train/") for file in files):
        raise UserError(
            f"root: found {source.describe('')} without wnids.txt and train/, allowed is the "
            f"official layout of Tiny-ImageNet"
        )
    classes = sorted(set(_lines(source, "wnids.txt")))
    if not classes:
        raise source.damaged("wnids.txt", "it is empty")
    train = _by_class(source, files, "train", classes)
    annotations = "val/val_annotations.txt"
    if annotations in files:
        test = _annotated(source, files, annotations, classes)
    else:
        test = _by_class(source, files, "val", classes)
    if not allow_subset:
        for split, members, count in (("train", train, 500), ("val", test, 50)):
            found = Counter(label for _, label in members)
            for label, name in enumerate(classes):
                if found[label] != count:
                    raise UserError(
                        f"root: found {found[label]} images of class {name} in "
                        f"{source.describe(split)}, allowed is {count}: fetch the set again, or "
                        f"set data.allow_subset=true"
                    )
    return Listing(tuple(classes), train, test)


def _annotated(
    source: Source, files: list[str], annotations: str, classes: list[str]
) -> list[tuple[str, int]]:
    """The validation images of ``classes``: lines of file name, tab, WordNet id, tab, a box."""
    labels = {name: label for label, name in enumerate(classes)}
    present, members = set(files), []
    for number, line in enumerate(_lines(source, annotations), 1):
        parts = line.split()
        if len(parts) < 2:
            raise source.damaged(annotations, f"line {number} is {line!r}")
        if parts[1] in labels:
            members.append((f"val/images/{parts[0]}", labels[parts[1]]))
    for file, _ in members:
        if file not in present:
            raise UserError(
                f"root: found no {source.describe(file)}, which {annotations} names; allowed is a "
                f"complete copy: fetch the set again"
            )
    for name in set(classes) - {classes[label] for _, label in members}:
        raise UserError(
            f"root: found no image of class {name} in {source.describe(annotations)}, allowed is "
            f"at least one"
        )
    return sorted(members, key=lambda member: member[1])


def _lines(source: Source, name: str) -> Iterator[str]:
    text = source.read(name).decode("utf-8", errors="replace")
    return (line.strip() for line in text.splitlines() if line.strip())


def read(
    source: Source,
    listing: Listing,
    allocate: Allocate,
    *,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
) -> Labels:
    """Decode a set into the arrays of ``allocate``.

    Args:
        source: where the files are.
        listing: which.
        allocate: see `eakd.data.cache.cached`.
        size: width and height that images must have; by default those of the first.
        resize: scale the shorter side to it and cut out the centre square.
    """
    if resize is not None:
        size = (resize, resize)
    elif size is None:
        size = _image(source, listing.train[0][0], None, None).size
    total = len(listing.train) + len(listing.test)
    labels = []
    with (
        tqdm(total=total, desc=f"decoding {source.path.name}", unit=" images", disable=None) as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for split, members in (("train", listing.train), ("test", listing.test)):
            images = allocate(f"{split}_images", (len(members), size[1], size[0], 3))

            def work(start: int, members=members, images=images) -> int:
                chunk = members[start : start + CHUNK]
                for place, (name, _) in enumerate(chunk, start):
                    images[place] = np.asarray(_image(source, name, size, resize))
                return len(chunk)

            for count in pool.map(work, range(0, len(members), CHUNK)):
                bar.update(count)
            labels.append(np.array([label for _, label in members], dtype=np.int64))
    return Labels(listing.classes, *labels)


def _image(source: Source, name: str, size: tuple[int, int] | None, resize: int | None):
    """A decoded Pillow image of the wanted size."""
    content = source.read(name)
    try:
        image = decode(content)
    except Exception as error:  # Pillow's decoders raise almost anything for a damaged file
        raise source.damaged(name, error) from error
    if resize is not None:
        return _resized(image, resize)
    if size is not None and image.size != size:
        found, wanted = ("x".join(map(str, pair)) for pair in (image.size, size))
        raise UserError(
            f"root: found {source.describe(name)} with {found} pixels, allowed is {wanted}, the "
            f"size of the set's other images"
        )
    return image


def _resized(image, size: int):
    """Shorter side to ``size``, then the centre square, in one resampling."""
    from PIL import Image

    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), Image.BILINEAR, box=(left, top, left + side, top + side))
