"""Finding, loading and checking a trained teacher."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from eakd.data import Pipeline
from eakd.download import Archive, download
from eakd.errors import UserError
from eakd.files import write_json
from eakd.models.inference import prepare_teacher
from eakd.models.zoo import load_weights
from eakd.training.device import Compute
from eakd.training.evaluation import evaluate
from eakd.training.record import read_json

log = logging.getLogger(__name__)

# A teacher further than this from its published top-1 (percent) has the wrong weights or data.
TOLERANCE = 0.2


def manifest_entry(manifest: Path, data: str, name: str) -> dict[str, Any]:
    """What ``checkpoints/manifest.yaml`` says of a teacher: url, sha256, top1; empty if nothing."""
    if not manifest.exists():
        return {}
    entries = yaml.safe_load(manifest.read_text(encoding="utf-8")) or {}
    return (entries.get(data) or {}).get(name) or {}


def find_checkpoint(
    checkpoint: str, data: str, name: str, root: Path, entry: dict[str, Any]
) -> Path:
    """The file behind ``teacher.checkpoint``.

    Args:
        checkpoint: a path, or ``"auto"``: ``root/<data>/<name>.safetensors`` or ``.pth``, then a
            download if ``entry`` has a URL and a SHA-256.

    Raises:
        UserError: no file; the message says which command trains the teacher.
    """
    if checkpoint != "auto":
        path = Path(checkpoint)
        if not path.is_file():
            raise UserError(
                f"teacher.checkpoint: found no file {checkpoint!r}, allowed is auto or a file"
            )
        return path
    places = [root / data / f"{name}{suffix}" for suffix in (".safetensors", ".pth")]
    for path in places:
        if path.is_file():
            return path
    url, digest = entry.get("url"), entry.get("sha256")
    if url and digest:
        archive = Archive(f"{name} for {data}", url, digest)
        return download(archive, root / data, f"{name}.pth", key="teacher.checkpoint")
    source = entry.get("source")
    published = f", or unpack {source} and pass teacher.checkpoint=FILE" if source else ""
    raise UserError(
        f"teacher.checkpoint: found no trained {name} for {data} ({places[0]}); train it with: "
        f"python scripts/train.py data={data} student={name} distiller=none save_teacher=true"
        + published
    )


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
