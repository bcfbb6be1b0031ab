"""Means over seeds with their intervals, and methods against the plain one, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eakd.analysis.result import Series
from eakd.reproduce.comparison import Difference
from eakd.reproduce.table_report.numbers import holm

BANDS = "bands are 95 % intervals of the mean over seeds (Student's t)"


class Mean(NamedTuple):
    """``(n,)`` each; ``low`` and ``high`` of the 95 % interval are ``None`` with one seed."""

    mean: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def mean_of(values: np.ndarray) -> Mean:
    """The mean of ``(seeds, n)`` over seeds and its 95 % interval by Student's t."""
    values = np.asarray(values, dtype=float)
    mean = values.mean(axis=0)
    if len(values) < 2:
        return Mean(mean, None, None)
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / len(values) ** 0.5
    return Mean(mean, mean - half, mean + half)


def over_seeds(
    name: str, x: Sequence[float] | np.ndarray, by_seed: Mapping[int, np.ndarray], **how: object
) -> Series:
    """The mean over seeds as a series with its interval; it keeps what each seed has.

    Args:
        by_seed: ``{seed: (n,)}``.
        **how: further attributes of `Series`.
    """
    found = mean_of(np.stack(list(by_seed.values())))
    return Series(name, np.asarray(x), *found, by_seed=by_seed, **how)  # type: ignore[arg-type]


def corrected(tests: Mapping[str, Difference]) -> dict[str, float]:
    """p of several tests of one figure, after Holm."""
    return dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))


def difference_text(difference: Difference, p: float, unit: str = "") -> str:
    """``+0.12 (0.05 to 0.19, p = 0.003)``, p after Holm."""
    d = difference
    return f"{d.mean:+.3g}{unit} ({d.low:+.3g} to {d.high:+.3g}, p = {p:.2g})"
