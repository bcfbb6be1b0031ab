"""What a data set is, and what a training step receives."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class ImageData:
    """A decoded image-classification set.

    Attributes:
        name: how runs, checkpoints and tables call it.
        classes: class names; the label is the position.
        train_images, test_images: ``(M, H, W, 3)`` uint8 (may be memory-mapped).
        train_labels, test_labels: ``(M,)`` int64 in ``[0, len(classes))``.
        fingerprint: hex digest that identifies the content; equal sets have equal fingerprints.
    """

    name: str
    classes: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Batch(NamedTuple):
    """One step's samples on the device.

    Attributes:
        images: ``(N, 3, H, W)`` float32, normalised, channels-last.
        targets: ``(N,)`` int64.
        index: ``(N,)`` int64 position of each sample in the training set.
        strong: a second, strongly augmented view of the same samples, or ``None``.
        teacher_logits: ``(N, C)`` float32, what the teacher says of ``images``, where that is known
            already (`Pipeline.answers`); else ``None``.
    """

    images: Tensor
    targets: Tensor
    index: Tensor
    strong: Tensor | None = None
    teacher_logits: Tensor | None = None


def fingerprint(classes: tuple[str, ...], *arrays: np.ndarray) -> str:
    """SHA-256 of class names and arrays (dtype, shape and content), in hex."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
