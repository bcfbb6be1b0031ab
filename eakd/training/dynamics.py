"""How an epoch treated easy and hard samples: a line of ``dynamics.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from eakd.training.meters import Meters
from eakd.training.reading import SEGMENTS

QUANTILES = (5, 25, 50, 75, 95)


def segments(
    meters: Meters, entropy_temperature: float, teacher_entropy: np.ndarray | None = None
) -> dict[str, Any]:
    """How an epoch treated easy and hard samples: its samples in ten equal parts, by entropy.

    Source: the paper's Figs. 3, 4 and 5.

    Args:
        meters: of the whole epoch.
        entropy_temperature: τ′ of the entropies.
        teacher_entropy: ``(N,)`` of the training set, see `eakd.training.task.Built`.

    Returns:
        ``{"entropy_temperature", "by": {ranking: {"samples": […], value: {"mean": […], …}}}}``, a
        number for each segment, the one with the lowest entropy first. Rankings are ``epoch``, by
        the teacher's entropy as the epoch saw it (``student``, by the student's, without a
        teacher), and ``clean``, by ``teacher_entropy``: the same samples in every epoch. Values
        are the rows of `Meters`: entropies in nats, the distillation loss without and with its
        weight, the weight, and what the task measures.
    """
    index = meters.index[: meters.seen].cpu().numpy()
    order = np.argsort(index, kind="stable")  # the same for every number of processes
    index = index[order]
    values = {name: meters.column(name).double().cpu().numpy()[order] for name in meters.rows}
    values = {name: value for name, value in values.items() if not np.isnan(value).all()}
    rankings = {}
    if "teacher_entropy" in values:
        rankings["epoch"] = values["teacher_entropy"]
    elif "student_entropy" in values:
        rankings["student"] = values["student_entropy"]
    if teacher_entropy is not None:
        rankings["clean"] = teacher_entropy[index]
    return {
        "entropy_temperature": entropy_temperature,
        "by": {name: _describe(values, ranking) for name, ranking in rankings.items()},
    }


def in_short(dynamics: dict[str, Any]) -> dict[str, float]:
    """A few numbers of `segments`, for trackers: lowest and highest tenth of teacher entropy."""
    by = dynamics["by"]
    ranking = by.get("clean") or by.get("epoch") or {}
    found = {
        "dynamics/loss_low": ranking.get("loss", {}).get("mean", [None])[0],
        "dynamics/loss_high": ranking.get("loss", {}).get("mean", [None])[-1],
        "dynamics/student_entropy_high_std": ranking.get("student_entropy", {}).get("std", [None])[
            -1
        ],
    }
    return {name: value for name, value in found.items() if value is not None}


def _describe(values: dict[str, np.ndarray], ranking: np.ndarray) -> dict[str, Any]:
    known = np.flatnonzero(~np.isnan(ranking))
    # Stable, so that samples of equal entropy do not move between runs.
    order = known[np.argsort(ranking[known], kind="stable")]
    parts = [part for part in np.array_split(order, SEGMENTS) if len(part)]
    found: dict[str, Any] = {"samples": [len(part) for part in parts]}
    for name, value in values.items():
        cut = [value[part] for part in parts]
        found[name] = {"mean": _rounded(map(_mean, cut)), "std": _rounded(map(_std, cut))}
    if "student_entropy" in values:
        for percent in QUANTILES:
            cut = [_percentile(values["student_entropy"][part], percent) for part in parts]
            found["student_entropy"][f"q{percent:02d}"] = _rounded(cut)
    return found


def _over_known(function: Callable[..., Any]) -> Callable[..., float]:
    """``function`` of the values that are numbers; NaN without any."""

    def of(values: np.ndarray, *more: float) -> float:
        known = values[~np.isnan(values)]
        return float(function(known, *more)) if len(known) else math.nan

    return of


_mean, _std, _percentile = map(_over_known, (np.mean, np.std, np.percentile))


def _rounded(values: Iterable[float]) -> list[float | None]:
    """To five digits, which a figure can't show; ``None`` for no number, as JSON wants it."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
