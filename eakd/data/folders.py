"""Sets of image files: class folders of any origin, and Tiny-ImageNet in its own layout."""

from __future__ import annotations

import os
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from fnmatch import filter as matching
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eakd.data.base import ImageData
from eakd.data.cache import Allocate, Labels, cached
from eakd.data.pixels import is_image
from eakd.data.source import Source, as_path, is_visible, open_source, printable
from eakd.download import Archive
from eakd.download import download as fetch_archive
from eakd.errors import UserError, check_choice, check_name, check_number
from eakd.workers import usable_cores

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
            ``validation``; the first that has a class of ``train``), possibly inside one more
            folder. Images may lie deeper in a class. Classes are labelled in alphabetical order;
            names that differ only in case are two classes. One line of the log counts what was
            read and what was left out: hidden files, those whose suffix is no image's, and others.
            A link to a folder that is read already is not followed. Of files with several frames
            the first is read. Colours become 8-bit RGB as `eakd.data.pixels.to_rgb` says.
        image_size: scale the shorter side to it and cut out the centre square; by default all
            images must have one size.
        name: how runs and tables call the set; see `eakd.errors.check_name`.
        cache_dir: see `eakd.data.cache.default_cache_dir`.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    check_name("name", name)
    if image_size is not None:
        check_number("image_size", image_size, at_least=8, at_most=4096, integer=True)
    with closing(open_source(as_path("root", root))) as source:
        return load(name, source, class_folders, cache_dir, f"{image_size}", resize=image_size)


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

        def arrange(source: Source) -> Listing:
            return _tiny_listing(source, allow_subset)

        key = f"tiny {allow_subset}"
        return load("tiny_imagenet", source, arrange, cache_dir, key, size=(64, 64))


def load(
    name: str,
    source: Source,
    arrange: Callable[[Source], Listing],
    cache_dir: str | Path | None,
    key: str,
    *,
    size: tuple[int, int] | None = None,
    resize: int | None = None,
) -> ImageData:
    """The set from the cache, or decoded as `read` does.

    Args:
        name: of the set.
        source: where the files are.
        arrange: which of them make up the set.
        cache_dir: see `eakd.data.cache.default_cache_dir`.
        key: what besides the files decides the set.
        size, resize: see `read`.
    """

    @cache
    def listing() -> Listing:
        return arrange(source)

    def build(allocate: Allocate) -> Labels:
        return read(source, listing(), allocate, size=size, resize=resize)

    return cached(name, f"{key} {source.signature(listing)}", cache_dir, build)


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
    root = as_path("root", root)
    try:
        names = sorted(os.listdir(root)) if not _is_file(root) else []
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise UserError(
            f"root: found {printable(root)} unreadable ({error.strerror or error}), allowed is "
            f"{archive.title} or a folder with it"
        ) from error
    if _is_file(root):
        return root
    for place in places:
        found = matching(names, place)
        if found:
            return root / found[0]
    # The set itself, or the only folder around it.
    visible = [name for name in names if is_visible(name) and not name.startswith("_")]
    inside = [root / name for name in visible if os.path.isdir(root / name)]
    for folder in (root, *(inside if len(inside) == 1 else ())):
        if any(os.path.exists(folder / landmark) for landmark in landmarks):
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
    present = source.children()[1]
    classes = {
        split: set(source.children(split)[1]) if split in present else set()
        for split in ("train", *TEST_FOLDERS)
    }
    # A folder of images without labels may be called "test", too.
    labelled = [split for split in TEST_FOLDERS if classes[split]]
    test = next((s for s in labelled if classes[s] & classes["train"]), (*labelled, None)[0])
    if not classes["train"] or test is None:
        missing = "train" if not classes["train"] else "test"
        raise UserError(
            f"root: found {source.describe('')} without class folders in {missing}/, allowed is a "
            f"folder or zip file with train/<class>/ and test/<class>/ (or val/<class>/)"
        )
    _check_spelling(source, classes["train"] | classes[test])
    for ours, theirs in (("train", test), (test, "train")):
        alone = sorted(classes[ours] - classes[theirs])
        if alone:
            raise UserError(
                f"root: found class {alone[0]!r} of {source.describe(ours)} missing in {theirs}/, "
                f"allowed are the same classes in both ({len(alone)} differ)"
            )
    for other in sorted({*present} - {"train", test}):
        source.leave_out(f"folders beside train/ and {test}/", other)
    names = sorted(classes["train"])
    if numbered and all(name.isdecimal() for name in names):
        names.sort(key=int)
    return Listing(
        tuple(names),
        *(_by_class(source, source.below(split), split, names) for split in ("train", test)),
    )


def _check_spelling(source: Source, names: Iterable[str]) -> None:
    """Refuse names that look the same but are written with different characters."""
    spellings: dict[str, str] = {}
    for name in sorted(names):
        other = spellings.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            raise UserError(
                f"root: found the class {printable(name)} of {source.describe('')} written both "
                f"{other!a} and {name!a}, allowed is one spelling: rename one of them"
            )


def _by_class(
    source: Source, files: list[str], split: str, names: Iterable[str]
) -> list[tuple[str, int]]:
    """Images of ``split/<class>/``, class by class."""
    members: dict[str, list[str]] = {name: [] for name in names}
    for file in files:
        parts = file.split("/")
        if not is_image(file):
            suffix = PurePosixPath(file).suffix.lower()
            source.leave_out(f"{suffix} files" if suffix else "files without a suffix", file)
        elif len(parts) < 3:
            source.leave_out("images in no class folder", file)
        elif parts[1] not in members:
            source.leave_out("images of other classes", file)
        else:
            members[parts[1]].append(file)
    for name, images in members.items():
        if not images:
            left_out = source.summary()
            raise UserError(
                f"root: found no image in {source.describe(f'{split}/{name}')}"
                f"{left_out and f' (left out: {left_out})'}, allowed is at least one per class: "
                f"add some or remove the class"
            )
    return [(file, label) for label, name in enumerate(members) for file in members[name]]


def _tiny_listing(source: Source, allow_subset: bool) -> Listing:
    source.enter_single_folder(("train", "val", "wnids.txt"))
    top, folders = source.children()
    if "wnids.txt" not in top or "train" not in folders:
        raise UserError(
            f"root: found {source.describe('')} without wnids.txt and train/, allowed is the "
            f"official layout of Tiny-ImageNet"
        )
    classes = sorted(set(_lines(source, "wnids.txt")))
    if not classes:
        raise source.damaged("wnids.txt", "it is empty")
    files = [file for file in source.below("train") if not file.endswith("_boxes.txt")]
    train = _by_class(source, files, "train", classes)
    files = source.below("val") if "val" in folders else []
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
    present, members, named = set(files), [], {annotations}
    for number, line in enumerate(_lines(source, annotations), 1):
        parts = line.split()
        if len(parts) < 2:
            raise source.damaged(annotations, f"line {number} is {line!r}")
        named.add(f"val/images/{parts[0]}")
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
    for file in present - named:
        source.leave_out(f"files that {annotations} does not name", file)
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
        # Pillow warns of large images, which are refused, and of blocks that are not read.
        warnings.catch_warnings(),
        tqdm(total=total, desc=f"decoding {source.path.name}", unit=" images", disable=None) as bar,
        ThreadPoolExecutor(min(8, len(usable_cores()))) as pool,
    ):
        warnings.simplefilter("ignore")
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
    return Labels(listing.classes, *labels, left_out=source.summary())


def _image(source: Source, name: str, size: tuple[int, int] | None, resize: int | None):
    """A decoded Pillow image of the wanted size."""
    image, frames = source.picture(name)
    if frames > 1:
        source.leave_out("frames after the first", name)
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


def _is_file(path: Path) -> bool:
    """Whether it is a regular file, as far as the system tells."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
