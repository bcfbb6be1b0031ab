"""Means, spreads and paired differences of finished runs, as a table and as curves."""

from __future__ import annotations

import glob
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eakd.errors import UserError, check_choice
from eakd.training.record import differences, read_json, read_metrics

# Headings of summaries from before they had any, which are all of image classification.
OLD_HEADINGS = {"top1": "top-1 %", "top5": "top-5 %"}


@dataclass(frozen=True)
class Difference:
    """A method against the baseline, seed by seed.

    Attributes:
        mean: of the differences, in the metric's unit.
        low, high: its 95 % confidence interval (Student's t).
        p: two-sided paired t-test.
        seeds: how many seeds both have.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


@dataclass(frozen=True)
class Row:
    """One method's results over its seeds, in the first metric of its runs.

    ``last`` and ``best`` hold one value per seed, in the order of ``seeds``. ``best`` is the
    highest value of any epoch on the split that chose it, and flatters when that is the test split.

    Attributes:
        heading: the metric's name and unit, such as ``top-1 %``.
        seconds: of each run.
    """

    method: str
    heading: str
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    seconds: tuple[float, ...]
    difference: Difference | None


def metrics_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Name → heading with unit of what a run was measured by; the first chose its best epoch."""
    if "metrics" in run:
        return run["metrics"]
    names = (key.removesuffix("_last") for key in run if key.endswith("_last"))
    return {name: OLD_HEADINGS.get(name, name) for name in names}


def first_metric(runs: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Name and heading of the metric that runs are compared by.

    Raises:
        UserError: runs with different first metrics.
    """
    found: dict[str, str] = {}
    for run in runs:
        found |= [*metrics_of(run).items()][:1]
    if len(found) > 1:
        raise UserError(
            f"runs: found some measured by {' and some by '.join(found)}, allowed are runs of one "
            "metric; narrow runs"
        )
    return next(iter(found.items()), ("", "metric"))


def read_runs(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """Summaries of the finished runs among ``directories``, with ``directory`` and ``config``."""
    runs = []
    for directory in sorted(set(directories)):
        summary = read_json(directory / "summary.json")
        if summary is not None:
            config = read_json(directory / "config.json") or {}
            runs.append({**summary, "directory": directory, "config": config})
    return runs


def label(run: dict[str, Any], by: Sequence[str] = ("method",)) -> str:
    """The name of the group that a run belongs to.

    Args:
        run: one of `read_runs`.
        by: keys of the summary, or dotted keys of the config such as
            ``weighting.entropy_temperature``; a run without that key leaves it out.
    """
    parts = []
    for key in by:
        value = run.get(key)
        if value is None:
            value = run.get("config", {})
            for name in key.split("."):
                value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            plain = key in ("method", "data", "teacher", "student")
            parts.append(str(value) if plain else f"{key.rpartition('.')[2]}={value}")
    return ", ".join(parts)


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Compare two ``{seed: value}`` on the seeds they share; ``None`` below two."""
    from scipy import stats

    seeds = sorted(set(values) & set(baseline))
    if len(seeds) < 2:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, len(seeds))
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue), len(seeds))


def compare(
    runs: list[dict[str, Any]],
    baseline: str = "kd",
    select: str = "last",
    by: Sequence[str] = ("method",),
) -> list[Row]:
    """One `Row` per method, in the order in which the runs name them.

    Args:
        runs: summaries of `read_runs`.
        baseline: the group that differences are taken against.
        select: ``"last"`` or ``"best"``, the value that differences use.
        by: what tells groups apart, see `label`.

    Raises:
        UserError: two runs of one group share a seed, so that a mean would mix settings, or runs
            have different first metrics.
    """
    metric, heading = first_metric(runs)
    groups: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for run in runs:
        group, seed = groups[label(run, by)], run["seed"]
        if seed in group:
            configs = [each.get("config", {}) for each in (group[seed], run)]
            changed = "; ".join(differences(*configs)[:3])
            raise UserError(
                f"by: found two runs of {label(run, by)} with seed {seed} that differ in "
                f"{changed or 'nothing but their place'}; add that key to by, or narrow runs"
            )
        group[seed] = run

    def values(name: str) -> dict[int, float]:
        return {seed: run[f"{metric}_{select}"] for seed, run in groups.get(name, {}).items()}

    rows = []
    for name, by_seed in groups.items():
        ordered = [by_seed[seed] for seed in sorted(by_seed)]
        against = None
        if name != baseline:
            against = paired_difference(values(name), values(baseline))
        rows.append(
            Row(
                method=name,
                heading=heading,
                seeds=tuple(sorted(by_seed)),
                last=tuple(run[f"{metric}_last"] for run in ordered),
                best=tuple(run[f"{metric}_best"] for run in ordered),
                seconds=tuple(run["seconds"] for run in ordered),
                difference=against,
            )
        )
    return rows


def spread(values: tuple[float, ...], digits: int = 2) -> str:
    """``mean ± sample standard deviation``, or the single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def to_markdown(rows: list[Row], baseline: str = "kd", select: str = "last") -> str:
    """The comparison as a Markdown table; every number says which one it is."""
    heading = rows[0].heading if rows else "metric"
    lines = [
        f"| method | seeds | last {heading} | best {heading} | seconds a run "
        f"| {select} vs {baseline}, paired (95 % interval, p) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        text = "–"
        if row.difference is not None:
            d = row.difference
            text = f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}, p = {d.p:.3f})"
        lines.append(
            f"| {row.method} | {len(row.seeds)} | {spread(row.last)} | {spread(row.best)} "
            f"| {spread(row.seconds, 1)} | {text} |"
        )
    return "\n".join(lines)


def report(
    pattern: str,
    by: Sequence[str] = ("method",),
    baseline: str = "kd",
    select: str = "last",
    plot: str | None = None,
) -> str:
    """The table of the finished runs in the directories that match a glob ``pattern``.

    Raises:
        UserError: no finished run, a mixture of settings, or a wrong name.
    """
    check_choice("select", select, ("last", "best"))
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    runs = read_runs(path for path in found if path.is_dir())
    if not runs:
        raise UserError(f"runs: found no finished run in {pattern!r}, allowed is a glob of runs")
    rows = compare(runs, baseline, select, by)
    if plot:
        plot_curves(runs, Path(plot), by)
    return to_markdown(rows, baseline, select)


def plot_curves(runs: list[dict[str, Any]], path: Path, by: Sequence[str] = ("method",)) -> None:
    """The test metric over epochs: the mean of each method's seeds and the band they span.

    Raises:
        UserError: runs with different first metrics.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    metric, heading = first_metric(runs)
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    for run in runs:
        lines = [line for line in read_metrics(run["directory"]) if f"test_{metric}" in line]
        curves[label(run, by)].append({line["epoch"]: line[f"test_{metric}"] for line in lines})
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, values in curves.items():
        epochs = sorted(set.intersection(*map(set, values)))  # that all seeds were evaluated after
        stacked = np.array([[curve[epoch] for epoch in epochs] for curve in values])
        (line,) = axes.plot(epochs, stacked.mean(axis=0), label=f"{name} (n = {len(values)})")
        axes.fill_between(
            epochs, stacked.min(axis=0), stacked.max(axis=0), alpha=0.15, color=line.get_color()
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"test {heading}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
