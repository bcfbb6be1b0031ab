"""Everything of a classification run from its config."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from eakd.checking import check_keys
from eakd.classification.answers import (
    AnswerTable,
    answered_sizes,
    facts_of_table,
)
from eakd.classification.evaluation import evaluate
from eakd.classification.teacher import entropies_of_training_set, load_teacher
from eakd.config import FACTS, needs_teacher, plain
from eakd.data import ImageData, Pipeline
from eakd.data.pipeline import StrongView
from eakd.data.randaugment import RandAugment
from eakd.distillers.base import Distiller
from eakd.errors import UserError
from eakd.models.weights import load_weights
from eakd.places import MANIFEST
from eakd.targets import build, target_of
from eakd.training.device import Compute
from eakd.training.find_teacher import find_checkpoint, manifest_entry, weights_digest
from eakd.training.hints import teacher_command
from eakd.training.parallel import synchronize_batchnorm
from eakd.training.reading import read_json
from eakd.training.run import build_compute, build_weighting, check_num_classes
from eakd.training.schedule import Recipe
from eakd.training.table import in_training_mode, placed
from eakd.training.task import Built
from eakd.weighting import Weighting

log = logging.getLogger(__name__)

STRONG_VIEWS = {"none": None, "randaugment": RandAugment()}
PIPELINE_KEYS = ("mean", "std", "crop_padding", "flip", "rotation", "val_fraction")
DATA_KEYS = ("name", "num_classes", "load", *PIPELINE_KEYS, *FACTS["data"])


def build_run(config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
    """Data, teacher, student and method of a run.

    Raises:
        UserError: a wrong value, named.
    """
    together = compute.processes.size > 1
    weighting = build_weighting(config, compute)
    if config.sync_batchnorm and compute.device.type != "cuda":
        raise UserError(
            f"sync_batchnorm: found true on {compute.device.type}, allowed is false, or true on "
            "cuda"
        )
    synchronize = config.sync_batchnorm and together
    method = target_of(config.distiller, "distiller", Distiller)
    data = build_data(config, config.seed, compute, recipe, strong_view(recipe, method))
    # Directly before the student, so that its weights depend on the seed alone.
    torch.manual_seed(config.seed)
    student = build_model(config.student, "student", data.num_classes)
    if synchronize:
        student = synchronize_batchnorm(student)
    student = compute.place(student)
    teacher, metrics, ranking, inputs = None, {}, None, {}
    if needs_teacher(config):
        fold = config.fold_batchnorm and method.folds_teacher
        teacher, metrics, path = build_teacher(config, data, compute, fold)
        inputs["teacher_digest"] = weights_digest(path)
        if config.record.dynamics:
            temperature = getattr(weighting, "entropy_temperature", 3.0)
            cache = Path(config.checkpoint_root) / "evaluations"
            ranking = entropies_of_training_set(
                teacher, path, data, compute, temperature, cache, network=network_text(config)
            )
    distiller = build_distiller(config, student, teacher, weighting, data.image_size, compute)
    notes = {}
    if teacher is not None:
        facts = facts_of_table(inputs["teacher_digest"], data, compute, fold, network_text(config))
        notes["teacher_table"] = use_table(config, distiller, data, compute, facts)
        if compute.device.type != "cpu":  # there a table may change bits, so a run keeps to it
            inputs |= notes
    if synchronize:  # what the method trains besides the student, which it may hold lists of
        for name, module in distiller.named_children():
            if module is not student:
                setattr(distiller, name, synchronize_batchnorm(module))
    return Built(data, distiller, metrics, ranking, inputs, notes)


def use_table(
    config: DictConfig,
    distiller: Distiller,
    data: Pipeline,
    compute: Compute,
    facts: dict[str, Any],
) -> str:
    """Let a table answer for the teacher, as ``config.teacher.table`` says.

    Returns:
        The name of the table that answers, or ``"none"``.

    Raises:
        UserError: a table that is to be built cannot be.
    """
    mode = config.teacher.get("table", "auto")
    table = AnswerTable(Path(config.checkpoint_root) / "answers", facts)
    if not mode or (mode == "auto" and not table.folder.is_dir()):
        return "none"
    reason = why_no_table(distiller, data)
    if reason is None and compute.device.type != "cpu" and config.resume:
        before = read_json(Path(config.run_dir) / "environment.json") or {}
        if before.get("teacher_table") == "none":
            reason = "this run began without"
    answers = table.open() if reason is None else None
    run = distiller.teacher, data, compute
    if reason is None and (answers is not None or mode is True):
        # Before a table is built, too: it might be of no use.
        data.answered = answered_sizes(answers, *run, doubled=distiller.needs_strong_view)
        if answers is None and data.answered:
            shown = sys.stderr.isatty() if config.progress is None else config.progress
            table.build(*run, shown)
            answers = table.open()
            if answers is not None:
                data.answered = answered_sizes(answers, *run, doubled=distiller.needs_strong_view)
        if not data.answered:
            reason = f"the teacher rounds batches of {data.batch_sizes()} differently here"
    if reason is None and answers is None:
        reason = f"{table.folder} is unfinished or damaged, teacher.table=true completes it"
    if reason is not None:
        log.info("teacher.table: not used, %s", reason)
        return "none"
    data.answers = placed(answers, compute.device)
    others = sorted(data.batch_sizes() - data.answered)
    log.info(
        "teacher.table: %s answers for the teacher%s",
        table,
        f", but for batches of {others}, which round differently" if others else "",
    )
    return table.folder.name


def why_no_table(distiller: Distiller, data: Pipeline) -> str | None:
    """Why no table can answer for the teacher, or ``None`` if one can."""
    if not distiller.takes_answers:
        return f"{type(distiller).__name__} asks the teacher for more than logits"
    if in_training_mode(distiller.teacher):
        return "the teacher runs in training mode"
    if data.views is None:
        return "data.rotation makes views without number"
    return None


def find_inputs(config: DictConfig) -> dict[str, str]:
    """Digests of the data set and the teacher's file as they lie there; nothing is downloaded.

    Raises:
        UserError: one of them is not there.
    """
    load = config.data.load.copy()
    if "download" in load:
        load.download = False
    found = {"data_fingerprint": build(load, "data", ImageData).fingerprint}
    if needs_teacher(config):
        root, name = Path(config.checkpoint_root), config.teacher.name
        path = find_checkpoint(config.teacher.checkpoint, config.data.name, name, root, entry={})
        found["teacher_digest"] = weights_digest(path)
    return found


def strong_view(recipe: Recipe, method: type[Distiller]) -> StrongView | None:
    """The augmentation of the second view that ``recipe`` asks for, or ``None`` for no such view.

    Raises:
        UserError: ``method`` needs a second view and ``recipe`` has none.
    """
    name = recipe.strong_view
    if name == "auto":
        name = "randaugment" if method.needs_strong_view else "none"
    method.check_strong_view(name != "none")
    return STRONG_VIEWS[name]


def build_data(
    config: DictConfig,
    seed: int,
    compute: Compute,
    recipe: Recipe,
    view: StrongView | None = None,
) -> Pipeline:
    """The data set and its device pipeline from ``config.data``; this process's part of it."""
    raw = OmegaConf.to_container(config)
    check_keys(raw, dict.fromkeys(DATA_KEYS), at="data")
    for key in PIPELINE_KEYS:
        if key not in config.data:
            raise UserError(f"data.{key}: found no value, which images need")
    data = build(config.data.load, "data", ImageData)
    check_num_classes(config, data.num_classes)
    try:
        return Pipeline(
            data,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            steps_per_epoch=recipe.steps_per_epoch,
            device=compute.device,
            seed=seed,
            strong_view=view,
            part=compute.processes.part,
            **{key: plain(config.data[key]) for key in PIPELINE_KEYS},
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error


def build_model(node: DictConfig, role: str, num_classes: int) -> Any:
    """The network of ``config.student`` or ``config.teacher``."""
    return build(node, role, nn.Module, num_classes=num_classes)


def build_distiller(
    config: DictConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    weighting: Weighting | None,
    image_size: int,
    compute: Compute,
) -> Distiller:
    """The method of ``config.distiller`` around networks that are already on the device."""
    parts: dict[str, Any] = {"student": student, "teacher": teacher, "weighting": weighting}
    method = target_of(config.distiller, "distiller", Distiller)
    if "image_size" in inspect.signature(method).parameters:  # modules sized by a dry run
        parts["image_size"] = image_size
    distiller = build(config.distiller, "distiller", Distiller, **parts)
    return compute.move(distiller)  # what the method trains besides the student


def build_teacher(
    config: DictConfig, data: Pipeline, compute: Compute, fold: bool
) -> tuple[nn.Module, dict[str, float], Path]:
    """The trained teacher of ``config.teacher``, its test accuracy, and its file."""
    root = Path(config.checkpoint_root)
    name = config.teacher.name
    entry = manifest_entry(MANIFEST, config.data.name, name)
    path = find_checkpoint(
        config.teacher.checkpoint,
        config.data.name,
        name,
        root,
        entry,
        command=lambda: teacher_command(config),
    )
    model = build_model(config.teacher, "teacher", data.num_classes)
    # The published accuracy belongs to the zoo's files, not to teachers trained here.
    expected = None if path.suffix == ".safetensors" else entry.get("top1")
    teacher, metrics = load_teacher(
        model,
        path,
        data,
        compute,
        fold,
        expected,
        cache=root / "evaluations",
        network=network_text(config),
    )
    return teacher, metrics, path


def network_text(config: DictConfig) -> str:
    """What besides its weights decides what the teacher answers, such as its input size."""
    node = plain(config.teacher)
    for key in FACTS["teacher"][1:]:  # all but the name
        node.pop(key, None)
    return json.dumps(node, sort_keys=True, default=str)


def evaluate_checkpoint(config: DictConfig) -> dict[str, float]:
    """Test accuracy of ``config.checkpoint``; printed, and returned in percent."""
    compute = build_compute(config)
    recipe = Recipe(epochs=1, batch_size=config.batch_size)
    data = build_data(config, seed=0, compute=compute, recipe=recipe)
    model = build_model(config.model, "model", data.num_classes)
    root, name = Path(config.checkpoint_root), config.model.name
    entry = manifest_entry(MANIFEST, config.data.name, name)
    path = find_checkpoint(
        config.checkpoint,
        config.data.name,
        name,
        root,
        entry,
        command=lambda: teacher_command(config),
        key="checkpoint",
    )
    load_weights(model, path)
    result = evaluate(compute.place(model), data.evaluation("test"), compute)
    print(f"{path}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {data.name} test")
    return result
