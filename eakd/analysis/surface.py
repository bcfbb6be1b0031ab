"""The loss over a plane of weights, row by row: what is done is kept, processes share the rows."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.analysis.cache import digest, read_arrays, write_arrays
from eakd.analysis.directions import Plane
from eakd.data import Pipeline
from eakd.data.split import stratified
from eakd.training.device import Compute
from eakd.training.lock import Locked, RunLock

WAIT = 1.0  # seconds between two looks at the rows of other processes

Loss = Callable[[], float]


def grid(points: int, reach: float) -> np.ndarray:
    """``(points,)`` coordinates from ``-reach`` to ``reach``."""
    return np.linspace(-reach, reach, points)


def balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Positions of about ``count`` samples, equally many of each class, the same for everybody.

    ``count`` is rounded up to a multiple of the number of classes; a class with fewer gives all.
    """
    classes = len(np.unique(labels))
    chosen, _ = stratified(labels, lambda there: min(there, -(-count // classes)), 0)
    return np.sort(chosen)


def place(
    data: Pipeline, split: str, count: int, compute: Compute
) -> tuple[list[Tensor], list[Tensor]]:
    """Batches of images, decoded, normalised and moved once, and their labels."""
    images, labels = [], []
    for batch in data.evaluation(split):
        # As autocast would convert them at every point.
        images.append(batch.images.to(compute.dtype))
        labels.append(batch.targets)
    targets = torch.cat(labels)
    chosen = torch.from_numpy(balanced(targets.cpu().numpy(), count)).to(targets.device)
    layout = torch.channels_last if compute.channels_last else torch.contiguous_format
    whole = torch.cat(images)[chosen].contiguous(memory_format=layout)
    return list(whole.split(data.eval_batch_size)), list(
        targets[chosen].split(data.eval_batch_size)
    )


def cross_entropy(
    model: nn.Module, images: list[Tensor], labels: list[Tensor], compute: Compute
) -> Loss:
    """The mean cross-entropy of ``model``, as it is when the result is called."""

    @torch.inference_mode()
    def loss() -> float:
        total = torch.zeros((), device=labels[0].device)
        for some, targets in zip(images, labels, strict=True):
            with compute.autocast():
                logits = model(some, features=False).logits
            total += F.cross_entropy(logits.float(), targets, reduction="sum")
        return total.item() / sum(map(len, labels))

    return loss


def evaluate_row(plane: Plane, loss: Loss, xs: np.ndarray, y: float) -> np.ndarray:
    """``(len(xs),)`` float64: the loss at each ``(x, y)``."""
    values = np.empty(len(xs))
    for place, x in enumerate(xs):
        plane.move(float(x), float(y))
        values[place] = loss()
    return values


def surface(
    folder: Path,
    facts: Mapping[str, Any],
    coordinates: np.ndarray,
    opened: Callable[[], tuple[Plane, Loss]],
) -> np.ndarray:
    """The loss at every point of a plane, ``(K, K)`` float64, ``[row of b, column of a]``.

    Each row is kept as it is done, under a lock of its own: a killed computation goes on where it
    was, and other processes that ask for the same surface take other rows.

    Args:
        folder: of caches.
        facts: all that decides the surface.
        coordinates: ``(K,)``, of both axes.
        opened: makes the plane and the loss; not called if nothing is left to do.
    """
    whole, rows = folder / f"surface-{digest(facts)}.npz", folder / f"surface-{digest(facts)}"
    parts: tuple[Plane, Loss] | None = None
    known: list[np.ndarray | None] = [None] * len(coordinates)
    while True:
        found = read_arrays(whole, facts)
        if found is not None:
            return found["loss"]
        known = [
            _read_row(rows, facts, place) if row is None else row for place, row in enumerate(known)
        ]
        if all(row is not None for row in known):
            loss = np.stack(known)
            write_arrays(whole, facts, {"loss": loss})
            shutil.rmtree(rows, ignore_errors=True)
            return loss
        waiting = True
        for place in (place for place, row in enumerate(known) if row is None):
            with _claimed(rows / f"row{place:03d}") as mine:
                # Another process may just have finished the row, or with it the surface.
                if not mine or whole.exists() or _read_row(rows, facts, place) is not None:
                    continue
                waiting = False
                parts = parts or opened()
                row = known[place] = evaluate_row(*parts, coordinates, coordinates[place])
                write_arrays(_row_file(rows, place), facts, {"loss": row})
        if waiting and not whole.exists():  # for the rows of others
            time.sleep(WAIT)


@contextlib.contextmanager
def _claimed(directory: Path) -> Iterator[bool]:
    """Whether this process may compute a row, for as long as it does."""
    lock = RunLock(directory)
    try:
        lock.acquire()
    except Locked:
        yield False
        return
    except OSError:  # nothing can be written: then nobody shares anything
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def _row_file(rows: Path, place: int) -> Path:
    return rows / f"row{place:03d}.npz"


def _read_row(rows: Path, facts: Mapping[str, Any], place: int) -> np.ndarray | None:
    found = read_arrays(_row_file(rows, place), facts)
    return None if found is None else found["loss"]
