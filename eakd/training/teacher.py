"""Loading and checking a trained teacher."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from torch import nn

from eakd.data import Pipeline
from eakd.files import write_json
from eakd.models.inference import prepare_teacher
from eakd.models.zoo import load_weights
from eakd.training.device import Compute
from eakd.training.evaluation import evaluate
from eakd.training.record import read_json

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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    key = f"{digest[:16]}-{data.fingerprint[:16]}-{compute.precision}.json"
    cached = cache / key if cache else None
    result = read_json(cached) if cached else None
    if result is None:
        result = evaluate(teacher, data.evaluation("test"), compute)
        if cached:
            write_json(cached, result)
    log.info("teacher %s: %.2f %% top-1", path, result["top1"])
    if expected_top1 is not None and abs(result["top1"] - expected_top1) > TOLERANCE:
        log.warning(
            "teacher %s reaches %.2f %% but %.2f %% is published: check the weights and data",
            *(path, result["top1"], expected_top1),
        )
    return teacher, result
