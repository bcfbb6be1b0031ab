"""Detection sets in COCO's format: the official layout, and that of exports for own sets."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eakd.data.cache import default_cache_dir
from eakd.data.source import Source, as_path, open_source, printable
from eakd.detection.annotations import Annotations, parse
from eakd.detection.boxes import BoxData, Boxes, fingerprint
from eakd.errors import UserError, check_name
from eakd.files import write_atomically

log = logging.getLogger(__name__)

VERSION = 1  # raise when annotations are read differently, so that older caches are not found
FILE_BYTES = 4 << 30  # of annotations: COCO's own have half a gigabyte
EXPORTED = "_annotations.coco.json"


class Place(NamedTuple):
    """Where a split lies: its annotation file, and the folder of its images."""

    annotations: str
    images: str


def coco(
    root: str | Path,
    *,
    name: str = "coco",
    train: str | None = None,
    test: str | None = None,
    val: str | None = None,
    cache_dir: str | Path | None = None,
) -> BoxData:
    """A detection set in COCO's format.

    Args:
        root: a folder or zip file, maybe with one more folder around the set, in one of two
            layouts: ``annotations/instances_<split>.json`` with images in ``<split>/``, or
            ``<split>/_annotations.coco.json`` beside the images.
        name: how runs and tables call the set; see `eakd.errors.check_name`.
        train, test, val: names of splits. By default those that begin with these words; what
            begins with ``val`` is the test split where no other is. ``val`` chooses the best epoch.
        cache_dir: where read annotations are kept; see `eakd.data.cache.default_cache_dir`.

    Categories are sorted by their ids and become the labels 1, 2, …; one line of the log counts
    what was read and left out. Images are read when they are needed, and stay in ``root``.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    check_name("name", name)
    source = open_source(as_path("root", root))
    source.enter_single_folder(("annotations", "train", "test", "valid", "val"))
    places = _choose(source, {"train": train, "test": test, "val": val})
    found = _cached(source, places, name, cache_dir)
    categories = _same_categories({places[s].annotations: a for s, a in found.items()})
    for split, said in found.items():
        _check_files(source, places[split].images, said)
    _announce(name, found, source)
    splits = {split: said.boxes for split, said in found.items()}
    names = {
        split: [f"{places[split].images}/{file}" for file in said.files]
        for split, said in found.items()
    }

    def read(split: str, image: int) -> np.ndarray:
        height, width = splits[split].sizes[image].tolist()
        try:
            return read_image(source, names[split][image], (width, height))
        except UserError as error:  # while a run trains, where nobody adds the key
            raise UserError(f"data.{error}") from error

    classes, ids = tuple(categories.values()), tuple(categories)
    mark = fingerprint(classes, splits, *(list(a.files) for a in found.values()), list(ids))
    return BoxData(name, classes, ids, splits, read, mark)


def read_image(source: Source, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """``(H, W, 3)`` uint8 of an image file.

    Args:
        size: width and height that it must have; see `eakd.data.pixels.decode`.

    Raises:
        UserError: it cannot be read.
    """
    return np.asarray(source.picture(name, size).image)


def _choose(source: Source, wanted: Mapping[str, str | None]) -> dict[str, Place]:
    """The place of each split, ``train`` and ``test`` at least."""
    folders = source.children()[1]
    known = {}
    if "annotations" in folders:
        for file in source.children("annotations")[0]:
            match = re.fullmatch(r"instances_(.+)\.json", file)
            if match:
                known[match[1]] = Place(f"annotations/{file}", match[1])
    for folder in folders:
        if EXPORTED in source.children(folder)[0]:
            known.setdefault(folder, Place(f"{folder}/{EXPORTED}", folder))

    def beginning(word: str) -> str | None:
        return next((split for split in known if split.startswith(word)), None)

    val = wanted["val"] or (beginning("val") if beginning("test") or wanted["test"] else None)
    chosen = {
        "train": wanted["train"] or beginning("train") or "train",
        "test": wanted["test"] or beginning("test") or beginning("val") or "test",
        "val": None if val == wanted["test"] else val,
    }
    chosen = {split: each for split, each in chosen.items() if each is not None}
    for each in chosen.values():
        if each not in known:
            raise UserError(
                f"root: found no annotations/instances_{each}.json and no {each}/{EXPORTED} in "
                f"{source.describe('')}, allowed is one of these layouts"
            )
    return {split: known[each] for split, each in chosen.items()}


def _same_categories(found: Mapping[str, Annotations]) -> dict[int, str]:
    """The categories of all files."""
    (first, expected), *others = ((file, a.categories) for file, a in found.items())
    for file, categories in others:
        for ours, where, theirs, missing in (
            (expected, first, categories, file),
            (categories, file, expected, first),
        ):
            for each, name in ours.items():
                if theirs.get(each) != name:
                    raise UserError(
                        f"root: found category {each} {name!r} in {where} but not in {missing}, "
                        "allowed are the same categories"
                    )
    return expected


def _check_files(source: Source, folder: str, found: Annotations) -> None:
    present = set(source.below(folder)) if folder in source.children()[1] else set()
    missing = [file for file in found.files if f"{folder}/{file}" not in present]
    if missing:
        more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
        raise UserError(
            f"root: found no file {source.describe(f'{folder}/{missing[0]}')}{more}, allowed is a "
            "complete copy"
        )


def _announce(name: str, found: Mapping[str, Annotations], source: Source) -> None:
    """One line: what is there, and what training leaves out.

    Raises:
        UserError: nothing to train or to test on.
    """
    boxes = {split: said.boxes for split, said in found.items()}
    usable = boxes["train"].trainable
    crowd = int(boxes["train"].crowd.sum())
    small = len(usable) - int(usable.sum()) - crowd
    flat = sum(said.without_area for said in found.values())
    images = len(boxes["train"])
    if not usable.any():
        raise UserError(
            f"root: found no usable box in {images:,} training images ({crowd:,} crowd, "
            f"{small + found['train'].without_area:,} without area), allowed is at least one"
        )
    for split in boxes.keys() - {"train"}:
        if boxes[split].crowd.all():
            raise UserError(
                f"root: found no box in the {len(boxes[split]):,} {split} images of "
                f"{source.describe('')}, allowed is at least one"
            )
    empty = images - len(np.unique(boxes["train"].owners[usable]))
    sizes = [f"{s} {len(b):,} images with {len(b.boxes):,} boxes" for s, b in boxes.items()]
    log.info(
        "%s: %s classes; %s; training leaves out %s crowd boxes, %s narrower than a pixel and, "
        "unless data.keep_empty, %s images without boxes; %s boxes without area count nowhere",
        name,
        f"{len(found['train'].categories):,}",
        ", ".join(sizes),
        *(f"{count:,}" for count in (crowd, small, empty, flat)),
    )


def _cached(
    source: Source, places: Mapping[str, Place], name: str, cache_dir: str | Path | None
) -> dict[str, Annotations]:
    """The annotations of each split, read once: COCO's own take half a minute.

    A cache that is damaged or cannot be written costs that time again, nothing else.
    """
    folder = default_cache_dir() if cache_dir is None else as_path("cache_dir", cache_dir)
    holders = sorted({place.annotations.rpartition("/")[0] for place in places.values()})
    stamp = source.signature(lambda: [source.below(holder) for holder in holders])
    key = json.dumps([VERSION, stamp, *sorted(places.items())]).encode(errors="surrogatepass")
    file = folder / f"{name}-boxes-{hashlib.sha256(key).hexdigest()[:16]}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:  # a zip file, checked as it is read
            return {split: _unpacked(stored, split) for split in places}
    except Exception:  # not there, or damaged, at which numpy raises whatever it trips over
        pass
    found = {
        split: parse(source.read(place.annotations, FILE_BYTES), source.describe(place.annotations))
        for split, place in places.items()
    }
    arrays = {f"{s}/{key}": value for s, a in found.items() for key, value in _packed(a).items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    try:
        write_atomically(file, write)
    except OSError as error:
        log.warning(
            "cannot keep what %s says in %s (%s): every start reads it",
            *(name, printable(file), error.strerror or error),
        )
    return found


def _packed(found: Annotations) -> dict[str, np.ndarray]:
    texts = [list(found.categories.items()), found.files, found.without_area]
    return {**vars(found.boxes), "texts": np.frombuffer(json.dumps(texts).encode(), np.uint8)}


def _unpacked(stored: Mapping[str, np.ndarray], split: str) -> Annotations:
    categories, files, without_area = json.loads(stored[f"{split}/texts"].tobytes())
    names = Boxes.__dataclass_fields__
    boxes = Boxes(**{name: stored[f"{split}/{name}"] for name in names})
    return Annotations({int(k): v for k, v in categories}, tuple(files), boxes, without_area)
