"""Everything of a language run from its config."""

from __future__ import annotations

import inspect
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from eakd.checking import check_keys
from eakd.config import FACTS, needs_teacher, plain
from eakd.distillers.base import Distiller
from eakd.errors import UserError, check_number
from eakd.files import write_json
from eakd.language.batches import TextData, joined_fingerprint
from eakd.language.cache import HiddenTable
from eakd.language.distillers import check_weighting
from eakd.language.evaluation import evaluate
from eakd.language.hub import directory_digest, find_directory
from eakd.language.models import (
    check_causal,
    check_same_tokens,
    check_vocabulary,
    load_model,
    load_tokenizer,
    positions_of,
    split,
)
from eakd.language.source import TextSource
from eakd.language.text import Rows, check_lengths
from eakd.places import command_words
from eakd.targets import build, target_of
from eakd.training.device import Compute
from eakd.training.find_teacher import shipped_teacher
from eakd.training.hints import config_dir_words, teacher_overrides
from eakd.training.reading import read_json
from eakd.training.schedule import Recipe
from eakd.training.task import Built
from eakd.weighting import WeightFunction

log = logging.getLogger(__name__)

LENGTHS = ("max_prompt_length", "max_length", "template", "long_prompts", "drop_empty")
DATA_KEYS = ("name", "load", "tokenizer", *LENGTHS, "tokens_per_batch", "rouge_samples")
# Models that nobody has taught the task: they start students, and are no teachers.
UNTAUGHT = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def build_run(config: DictConfig, recipe: Recipe, compute: Compute) -> tuple[Built, Any]:
    """Data, teacher, student and method of a run; and the tokenizer.

    Raises:
        UserError: a wrong value, named.
    """
    check_keys(OmegaConf.to_container(config), dict.fromkeys((*DATA_KEYS, *FACTS["data"])), "data")
    check_number("data.rouge_samples", config.data.rouge_samples, at_least=0, integer=True)
    weighting = build(config.weighting, "weighting", WeightFunction)
    check_weighting(weighting)  # before the texts are read
    method = target_of(config.distiller, "distiller", Distiller)
    for role in ("student", *(["teacher"] if needs_teacher(config) else [])):
        check_role(config, role)
    source = build(config.data.load, "data", TextSource)
    tokenizer = load_run_tokenizer(config, source)
    # The teacher's files are looked for first: reading the rows takes longer.
    where = find_teacher(config) if needs_teacher(config) else None
    if where is not None:
        check_same_tokens(tokenizer, load_tokenizer(where, "teacher", trusts_code(config.teacher)))
    rows = load_data_rows(config, source, tokenizer)
    # Directly before the student, so that its weights depend on the seed alone.
    torch.manual_seed(config.seed)
    student = build(config.student, "student", nn.Module, tokenizer=tokenizer)
    example = (*rows["train"][0].prompt_ids, *rows["train"][0].response_ids)
    check_model(student, "student", tokenizer, config, example)
    data = build_data(config, rows, recipe, compute)
    student = student.to(compute.device)
    inputs = start_digest(config)
    teacher, metrics = None, {}
    if where is not None:
        teacher = load_model(where, "teacher", trusts_code(config.teacher), compute.dtype)
        check_model(teacher, "teacher", tokenizer, config, example)
        teacher = teacher.to(compute.device)
        inputs["teacher_digest"] = directory_digest(where)
        known = config, teacher, inputs["teacher_digest"], data, compute, len(tokenizer)
        metrics = teacher_metrics(*known)
    if compute.compile:  # in place: names in state dicts stay
        for model in filter(None, (student, teacher)):
            model.base_model.compile()
    extra = {"student": student, "teacher": teacher, "weighting": weighting}
    extra |= {"vocabulary": len(tokenizer)}
    if "mean" in inspect.signature(method).parameters:
        extra["mean"] = compute.processes.mean
    distiller = build(config.distiller, "distiller", Distiller, **extra)
    notes = {}
    if teacher is not None:
        notes["teacher_table"] = use_table(config, teacher, data, compute, inputs)
        inputs |= notes  # rounding depends on it, so a run keeps to it
    return Built(data, distiller, metrics, None, inputs, notes), tokenizer


def check_role(config: DictConfig, role: str) -> None:
    """Raise `UserError` unless a network is a language model: one that takes a tokenizer."""
    target = target_of(config[role], role, nn.Module)
    if "tokenizer" not in inspect.signature(target).parameters:
        raise UserError(
            f"{role}: found {config[role].name}, which is no language model, allowed with "
            f"data={config.data.name} is gpt2, gpt2_medium, gpt2_large, gpt2_xl, tiny_gpt_s, "
            f"tiny_gpt_t, or hf with {role}.path=DIRECTORY"
        )


def trusts_code(node: DictConfig) -> bool:
    """Whether a network may bring code of its own."""
    return bool(node.get("trust_remote_code", False))


def load_run_tokenizer(config: DictConfig, source: TextSource) -> Any:
    """The tokenizer of a run: ``data.tokenizer``, the student's own, or the data's."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer, "data.tokenizer")
    if config.student.get("path") is not None:
        return load_tokenizer(config.student.path, "student.path", trusts_code(config.student))
    if source.tokenizer is not None:
        return load_tokenizer(source.tokenizer, "data.tokenizer")
    raise UserError(
        f"data.tokenizer: found none for {config.student.name}, which begins with random weights, "
        "allowed is a directory with a tokenizer, or a tokenizer.json"
    )


def load_data_rows(config: DictConfig, source: TextSource, tokenizer: Any) -> dict[str, Rows]:
    """The rows of each split, as ``config.data`` wants them."""
    settings = {name: plain(config.data)[name] for name in LENGTHS}
    try:
        check_lengths(settings["max_prompt_length"], settings["max_length"])
        return source.load(tokenizer, **settings)
    except UserError as error:
        known = (*LENGTHS, "tokenizer")
        raise UserError(f"data.{error}" if str(error).startswith(known) else str(error)) from error


def build_data(
    config: DictConfig, rows: dict[str, Rows], recipe: Recipe, compute: Compute
) -> TextData:
    """This process's part of the steps."""
    return TextData(
        rows["train"],
        {name: each for name, each in rows.items() if name != "train"},
        batch_size=recipe.batch_size,
        seed=config.seed,
        tokens_per_batch=config.data.tokens_per_batch,
        accumulate=recipe.accumulate,
        steps_per_epoch=recipe.steps_per_epoch,
        device=compute.device,
        part=compute.processes.part,
    )


def check_model(
    model: nn.Module, role: str, tokenizer: Any, config: DictConfig, example: tuple[int, ...]
) -> None:
    """Raise `UserError` unless a model can read the data and says numbers; still on the CPU."""
    check_vocabulary(model, tokenizer, role)
    most = positions_of(model)
    if most is not None and config.data.max_length > most:
        raise UserError(
            f"data.max_length: found {config.data.max_length}, allowed is at most {most}, the "
            f"positions of {config[role].name}"
        )
    check_causal(model, role, example)
    if split(model) is None:
        log.info("%s: its head is no plain linear map, so its own logits are used", role)


def find_teacher(config: DictConfig, download: bool = True) -> Path:
    """The directory behind ``teacher.checkpoint``.

    ``auto`` is ``checkpoint_root/<data>/<name>``, or else one that the package brings with it, or
    what ``teacher.path`` names, unless that is a model that nobody has taught the task.

    Raises:
        UserError: no directory; the message says which command trains the teacher.
    """
    given, name = config.teacher.checkpoint, config.teacher.name
    if given != "auto":
        return find_directory(given, "teacher.checkpoint", download)
    place = Path(config.checkpoint_root) / config.data.name / name
    if (place / "config.json").is_file():
        return place
    shipped = shipped_teacher(config)
    if shipped is not None:
        return shipped
    path = config.teacher.get("path")
    if path is not None and path not in UNTAUGHT:
        return find_directory(path, "teacher.path", download)
    raise UserError(
        f"teacher.checkpoint: found no trained {name} for {config.data.name} ({place}), allowed is "
        f"a directory; train it with: {' '.join(teacher_words(config))}"
    )


def teacher_words(config: DictConfig) -> list[str]:
    """The command that trains the teacher which a run looks for."""
    words = [
        "distiller=language/sft" if word == "distiller=none" else word
        for word in teacher_overrides(config)
    ]
    return [*command_words("train"), *config_dir_words(), *words]


def start_digest(config: DictConfig) -> dict[str, str]:
    """The digest of the weights that a student starts from, if it does not start from a seed."""
    path = config.student.get("path")
    if path is None:
        return {}
    return {"student_digest": directory_digest(find_directory(path, "student.path", False))}


def find_inputs(config: DictConfig) -> dict[str, str]:
    """Digests of the rows, the student's start and the teacher; nothing is downloaded.

    Raises:
        UserError: one of them is not there.
    """
    source = build(config.data.load, "data", TextSource)
    rows = load_data_rows(config, source, load_run_tokenizer(config, source))
    found = {"data_fingerprint": joined_fingerprint(rows), **start_digest(config)}
    if needs_teacher(config):
        found["teacher_digest"] = directory_digest(find_teacher(config, download=False))
    return found


def teacher_metrics(
    config: DictConfig,
    teacher: nn.Module,
    digest: str,
    data: TextData,
    compute: Compute,
    vocabulary: int,
) -> dict[str, float]:
    """Token accuracy and loss of the teacher on the test split, computed once and kept."""
    name = f"{digest[:16]}-{data.fingerprint[:16]}-{compute.precision}.json"
    file = Path(config.checkpoint_root) / "evaluations" / name
    found = read_json(file)
    keys = {"token_accuracy", "loss"}
    if not isinstance(found, dict) or found.keys() != keys:
        found = evaluate(teacher, data, "test", compute, vocabulary)
        try:
            if compute.processes.first:
                write_json(file, found)
        except OSError as error:
            log.warning("%s: not kept (%s)", file, error.strerror or error)
    log.info("teacher: %.2f %% of tokens, loss %.4f", found["token_accuracy"], found["loss"])
    return found


def use_table(
    config: DictConfig,
    teacher: nn.Module,
    data: TextData,
    compute: Compute,
    inputs: dict[str, str],
) -> str:
    """Let a table of hidden states answer for the teacher, as ``config.teacher.table`` says.

    Returns:
        The name of the table that answers, or ``"none"``.

    Raises:
        UserError: a table that is to be built cannot be.
    """
    mode, reason = config.teacher.get("table", "auto"), None
    root = Path(config.checkpoint_root) / "answers"
    if not mode:
        return "none"
    if split(teacher) is None:
        reason = "the teacher's head is no plain linear map"
    elif config.resume:
        before = read_json(Path(config.run_dir) / "environment.json") or {}
        if before.get("teacher_table") == "none":
            reason = "this run began without"
    if reason is None:
        table = HiddenTable(root, teacher, inputs["teacher_digest"], data, compute)
        folder = table.table.folder
        if mode == "auto" and not folder.is_dir():
            return "none"
        data.hidden = table.open()
        if data.hidden is None and mode is True:
            shown = sys.stderr.isatty() if config.progress is None else config.progress
            table.build(shown)
            data.hidden = table.open()
        if data.hidden is not None:
            log.info("teacher.table: %s answers for the teacher", table.table)
            return folder.name
        reason = f"{folder} is unfinished or damaged, teacher.table=true completes it"
    log.info("teacher.table: not used, %s", reason)
    return "none"
