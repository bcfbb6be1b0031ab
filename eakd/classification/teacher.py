"""Loading and checking a trained teacher."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eakd.classification.evaluation import evaluate
from eakd.data import Pipeline
from eakd.errors import UserError
from eakd.files import write_atomically, write_json
from eakd.models.inference import prepare_teacher
from eakd.models.weights import load_weights
from eakd.training.device import Compute
from eakd.training.find_teacher import file_version, weights_digest
from eakd.training.parallel import ALONE
from eakd.training.reading import read_json
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
    network: str = "",
) -> tuple[nn.Module, dict[str, float]]:
    """Load, place and evaluate a teacher.

    The evaluation is done once per weights, network, data, precision and cached under ``cache``.

    Args:
        network: whatever besides the weights decides what ``model`` computes, such as the size of
            its input; any text.

    Returns:
        The frozen network, ready on the device, and its test accuracy ``{"top1", "top5"}``.

    Raises:
        UserError: no such weights, see `load_weights`.
    """
    version = file_version(path)
    load_weights(model, path)
    key = _key(path, data, compute, network)
    if file_version(path) != version:  # or the key would be that of other weights
        raise UserError(f"{path}: was replaced while it was read; start again with the new one")
    teacher = compute.place(model.eval().requires_grad_(False))
    if fold:
        example = next(iter(data.evaluation("test"))).images[:2]
        teacher = prepare_teacher(teacher, example, compute.dtype, compute.channels_last)
        teacher = compute.place(teacher)
    cached = None if cache is None else cache / f"{key}.json"
    result = _read_accuracy(cached) if cached else None
    if result is None:
        result = evaluate(teacher, data.evaluation("test"), replace(compute, processes=ALONE))
        if cached:
            _remember(cached, lambda: write_json(cached, result))
    log.info("teacher %s: %.2f %% top-1", path, result["top1"])
    _warn(path, result["top1"], data, expected_top1)
    return teacher, result


def _warn(path: Path, top1: float, data: Pipeline, expected: float | None) -> None:
    """Say so if the accuracy is that of wrong weights or of wrong data."""
    chance = 100 / data.num_classes
    noise = math.sqrt(chance * (100 - chance) / len(data.data.test_labels))
    if top1 < chance + 3 * noise:
        log.warning(
            "teacher %s reaches %.2f %%, which is guessing among %d classes: check that it was "
            "trained on %s, with its classes in the same order and images normalised by the same "
            "data.mean and data.std",
            path,
            top1,
            data.num_classes,
            data.name,
        )
    if expected is not None and abs(top1 - expected) > TOLERANCE:
        log.warning(
            "teacher %s reaches %.2f %% but %.2f %% is published: check the weights and data",
            path,
            top1,
            expected,
        )


@torch.inference_mode()
def entropies_of_training_set(
    teacher: nn.Module,
    path: Path,
    data: Pipeline,
    compute: Compute,
    temperature: float,
    cache: Path,
    network: str = "",
) -> Tensor:
    """The teacher's entropy of each training image without augmentation.

    One pass over the set, once per weights, network, data, precision and τ′; then it is read from
    ``cache``.

    Args:
        teacher: of `load_teacher`.
        path: its file.
        temperature: τ′.
        network: as for `load_teacher`.

    Returns:
        ``(N,)`` in nats by `Batch.index`, on the CPU.
    """
    count = len(data.data.train_labels)
    file = cache / f"{_key(path, data, compute, network)}-entropy-{temperature:g}.npy"
    known = _read_entropies(file, count, math.log(data.num_classes))
    if known is not None:
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


def _key(path: Path, data: Pipeline, compute: Compute, network: str) -> str:
    """What an evaluation of a teacher depends on."""
    digest = weights_digest(path)
    also = f"-{hashlib.sha256(network.encode()).hexdigest()[:8]}" if network else ""
    return f"{digest[:16]}{also}-{data.fingerprint[:16]}-{compute.precision}"


def _read_accuracy(file: Path) -> dict[str, float] | None:
    """A cached evaluation, or ``None`` where there is none that could be one."""
    found = read_json(file)
    if not isinstance(found, dict) or found.keys() != {"top1", "top5"}:
        return None
    if not all(type(value) in (int, float) for value in found.values()):
        return None
    return found if 0 <= found["top1"] <= found["top5"] <= 100 else None


def _read_entropies(file: Path, count: int, most: float) -> np.ndarray | None:
    """Cached entropies of ``count`` images, or ``None`` where there are none that could be them."""
    try:
        with file.open("rb") as stream:
            found = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:  # not there, or damaged, at which numpy raises whatever it trips over
        return None
    if found.shape != (count,) or found.dtype != np.float32:
        return None
    # A comparison with NaN is false. Rounding may exceed the bound by little.
    return found if ((found >= -1e-3) & (found <= most + 1e-2)).all() else None


def _remember(file: Path, write: Callable[[], object]) -> None:
    """Write a cache; a place that cannot be written costs the same work next time, not the run."""
    try:
        if file.is_dir():  # whatever that is, it is kept
            file.rename(file.with_name(f"{file.name}.folder"))
        write()
    except OSError as error:
        log.warning("%s: not kept (%s)", file, error.strerror or error)
