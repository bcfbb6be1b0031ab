"""Everything of a detection run from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from eakd.checking import check_keys
from eakd.composing import options
from eakd.config import FACTS, needs_teacher, plain
from eakd.detection.boxes import BoxData
from eakd.detection.evaluation import check_evaluator, evaluate
from eakd.detection.pipeline import BoxPipeline
from eakd.detection.teacher import check_categories, load_teacher
from eakd.distillers.base import Distiller
from eakd.errors import UserError
from eakd.models.weights import load_weights
from eakd.places import MANIFEST
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.find_teacher import find_checkpoint, manifest_entry, weights_digest
from eakd.training.hints import teacher_command
from eakd.training.run import build_compute, build_weighting, check_num_classes
from eakd.training.schedule import Recipe
from eakd.training.task import Built

PIPELINE_KEYS = (
    *("short_sides", "long_side", "test_short_side", "flip", "keep_empty"),
    *("eval_batch_size", "workers"),
)
UNTAUGHT = "distiller=detection/none"  # trains a detector without a teacher
DATA_KEYS = ("name", "num_classes", "load", *PIPELINE_KEYS, *FACTS["data"])


def build_run(config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
    """Data, teacher, student and method of a run.

    Raises:
        UserError: a wrong value, named.
    """
    check_evaluator()
    weighting = build_weighting(config, compute)
    data = build_data(config, config.seed, compute, recipe)
    # Directly before the student, so that its weights depend on the seed alone.
    torch.manual_seed(config.seed)
    student = compute.place(build_detector(config.student, "student", data))
    teacher, metrics, inputs = None, {}, {}
    if needs_teacher(config):
        teacher, metrics, path = build_teacher(config, data, compute)
        inputs["teacher_digest"] = weights_digest(path)
    networks = {"student": student, "teacher": teacher, "weighting": weighting}
    distiller = build(config.distiller, "distiller", Distiller, **networks)
    return Built(data, compute.move(distiller), metrics, inputs=inputs)


def find_inputs(config: DictConfig) -> dict[str, str]:
    """Digests of the data set and the teacher's file as they lie there.

    Raises:
        UserError: one of them is not there.
    """
    found = {"data_fingerprint": build(config.data.load, "data", BoxData).fingerprint}
    if needs_teacher(config):
        found["teacher_digest"] = weights_digest(find_weights(config, "teacher", entry={}))
    return found


def build_data(config: DictConfig, seed: int, compute: Compute, recipe: Recipe) -> BoxPipeline:
    """The set and its pipeline from ``config.data``; this process's part of it."""
    raw = OmegaConf.to_container(config)
    check_keys(raw, dict.fromkeys(DATA_KEYS), at="data")
    data = build(config.data.load, "data", BoxData)
    check_num_classes(config, data.num_classes)
    settings = {k: plain(config.data[k]) for k in PIPELINE_KEYS if k in config.data}
    try:
        return BoxPipeline(
            data,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            steps_per_epoch=recipe.steps_per_epoch,
            device=compute.device,
            seed=seed,
            part=compute.processes.part,
            **settings,
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error


def build_detector(node: DictConfig, role: str, data: BoxPipeline) -> nn.Module:
    """The network of a config node; its ``categories`` are those of the set.

    Raises:
        UserError: something that detects nothing.
    """
    if role != "student" and "backbone_weights" in node:
        node = OmegaConf.merge(node, {"backbone_weights": None})  # its own weights come next
    model = build(node, role, nn.Module, num_classes=data.num_classes)
    if not callable(getattr(model, "detect", None)):
        names = [name for name in options("student") if name.startswith("frcnn_")]
        raise UserError(
            f"{role}: found {node.name}, which detects nothing, allowed with data={data.name} is "
            f"one of {', '.join(names)}"
        )
    model.categories = list(zip(data.data.category_ids, data.data.classes, strict=True))
    return model


def build_teacher(
    config: DictConfig, data: BoxPipeline, compute: Compute
) -> tuple[nn.Module, dict[str, float], Path]:
    """The trained teacher of ``config.teacher``, its metrics on the test split, and its file."""
    entry = manifest_entry(MANIFEST, config.data.name, config.teacher.name)
    path = find_weights(config, "teacher", entry)
    model = build_detector(config.teacher, "teacher", data)
    node = {k: v for k, v in plain(config.teacher).items() if k not in FACTS["teacher"][1:]}
    teacher, metrics = load_teacher(
        model,
        path,
        data,
        compute,
        config.fold_batchnorm,
        None if path.suffix == ".safetensors" else entry.get("ap"),
        Path(config.checkpoint_root) / "evaluations",
        json.dumps(node, sort_keys=True, default=str),
    )
    return teacher, metrics, path


def find_weights(config: DictConfig, role: str, entry: dict[str, Any]) -> Path:
    """The file behind ``teacher.checkpoint``, or behind the ``checkpoint`` of ``model``."""
    ours = role == "teacher"
    return find_checkpoint(
        config.teacher.checkpoint if ours else config.checkpoint,
        config.data.name,
        config[role].name,
        Path(config.checkpoint_root),
        entry,
        command=lambda: teacher_command(config).replace(" distiller=none ", f" {UNTAUGHT} "),
        key="teacher.checkpoint" if ours else "checkpoint",
    )


def evaluate_checkpoint(config: DictConfig) -> dict[str, float]:
    """COCO's numbers of ``config.checkpoint``; printed, and returned in percent."""
    check_evaluator()
    compute = build_compute(config)
    data = build_data(config, 0, compute, Recipe(epochs=1, batch_size=1))
    model = build_detector(config.model, "model", data)
    path = find_weights(config, "model", manifest_entry(MANIFEST, data.name, config.model.name))
    check_categories("checkpoint", path, data)
    load_weights(model, path)
    numbers = evaluate(compute.place(model), data, "test", compute)[0]
    text = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
    print(f"{path}: {text} (percent) on {data.name} test")
    return numbers
