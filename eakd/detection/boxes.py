"""What a detection set is, images and boxes in flat arrays, and what a training step receives.

Boxes of all images lie in a few arrays, not in a dictionary each. Worker processes and threads then
share them, and memory does not grow while they read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

MIN_SIDE = 1.0  # pixels; a smaller side makes a box that no anchor can learn from


@dataclass(frozen=True)
class Boxes:
    """The boxes of some images, as they were annotated.

    Attributes:
        ids: ``(M,)`` int64, what annotations and results call each image.
        sizes: ``(M, 2)`` int64, height and width.
        starts: ``(M + 1,)`` int64: image i has the boxes from ``starts[i]`` to ``starts[i + 1]``.
        boxes: ``(B, 4)`` float64, x1 y1 x2 y2 in pixels of the image; each has an area.
        labels: ``(B,)`` int64 in ``[1, C]``; 0 is background.
        crowd: ``(B,)`` bool: one box around many objects. Never trained on, and detections in it
            are neither right nor wrong.
        areas: ``(B,)`` float64, of the object, which decides whether it is small, medium or large.
    """

    ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, image: int) -> slice:
        """Where the boxes of an image are."""
        return slice(self.starts[image], self.starts[image + 1])

    @property
    def owners(self) -> np.ndarray:
        """``(B,)`` int64, the image of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def clipped(self) -> np.ndarray:
        """``(B, 4)``, the parts of the boxes inside their images."""
        return _clip(self.boxes, self.sizes[self.owners])

    @property
    def trainable(self) -> np.ndarray:
        """``(B,)`` bool: no crowd, and `MIN_SIDE` in both directions once clipped."""
        return ~self.crowd & _wide(self.clipped)

    def training(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """What is trained on: clipped boxes ``(k, 4)`` and labels ``(k,)``, maybe none."""
        at = self.of(image)
        boxes = _clip(self.boxes[at], self.sizes[image])
        keep = ~self.crowd[at] & _wide(boxes)
        return boxes[keep], self.labels[at][keep]


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.clip(boxes, 0, np.concatenate([sizes[..., ::-1]] * 2, axis=-1))


def _wide(boxes: np.ndarray) -> np.ndarray:
    # A millionth: x + width - x is not width to the last bit.
    return (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE - 1e-6).all(axis=1)


@dataclass(frozen=True)
class BoxData:
    """A detection set.

    Attributes:
        name: how runs, checkpoints and tables call it.
        classes: names; label c is ``classes[c - 1]``.
        category_ids: what annotations and results call each class: any integers, in order.
        splits: ``"train"``, ``"test"`` and maybe ``"val"``.
        read: image number i of a split as ``(H, W, 3)`` uint8; called by several threads at once.
        fingerprint: hex digest of names, sizes and boxes, not of pixels.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, Boxes]
    read: Callable[[str, int], np.ndarray]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Without background."""
        return len(self.classes)


def fingerprint(classes: tuple[str, ...], splits: Mapping[str, Boxes], *more: object) -> str:
    """SHA-256, in hex, of class names, boxes, and ``more`` that JSON can hold or is an array."""
    digest = hashlib.sha256(json.dumps([classes, list(splits)]).encode())
    arrays = [array for split in splits.values() for array in vars(split).values()]
    for each in (*arrays, *more):
        if isinstance(each, np.ndarray):
            digest.update(f"{each.dtype.str}{each.shape}".encode())
            digest.update(np.ascontiguousarray(each).data)
        else:
            digest.update(json.dumps(each).encode())
    return digest.hexdigest()


class BoxBatch(NamedTuple):
    """Some images on the device.

    Attributes:
        images: ``(n, 3, H, W)`` float32, RGB in [0, 1], not normalised: networks do that, each in
            its own way. Each image is in the upper left corner, zeros around it; H and W are
            multiples of 32.
        sizes: height and width of each image in there.
        targets: of each image, ``boxes`` ``(k, 4)`` float32, x1 y1 x2 y2 in pixels of ``images``,
            and ``labels`` ``(k,)`` int64 in ``[1, C]``; k may be 0.
        index: ``(n,)`` int64 position of each image in its split.
        original_sizes: height and width of each image as it is annotated.
        start: how many images of the step come before, in micro-batches of this process.
    """

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    index: Tensor
    original_sizes: list[tuple[int, int]]
    start: int = 0
