"""Reading what runs recorded of easy and hard samples, for Figs. 3, 4 and 5.

All of it is in ``dynamics.jsonl`` (`eakd.training.dynamics`): ten equal parts of the training set,
by teacher entropy at the run's own τ′, lowest first, after each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eakd.analysis.runs import DETECTION, Run, Runs
from eakd.config import DEFAULT_TASK
from eakd.errors import UserError, check_choice
from eakd.training.reading import SEGMENTS, read_json

RANKINGS = ("clean", "epoch")
DIVERGENCES = {"forward_kl": "KLD", "reverse_kl": "reverse KLD", "jsd": "JSD"}
# What the recorded divergence of an answer is, by ``distiller.level`` of language models.
OF_ANSWERS = {
    "sequence": "summed over an answer's tokens",
    "sequence_mean": "the mean over an answer's tokens times the mean length of a step's answers",
}


def ranking_of(runs: Runs, by: str) -> tuple[str, tuple[str, ...]]:
    """The ranking to use and what is to be said of it.

    ``clean`` is one fixed set of samples a segment, by the teacher's entropy of the samples without
    augmentation. Runs that did not record it have ``epoch``: the segments of each epoch anew. Only
    images have a ``clean`` one.

    Raises:
        UserError: a wrong ``by``, or a run without a teacher's entropies.
    """
    check_choice("by", by, RANKINGS)
    for run in runs:
        known = run.dynamics[-1]["by"] if run.dynamics else {}
        if not set(RANKINGS) & set(known):
            raise UserError(
                f"runs: found method {run.method}, allowed is a method with a teacher, and a run "
                "that recorded its dynamics"
            )
    everywhere = all(by in line["by"] for run in runs for line in run.dynamics)
    used = by if everywhere else "epoch"
    told = {
        "clean": "Segments are ten equal parts of the training set by the teacher's entropy of "
        "the samples without augmentation, the same samples in every epoch.",
        "epoch": "Segments are ten equal parts of each epoch by the teacher's entropy of the "
        "samples as the epoch saw them, so the samples in them may change.",
    }
    notes = [told[used]]
    if used != by and all(run.task == DEFAULT_TASK for run in runs):  # others never do
        notes.append("Not every run recorded the entropies of samples without augmentation.")
    return used, tuple(notes)


def recorded(run: Run, by: str, value: str, statistic: str = "mean") -> np.ndarray:
    """``(epochs, 10)`` of one of the recorded values; NaN where there is none."""
    empty = [None] * SEGMENTS
    rows = [line["by"][by].get(value, {}).get(statistic, empty) for line in run.dynamics]
    return np.array(rows, dtype=float)


def sizes(run: Run, by: str) -> np.ndarray:
    """``(epochs, 10)`` samples of each segment."""
    return np.array([line["by"][by]["samples"] for line in run.dynamics], dtype=float)


def epochs_of(runs: Sequence[Run]) -> np.ndarray:
    """The epochs that all of the runs recorded.

    Raises:
        UserError: there is none.
    """
    shared = set.intersection(*({line["epoch"] for line in run.dynamics} for run in runs))
    if not shared:
        raise UserError("runs: found none in which the same epochs are recorded")
    return np.array(sorted(shared))


def at_epochs(run: Run, values: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The rows of ``values`` for these epochs."""
    places = {line["epoch"]: place for place, line in enumerate(run.dynamics)}
    return values[[places[epoch] for epoch in epochs]]


def about(runs: Runs) -> dict[str, Any]:
    """What the caption says of runs that are compared on the training set."""
    first = runs[0]
    return {
        "seeds": runs.seeds,
        "epochs": sorted({run.epochs for run in runs}),
        "samples": int(
            sum(first.dynamics[-1]["by"][next(iter(first.dynamics[-1]["by"]))]["samples"])
        ),
        "split": "train",
        "entropy_temperature": sorted({run.entropy_temperature for run in runs}),
    }


def loss_weight(run: Run) -> float:
    """What a method multiplies its distillation loss with, which is no part of the divergence."""
    found = run.config["distiller"].get("kd_weight", 1.0)
    return float(found) or 1.0


def divergence_of(runs: Runs) -> tuple[str, str]:
    """What the recorded distillation loss is, but for its coefficient: for an axis, and in words.

    Source: the methods' settings. Those for images and boxes multiply by τ², those for texts only
    with ``scale_by_temperature``.
    """
    found = dict.fromkeys(_divergence(run.config["distiller"]) for run in runs)
    labels = dict.fromkeys(label for label, _ in found)
    words = " or ".join(words for _, words in found)
    return (next(iter(labels)) if len(labels) == 1 else "divergence"), words


def _divergence(distiller: Mapping[str, Any]) -> tuple[str, str]:
    if "divergence" not in distiller:
        return "KLD · τ²", "KLD at the loss temperature times its square"
    name = DIVERGENCES.get(distiller["divergence"], str(distiller["divergence"]))
    of = OF_ANSWERS.get(distiller.get("level", ""), "the mean over an answer's tokens")
    if distiller.get("scale_by_temperature"):
        return f"{name} · τ²", f"{name} at the loss temperature times its square, {of}"
    return f"{name}, nats", f"{name} at the loss temperature without a factor τ², {of}"


def entropy_bound(run: Run) -> float | None:
    """log of the number of outputs that a run's entropies are over, in nats.

    Of images their classes; of boxes the background too, unless the weight sees the foreground
    alone; of texts the tokens of the tokenizer. ``None`` where the record does not tell.
    """
    outputs = run.config["data"].get("num_classes")
    if outputs is None:
        outputs = _tokens(run)
    elif run.task == DETECTION:
        outputs += run.config["distiller"].get("classes", "with_background") == "with_background"
    return None if outputs is None else math.log(outputs)


def _tokens(run: Run) -> int | None:
    """The size of the tokenizer that lies beside a language model's weights."""
    for folder in ("last", "best"):
        found = read_json(run.directory / folder / "tokenizer.json")
        if isinstance(found, dict):
            vocabulary = found.get("model", {}).get("vocab", {})  # lists of (text, score) in some
            known = {each if isinstance(each, str) else each[0] for each in vocabulary}
            return len(known | {each["content"] for each in found.get("added_tokens", ())}) or None
    return None
