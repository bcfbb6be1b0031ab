"""One annotation file in COCO's format: read, checked, and turned into flat arrays."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from eakd.detection.boxes import Boxes
from eakd.errors import UserError, shortened

LARGEST = 2**53  # of ids: larger ones are no longer exact in other programs


class Annotations(NamedTuple):
    """What a file says.

    Attributes:
        categories: id → name, in the order of the ids; labels are positions in it, from 1.
        files: name of each image, relative to the split's folder.
        boxes: see `Boxes`.
        without_area: boxes that were left out because a side is not above 0.
    """

    categories: dict[int, str]
    files: tuple[str, ...]
    boxes: Boxes
    without_area: int


def parse(content: bytes, where: str) -> Annotations:
    """A COCO annotation file.

    Category ids may be any integers, with gaps and in any order. ``iscrowd`` and ``area`` may be
    missing: no crowd, width times height.

    Args:
        content: of the file.
        where: how messages call it.

    Raises:
        UserError: ``root``, and what is wrong with the file.
    """
    node = _load(content, where)
    categories = _categories(node["categories"], where)
    images, found = node["images"], node["annotations"]
    _check_rows(images, "image", where)
    ids = _integers(images, "id", "image", where)
    files = _column(images, "file_name", lambda x: isinstance(x, str) and x, "a text", where)
    sizes = [_column(images, key, _is_length, "pixels > 0", where) for key in ("height", "width")]
    _check_pixels(files, sizes, where)
    place = {each: i for i, each in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(each for i, each in enumerate(ids) if place[each] != i)
        raise UserError(f"root: found image id {twice} twice in {where}, allowed are different ids")

    _check_rows(found, "annotation", where)
    label = {each: i for i, each in enumerate(categories, 1)}
    owners = _known(found, "image_id", place, where)
    labels = _known(found, "category_id", label, where)
    corner_and_size = _bboxes(found, where)
    crowd = np.array([a.get("iscrowd") in (1, True) for a in found], bool)
    given = [a.get("area") for a in found]
    areas = np.array([x if _is_number(x) else np.nan for x in given], np.float64)
    areas = np.where(np.isfinite(areas), areas, corner_and_size[:, 2] * corner_and_size[:, 3])

    kept = np.flatnonzero((corner_and_size[:, 2:] > 0).all(axis=1))
    kept = kept[np.argsort(owners[kept], kind="stable")]  # image by image
    counts = np.bincount(owners[kept], minlength=len(ids))
    boxes = corner_and_size[kept]
    boxes[:, 2:] += boxes[:, :2]
    arrays = Boxes(
        ids=np.array(ids, np.int64),
        sizes=np.array(sizes, np.int64).T.reshape(-1, 2),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=labels[kept],
        crowd=crowd[kept],
        areas=areas[kept],
    )
    _check_places(arrays, where)
    return Annotations(categories, tuple(files), arrays, len(found) - len(kept))


def _load(content: bytes, where: str) -> dict[str, Any]:
    def slim(node: dict[str, Any]) -> dict[str, Any]:
        # Outlines are most of a file, and of memory, and nothing here reads them.
        node.pop("segmentation", None)
        return node

    try:
        node = json.loads(content, object_hook=slim)
    except (ValueError, RecursionError) as error:
        at = f"line {error.lineno} column {error.colno}" if hasattr(error, "lineno") else error
        raise UserError(
            f"root: found {where} damaged ({at}), allowed is a complete copy: fetch the set again"
        ) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(node, dict) or not isinstance(node.get(key), list):
            raise UserError(
                f"root: found no key {key!r} with a list in {where}, allowed is a COCO annotation "
                "file"
            )
    return node


def _categories(rows: list[Any], where: str) -> dict[int, str]:
    _check_rows(rows, "category", where)
    ids = _integers(rows, "id", "category", where)
    names = _column(rows, "name", lambda x: isinstance(x, str), "a text", where)
    found: dict[int, str] = {}
    for each, name in zip(ids, names, strict=True):
        if each in found:
            raise UserError(
                f"root: found category id {each} twice ({found[each]}, {name}) in {where}, allowed "
                "are different ids"
            )
        found[each] = name
    if not found:
        raise UserError(f"root: found no category in {where}, allowed is at least one")
    return dict(sorted(found.items()))


def _check_rows(rows: list[Any], what: str, where: str) -> None:
    for row in rows:
        if not isinstance(row, dict):
            raise UserError(
                f"root: found {shortened(row)} for an {what} in {where}, allowed is a COCO "
                "annotation file"
            )
    if what == "image" and not rows:
        raise UserError(f"root: found no image in {where}, allowed is at least one")


def _column(
    rows: list[dict[str, Any]], key: str, valid: Callable[[Any], Any], allowed: str, where: str
) -> list[Any]:
    values = [row.get(key) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if not valid(value):
            raise UserError(
                f"root: found {key} {shortened(value)} of id {shortened(row.get('id'))} in "
                f"{where}, allowed is {allowed}"
            )
    return values


def _integers(rows: list[dict[str, Any]], key: str, what: str, where: str) -> list[int]:
    for row in rows:
        if type(row.get(key)) is not int or abs(row[key]) > LARGEST:
            raise UserError(
                f"root: found {key} {shortened(row.get(key))} of an {what} in {where}, allowed is "
                "an integer"
            )
    return [row[key] for row in rows]


def _known(rows: list[dict[str, Any]], key: str, places: dict[int, int], where: str) -> np.ndarray:
    """Where the ids of a column are listed, ``(B,)`` int64."""
    try:
        return np.array([places[row[key]] for row in rows], np.int64)
    except (KeyError, TypeError):
        for row in rows:
            value = row.get(key)
            if type(value) is not int or value not in places:
                raise UserError(
                    f"root: found annotation {shortened(row.get('id'))} of "
                    f"{key.removesuffix('_id')} {shortened(value)}, which {where} does not "
                    "list, allowed is a complete copy"
                ) from None
        raise


def _bboxes(rows: list[dict[str, Any]], where: str) -> np.ndarray:
    """``(B, 4)`` float64: x, y, width, height."""
    for row in rows:
        box = row.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(
                f"root: found bbox {shortened(box)} of annotation {shortened(row.get('id'))} in "
                f"{where}, allowed are 4 finite numbers x, y, width, height"
            )
    return np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)


def _check_pixels(files: list[str], sizes: list[list[int]], where: str) -> None:
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS or LARGEST
    for file, height, width in zip(files, *sizes, strict=True):
        if height * width > most:
            raise UserError(
                f"root: found {shortened(file)} of {height * width // 10**6:,} megapixels in "
                f"{where}, allowed is up to {most // 10**6:,}: scale it down, with its boxes"
            )


def _is_number(value: Any) -> bool:
    # A comparison with NaN is false.
    return type(value) in (int, float) and abs(value) < LARGEST


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value < LARGEST


def _check_places(found: Boxes, where: str) -> None:
    """Refuse boxes that were written in another way: nobody can learn from them.

    Raises:
        UserError: corners instead of a corner and a size, or fractions of the image.
    """
    if not len(found.boxes):
        return
    limits = found.sizes[found.owners][:, ::-1]
    # A pixel more, because tools round.
    outside = ((found.boxes[:, :2] < -1) | (found.boxes[:, 2:] > limits + 1)).any(axis=1)
    if outside.mean() > 0.5:
        raise UserError(
            f"root: found {outside.sum():,} of {len(outside):,} boxes outside their images in "
            f"{where}, allowed is x, y, width, height in pixels"
        )
    if (found.boxes <= 1).all() and limits.min() > 1:
        raise UserError(
            f"root: found every box smaller than one pixel in {where}, allowed are pixels, not "
            "fractions"
        )
