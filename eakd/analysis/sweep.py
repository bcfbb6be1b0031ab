"""Fig. 8: accuracy against one hyperparameter, and how much it varies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import over_seeds
from eakd.config import EA
from eakd.errors import UserError, check_choice, check_number
from eakd.reproduce.agreement import leaves
from eakd.reproduce.comparison import metrics_of


def sweep(
    runs: Runs,
    *,
    output_root: str = "outputs",
    key: str = "distiller.beta",
    select: str = "last",
    resamples: int = 10_000,
) -> Result:
    """Fig. 8: how much one hyperparameter matters to a method.

    The variance is over the values of the hyperparameter, of the accuracy's mean over seeds. The
    paper does not say whether it divides by n or n − 1, so both are printed.

    Args:
        key: of the config.
        select: ``last`` or ``best`` epoch.
        resamples: of the seeds, for the intervals (percentile bootstrap, a fixed generator).
    """
    check_choice("select", select, ("last", "best"))
    check_number("resamples", resamples, at_least=100, integer=True)
    tables, series, notes = {}, [], []
    for name in runs.names:
        x, seeds, table = accuracies(runs.of(name), key, select)
        tables[name] = table
        by_seed = {seed: table[place] for place, seed in enumerate(seeds)}
        series.append(over_seeds(name, x, by_seed))
        missing = len({run.seed for run in runs.of(name)}) - len(seeds)
        if missing:
            notes.append(f"{display(name)}: {missing} seeds lack a value of {key}; left out.")
    variances = {name: variance(table, resamples) for name, table in tables.items()}
    numbers: dict[str, float] = {}
    for name, (found, low, high) in variances.items():
        count = tables[name].shape[1]
        numbers |= {
            f"variance.{name}": found,
            f"sample_variance.{name}": found * count / (count - 1),
            f"variance_low.{name}": low,
            f"variance_high.{name}": high,
        }
    tests = {}
    parts = [
        f"{display(name)} {v:.3f}" + (f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else "")
        for name, (v, low, high) in variances.items()
    ]
    for name, base in ((f"{EA}{n}", n) for n in runs.names):
        if name in tables:
            more, p = _compared(tables[name], tables[base], resamples)
            numbers |= {f"{each}.{name}": value for each, value in more.items()}
            tests |= {f"{each}.{name}": value for each, value in p.items()}
            interval = f" ({more['ratio_low']:.2f} to {more['ratio_high']:.2f})"
            notes.append(
                f"Variance of {display(name)} over that of {display(base)}: {more['ratio']:.2f}"
                f"{interval if np.isfinite(more['ratio_low']) else ''}"
                + (f", Brown–Forsythe p = {p['brown_forsythe']:.2g}." if p else ".")
            )
    heading = next(iter(metrics_of(runs[0].summary).values()), "")
    short = key.rpartition(".")[2]
    short = {"alpha": "α", "beta": "β", "temperature": "τ"}.get(short, short)
    x = np.arange(len(variances), dtype=float)
    bars = tuple(
        Series(name, x[i : i + 1], *(np.array([each]) for each in values), style="bars")
        if np.isfinite(values[1])
        else Series(name, x[i : i + 1], np.array([values[0]]), style="bars")
        for i, (name, values) in enumerate(variances.items())
    )
    return Result(
        {
            "accuracy": Panel(f"accuracy over {short}", short, f"test {heading}", tuple(series)),
            "variance": Panel(
                f"variance over {short}",
                "",
                "variance, points²",
                bars,
                x_ticks={float(i): display(name) for i, name in enumerate(variances)},
            ),
        },
        columns=2,
        numbers=numbers,
        tests=tests,
        shows=f"Population variance of the {select} epoch's accuracy (mean over seeds) over "
        f"{short}: {', '.join(parts)}.",
        not_shows="Seed noise adds its own variance divided by the number of seeds; with few seeds "
        "the intervals are wide, and a bootstrap of few seeds is rough.",
        notes=(
            "Bands: 95 % intervals of the mean over seeds (Student's t); bars: 95 % bootstrap "
            f"intervals over seeds ({resamples} resamples).",
            *(
                f"Sample form (n − 1) of {display(name)}: {numbers[f'sample_variance.{name}']:.3f}."
                for name in variances
            ),
            *notes,
        ),
        about={"seeds": runs.seeds, "epochs": sorted({r.epochs for r in runs}), "split": "test"},
    )


def accuracies(
    runs: Sequence[Run], key: str, select: str
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The values of ``key``, the seeds that have all of them, and ``(seeds, values)`` accuracies.

    Raises:
        UserError: a run without the key, fewer than two values, or no seed with all of them.
    """
    found: dict[tuple[float, int], float] = {}
    for run in runs:
        value = leaves(run.config).get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"runs: found {run.method} without a number {key}, which this compares")
        found[float(value), run.seed] = float(run.summary[f"{run.metric}_{select}"])
    values = sorted({value for value, _ in found})
    seeds = [
        seed
        for seed in sorted({seed for _, seed in found})
        if all((value, seed) in found for value in values)
    ]
    if len(values) < 2 or not seeds:
        reason = f"{len(values)} values of {key}" if len(values) < 2 else "no seed with all values"
        raise UserError(f"runs: found {reason} for {runs[0].method}, allowed are at least 2 values")
    table = np.array([[found[value, seed] for value in values] for seed in seeds])
    return np.array(values), seeds, table


def variance(table: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """Population variance over columns of the mean over rows, and its 95 % interval over rows.

    Args:
        table: ``(seeds, values)``.
        resamples: of the rows; the interval is NaN with one row.
    """
    found = float(table.mean(axis=0).var())
    if len(table) < 2:
        return found, float("nan"), float("nan")
    spread = _resampled(table, resamples).var(axis=1)
    low, high = np.percentile(spread, [2.5, 97.5])
    return found, float(low), float(high)


def _resampled(table: np.ndarray, resamples: int) -> np.ndarray:
    """``(resamples, values)`` means over seeds drawn with replacement; the same seeds for equal
    numbers of them, so that two methods stay paired."""
    chosen = np.random.default_rng(0).integers(len(table), size=(resamples, len(table)))
    return table[chosen].mean(axis=1)


def _compared(
    ea: np.ndarray, base: np.ndarray, resamples: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The ratio of two variances with its interval; p of Brown–Forsythe and of the bootstrap."""
    from scipy import stats

    below = float(base.mean(axis=0).var())
    nan = float("nan")
    numbers = {
        "ratio": float(ea.mean(axis=0).var()) / below if below else nan,
        "ratio_low": nan,
        "ratio_high": nan,
    }
    tests = {}
    if len(ea) == len(base) and len(ea) > 1:
        a, b = (_resampled(each, resamples).var(axis=1) for each in (ea, base))
        ratios = a[b > 0] / b[b > 0]
        low, high = np.percentile(ratios, [2.5, 97.5]) if len(ratios) else (nan, nan)
        numbers |= {"ratio_low": float(low), "ratio_high": float(high)}
        # Two-sided; never 0, as the sample itself is one of the resamples.
        side = min((a >= b).sum(), (a <= b).sum())
        tests["bootstrap"] = float(min(1.0, 2 * (side + 1) / (resamples + 1)))
    columns = [each.mean(axis=0) for each in (ea, base)]
    if min(map(len, columns)) > 2 and any(np.ptp(each) > 0 for each in columns):
        tests["brown_forsythe"] = float(stats.levene(*columns, center="median").pvalue)
    return numbers, tests
