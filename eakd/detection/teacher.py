"""Loading and checking a trained teacher, and what weights tell of the classes they know."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from eakd.detection.evaluation import METRICS, evaluate
from eakd.detection.faster_rcnn import frozen_teacher
from eakd.detection.pipeline import BoxPipeline
from eakd.errors import UserError, shortened
from eakd.files import write_json
from eakd.models.weights import load_weights
from eakd.training.device import Compute
from eakd.training.find_teacher import weights_digest
from eakd.training.parallel import ALONE
from eakd.training.reading import read_json

log = logging.getLogger(__name__)

# A teacher further than this from its published AP (percent) has the wrong weights or data.
TOLERANCE = 0.3
CATEGORIES = "categories"  # in the header of weights: [[id, name], …] in the order of labels


def load_teacher(
    model: nn.Module,
    path: Path,
    data: BoxPipeline,
    compute: Compute,
    fold: bool = True,
    expected_ap: float | None = None,
    cache: Path | None = None,
    network: str = "",
) -> tuple[nn.Module, dict[str, float]]:
    """Load, place and evaluate a teacher.

    The evaluation is done once per weights, network, data, sizes and precision, and cached.

    Args:
        cache: the folder for that.
        network: whatever besides the weights decides what ``model`` computes; any text.

    Returns:
        The frozen network, ready on the device, and its metrics on the test split.

    Raises:
        UserError: no such weights, see `load_weights`, or those of other classes.
    """
    teacher = open_teacher(model, path, data, compute, fold)
    facts = [weights_digest(path), data.fingerprint, compute.precision, network]
    facts += [data.test_short_side, data.long_side, data.eval_batch_size]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    file = None if cache is None else cache / f"{key[:32]}.json"
    metrics = read_json(file) if file else None
    if not isinstance(metrics, dict) or metrics.keys() != METRICS.keys():
        found = evaluate(teacher, data, "test", replace(compute, processes=ALONE))[0]
        metrics = {name: found[name] for name in METRICS}
        try:
            if file:
                write_json(file, metrics)
        except OSError as error:  # which costs the same work next time, not the run
            log.warning("%s: not kept (%s)", file, error.strerror or error)
    log.info("teacher %s: AP %.2f %%", path, metrics["ap"])
    if metrics["ap"] < 1 or (expected_ap and abs(metrics["ap"] - expected_ap) > TOLERANCE):
        log.warning(
            "teacher %s reaches AP %.2f %%%s: check that it was trained on the classes of %s, in "
            "the order of their ids",
            *(path, metrics["ap"]),
            f" but {expected_ap:.2f} % is published" if expected_ap else "",
            data.name,
        )
    return teacher, metrics


def open_teacher(
    model: nn.Module, path: Path, data: BoxPipeline, compute: Compute, fold: bool = True
) -> nn.Module:
    """The frozen network with the weights in a file, ready on the device; see `load_teacher`."""
    check_categories("teacher.checkpoint", path, data)
    load_weights(model, path)
    return compute.place(frozen_teacher(compute.move(model), compute.dtype, fold))


def read_categories(path: Path) -> list[tuple[int, str]] | None:
    """Id and name of each label, as the header of weights tells; ``None`` if it does not."""
    try:
        with safe_open(path, "pt") as file:
            return [(i, str(name)) for i, name in json.loads(file.metadata()[CATEGORIES])]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def check_categories(key: str, path: Path, data: BoxPipeline) -> None:
    """Refuse weights that name other classes than the set has.

    Raises:
        UserError: with both lists.
    """
    known, wanted = read_categories(path), data.data.classes
    found = tuple(name for _, name in known or ())
    if known is not None and found != wanted:
        raise UserError(
            f"{key}: found {len(found)} classes ({shortened(', '.join(found))}), allowed are the "
            f"{len(wanted)} of data.root ({shortened(', '.join(wanted))})"
        )
