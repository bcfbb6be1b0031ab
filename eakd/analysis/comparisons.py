"""Figs. 1 and 8: accuracy against what a step costs, and against one hyperparameter."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import against, corrected, difference_text, mean_of, over_seeds
from eakd.config import EA
from eakd.errors import UserError, check_choice, check_number
from eakd.reproduce.agreement import leaves
from eakd.reproduce.comparison import metrics_of
from eakd.training.protocol import device_of
from eakd.training.reading import read_object


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
        missing = len(set(run.seed for run in runs.of(name))) - len(seeds)
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
                tuple(_alone(bar) for bar in bars),
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


def _alone(bar: Series) -> Series:
    """A series of one bar in the middle of its place, and not beside the others."""
    return bar


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


def cost(
    runs: Runs, *, output_root: str = "outputs", select: str = "last", benchmark: str | None = None
) -> Result:
    """Fig. 1: what a training step costs, and what it comes to.

    Args:
        select: ``last`` or ``best`` epoch.
        benchmark: the JSON file of ``scripts/benchmark.py methods=[…] output=FILE``; by default
            ``benchmark.json`` in ``output_root`` if it is there, else the runs' own epochs, whose
            time depends on what else the machine did.
    """
    check_choice("select", select, ("last", "best"))
    path = Path(benchmark or Path(output_root) / "benchmark.json")
    timed = read_object(path)
    if benchmark and timed is None:
        raise UserError(f"benchmark: found no file {benchmark!r}, allowed is one of benchmark.py")
    steps = _benchmarked(timed, runs) if timed else {}
    from_runs = not steps
    steps = steps or {name: _own_times(runs.of(name)) for name in runs.names}
    series, numbers, arrows, gains = [], {}, [], {}
    values = {
        name: {run.seed: float(run.summary[f"{run.metric}_{select}"]) for run in runs.of(name)}
        for name in runs.names
    }
    for name in runs.names:
        if name not in steps:
            continue
        mean, low, high = mean_of(np.array(list(values[name].values()))[:, None])
        x = np.array([steps[name]])
        series.append(Series(name, x, mean, low, high, style="points"))
        numbers[f"accuracy.{name}"] = float(mean[0])
        numbers[f"step_ms.{name}"] = steps[name]
        base = name.removeprefix(EA)
        if base != name and base in steps:
            ends = np.array([steps[base], steps[name]])
            heights = np.array([numbers.get(f"accuracy.{base}", np.nan), mean[0]])
            arrows.append(Series(base, ends, heights, style="arrow"))
            numbers[f"step_ratio.{name}"] = steps[name] / steps[base]
            numbers[f"gain.{name}"] = float(heights[1] - heights[0])
            gains |= {name: each for each in against(
                {base: values[base], name: values[name]}, base).values()}  # fmt: skip
    if not series:
        raise UserError(f"benchmark: found none of {', '.join(runs.names)} in {path}")
    p = corrected(gains)
    device = _device(runs) if from_runs else f"{timed['device']}, {timed['threads']} threads"
    how = (
        "median epochs of the runs themselves, which other load on the machine changes"
        if from_runs
        else f"the benchmark {path.name}, EA beside the plain method step by step"
    )
    ratios = [value for key, value in numbers.items() if key.startswith("step_ratio.")]
    rises = [value for key, value in numbers.items() if key.startswith("gain.")]
    if ratios:
        numbers |= {"step_ratio_max": max(ratios), "gain_mean": statistics.fmean(rises)}
    shows = (
        f"EA changes the accuracy by {min(rises):+.2f} to {max(rises):+.2f} points, mean "
        f"{statistics.fmean(rises):+.2f}, and the time of a step by a factor of {min(ratios):.3f} "
        f"to {max(ratios):.3f}."
        if ratios
        else "Accuracy and time of a step of each method."
    )
    heading = next(iter(metrics_of(runs[0].summary).values()), "")
    return Result(
        {"cost": Panel(f"on {device}", "ms a training step" + " (from the runs)" * from_runs,
                       f"test {heading}", (*arrows, *series))},
        numbers=numbers,
        tests={f"gain.{name}": each for name, each in p.items()},
        shows=shows,
        not_shows="It does not show memory, nor the time on another device.",
        notes=(
            f"Step times: {how}. Accuracy of the {select} epoch, mean over seeds with its 95 % "
            "interval; an arrow leads from a method to its EA form.",
            *(f"{display(name)}: {difference_text(test, p[name], ' points')}, p after Holm."
              for name, test in gains.items()),
        ),
        about={"seeds": runs.seeds, "epochs": sorted({r.epochs for r in runs}), "split": "test",
               "device": device},
    )  # fmt: skip


def _benchmarked(timed: Mapping[str, Any], runs: Runs) -> dict[str, float]:
    """Milliseconds of a step of each method that the benchmark measured, plain and EA."""
    if not isinstance(timed.get("methods"), dict):
        raise UserError("benchmark: found no table of methods, allowed is a file of methods=[…]")
    pair = f"{timed.get('teacher')}-{timed.get('student')}"
    if pair != runs.pair:
        raise UserError(f"benchmark: found times of {pair}, allowed are those of {runs.pair}")
    found = {}
    for name, each in timed["methods"].items():
        found[name] = float(each["step_ms"])
        found[EA + name] = found[name] * float(each["ea_over_uniform_time"][0])
    return {name: found[name] for name in runs.names if name in found}


def _own_times(runs: Sequence[Run]) -> float:
    """Median milliseconds of a step over the epochs of some runs."""
    steps = [
        1000 * run.config["recipe"]["batch_size"] / line["samples_per_second"]
        for run in runs
        for line in run.metrics
        if line.get("samples_per_second")
    ]
    if not steps:
        raise UserError(f"runs: found no time of an epoch in those of {runs[0].method}")
    return statistics.median(steps)


def _device(runs: Runs) -> str:
    names = {device_of(run.summary.get("environment", {})) for run in runs}
    return " and ".join(sorted(names))
