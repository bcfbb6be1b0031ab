"""Reading what runs recorded of easy and hard samples, for Figs. 3, 4 and 5.

All of it is in ``dynamics.jsonl`` (`eakd.training.dynamics`): ten equal parts of the training set,
by teacher entropy at the run's own τ′, lowest first, after each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eakd.analysis.marks import display
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import difference_text
from eakd.errors import UserError, check_choice
from eakd.reproduce.comparison import Difference
from eakd.training.reading import SEGMENTS

RANKINGS = ("clean", "epoch")


def ranking_of(runs: Runs, by: str) -> tuple[str, tuple[str, ...]]:
    """The ranking to use and what is to be said of it.

    ``clean`` is one fixed set of samples a segment, by the teacher's entropy of the images without
    augmentation. Runs that did not record it have ``epoch``: the segments of each epoch anew.

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
        "the clean images, the same samples in every epoch.",
        "epoch": "Segments are ten equal parts of each epoch by the teacher's entropy of the "
        "images as augmented, so the samples in them change.",
    }
    notes = [told[used]]
    if used != by:
        notes.append("Not every run recorded the entropies of clean images.")
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


def told(tests: Mapping[str, Difference], p: Mapping[str, float], unit: str = "") -> list[str]:
    """A sentence for each paired test against KD.

    Args:
        tests: ``{kind.method: difference}``.
        p: of each, after Holm.
    """
    return [
        f"{said(key)} against KD: {difference_text(test, p[key], unit)}, p after Holm."
        for key, test in tests.items()
    ]


def said(key: str) -> str:
    """``slope.ea_kd`` in words."""
    kind, _, name = key.rpartition(".")
    words = {
        "slope": "trend of the spread over the run",
        "spread.last": "spread in the last epoch",
        "share_low": "share of the lowest tenth",
        "share_high": "share of the highest tenth",
        "kld": "raw KLD in the last epoch",
        "kld_low": "raw KLD of the lowest tenth in the last epoch",
        "kld_high": "raw KLD of the highest tenth in the last epoch",
        "accuracy": "training accuracy in the last epoch",
    }
    return f"{display(name)}, {words.get(kind, kind)}"
