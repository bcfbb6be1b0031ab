"""Loading and checking a trained teacher."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eakd.classification.evaluation import evaluate
from eakd.data import Pipeline
from eakd.files import write_atomically, write_json
from eakd.models.inference import prepare_teacher
from eakd.models.weights import load_weights
from eakd.training.device import Compute
from eakd.training.parallel import ALONE
from eakd.training.record import read_json
from eakd.weighting import entropy

log = logging.getLogger(__name__)

# A teacher further than this from its published top-1 (percent) has the wrong weights or data.
TOLERANCE = 0.2


def load_teacher(
    model: nn.Module,
    path: Path,
    data: Pipeline,
    compute: Compute,
    fold: bool = True,
    expected_top1: float | None = None,
    cache: Path | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Load, place and evaluate a teacher.

    The evaluation is done once per weights, data, precision and cached under ``cache``.

    Returns:
        The frozen network, ready on the device, and its test accuracy ``{"top1", "top5"}``.
    """
    load_weights(model, path)
    teacher = compute.place(model.eval().requires_grad_(False))
    if fold:
        example = next(iter(data.evaluation("test"))).images[:2]
        teacher = prepare_teacher(teacher, example, compute.dtype, compute.channels_last)
        teacher = compute.place(teacher)
    cached = None if cache is None else cache / f"{_key(path, data, compute)}.json"
    result = read_json(cached) if cached else None
    if result is None:
        result = evaluate(teacher, data.evaluation("test"), replace(compute, processes=ALONE))
        if cached:
            _remember(cached, lambda: write_json(cached, result))
    log.info("teacher %s: %.2f %% top-1", path, result["top1"])
    if expected_top1 is not None and abs(result["top1"] - expected_top1) > TOLERANCE:
        log.warning(
            "teacher %s reaches %.2f %% but %.2f %% is published: check the weights and data",
            path,
            result["top1"],
            expected_top1,
        )
    return teacher, result


@torch.inference_mode()
def entropies_of_training_set(
    teacher: nn.Module,
    path: Path,
    data: Pipeline,
    compute: Compute,
    temperature: float,
    cache: Path,
) -> Tensor:
    """The teacher's entropy of each training image without augmentation.

    One pass over the set, once per weights, data, precision and τ′; then it is read from ``cache``.

    Args:
        teacher: of `load_teacher`.
        path: its file.
        temperature: τ′.

    Returns:
        ``(N,)`` in nats by `Batch.index`, on the CPU.
    """
    count = len(data.data.train_labels)
    file = cache / f"{_key(path, data, compute)}-entropy-{temperature:g}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged: once more
        known = np.load(file, allow_pickle=False)
        if known.shape == (count,) and known.dtype == np.float32 and np.isfinite(known).all():
            return torch.from_numpy(known)
    found = torch.full((count,), torch.nan)
    for split in ("train", "val"):
        for batch in data.evaluation(split) if split in data.splits else ():
            with compute.autocast():
                logits = teacher(batch.images, features=False).logits
                found[batch.index.cpu()] = entropy(logits, temperature).float().cpu()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, found.numpy())

    _remember(file, lambda: write_atomically(file, write))
    return found


def _key(path: Path, data: Pipeline, compute: Compute) -> str:
    """What an evaluation of a teacher depends on."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{digest[:16]}-{data.fingerprint[:16]}-{compute.precision}"


def _remember(file: Path, write: Callable[[], object]) -> None:
    """Write a cache; a place that cannot be written costs the same work next time, not the run."""
    try:
        write()
    except OSError as error:
        log.warning("%s: not kept (%s)", file, error.strerror or error)
