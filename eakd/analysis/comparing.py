"""Means over seeds, and which methods a figure compares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eakd.config import EA, base_method
from eakd.reproduce.comparison import Difference, paired_difference


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Mean and 95 % interval (Student's t) over the first axis, ``(seeds, …) -> (…)``.

    The interval is ``None`` of a single seed.
    """
    from scipy import stats

    mean, count = values.mean(axis=0), len(values)
    if count < 2:
        return mean, None, None
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / math.sqrt(count)
    return mean, mean - half, mean + half


def comparisons(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is tested against what: ``(ea_kd, kd)``, ``(ea_kd, kd+matched)``, ``(kd+matched, kd)``.

    A method's EA form against the method and against each of its controls, a control against the
    method, as far as they are among ``names``.
    """
    pairs = []
    for plain in dict.fromkeys(map(base_method, names)):
        controls = [name for name in names if name.startswith(f"{plain}+")]
        for name, others in [(EA + plain, [plain, *controls]), *((c, [plain]) for c in controls)]:
            pairs += [(name, other) for other in others if name in names and other in names]
    return pairs


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction over all of them, in their order; NaN stays NaN."""
    known = [place for place, p in enumerate(values) if not math.isnan(p)]
    corrected, largest = list(values), 0.0
    for rank, place in enumerate(sorted(known, key=lambda place: values[place])):
        largest = max(largest, min(1.0, (len(known) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def paired(values: Mapping[str, Mapping[int, float]], name: str, other: str) -> Difference | None:
    """``name`` minus ``other`` of ``{method: {seed: value}}``; ``None`` below two shared seeds."""
    return paired_difference(dict(values[name]), dict(values[other]))


def seeds_text(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
