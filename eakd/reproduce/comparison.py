"""Means, spreads and paired differences of finished runs, as a table and as curves."""

from __future__ import annotations

import glob
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eakd.errors import UserError, check_choice, check_number, check_text, shortened
from eakd.files import write_atomically
from eakd.plotting import FORMATS, SOFT, WIDTHS, has_matplotlib, image, new_figure, style
from eakd.reproduce.agreement import environment_warnings
from eakd.reproduce.escaping import markdown_text, one_line, printable
from eakd.reproduce.groups import baselines, check_comparable, check_groups, grouped, label
from eakd.reproduce.palette import looks
from eakd.training.reading import read_json, read_metrics, read_object, read_summary

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


def read_run(directory: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or ``None`` of one that is not finished.

    ``directory``, ``config`` and, where its status knows, the time ``finished`` are added.

    Raises:
        UserError: a damaged file, or a directory that cannot be read.
    """
    config, summary = read_object(directory / "config.json"), read_summary(directory)
    if summary is None:
        return None
    place = directory / "summary.json"
    if config is None:
        raise UserError(f"{directory / 'config.json'}: found no file beside {place.name}")
    for key in ("metrics", "environment"):
        if not isinstance(summary.get(key, {}), dict):
            raise UserError(f"{place}: found {key} {summary[key]!r}, allowed is an object")
    names = [*metrics_of(summary)]
    numbers = [f"{name}_{which}" for name in names for which in ("last", "best")]
    for key in ("seed", "epochs", "selection", "seconds", *numbers):
        if key not in summary:
            raise UserError(f"{place}: found no {one_line(key)}, which every finished run has")
    for key in ("seconds", *numbers, *(f"teacher_{name}" for name in names)):
        check_number(f"{place}: {one_line(key)}", summary.get(key, 0))  # 1e999 is infinite
    status = read_json(directory / "status.json")
    when = status.get("time") if isinstance(status, dict) else None
    return {**summary, "directory": directory, "config": config, "finished": when}


def find_runs(directories: Iterable[Path]) -> tuple[list[dict[str, Any]], dict[Path, str]]:
    """The finished runs among ``directories``, see `read_run`, and why the others are none.

    Directories that hold no run at all are in neither.
    """
    runs, left_out = [], {}
    for directory in sorted(set(directories)):
        try:
            run = read_run(directory)
            if run is not None:
                runs.append(run)
            elif {"config.json", "status.json"} & set(os.listdir(directory)):
                status = read_object(directory / "status.json") or {}
                parts = filter(None, (status.get("state"), status.get("error")))
                left_out[directory] = ": ".join(["unfinished", *map(one_line, parts)])
        except UserError as error:
            left_out[directory] = f"damaged: {one_line(error)}"
        except OSError as error:
            reason = error.strerror or type(error).__name__
            left_out[directory] = f"damaged: {one_line(directory)}: {reason}"
    return runs, left_out


def read_runs(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The finished runs among ``directories``, without those that are damaged, see `read_run`."""
    return find_runs(directories)[0]


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> Difference | None:
    """Compare two ``{seed: value}`` on the seeds they share; ``None`` below two.

    A value that is no number counts as missing.
    """
    from scipy import stats

    both = {seed: values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())}
    differences = [found for found in both.values() if not math.isnan(found)]
    if len(differences) < 2:
        return None
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread <= 1e-12 * abs(mean):  # equal but for rounding: the test would divide by noise
        return Difference(mean, mean, mean, 0.0 if mean else 1.0, len(differences))
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    return Difference(mean, float(low), float(high), float(test.pvalue), len(differences))


def compare(
    runs: list[dict[str, Any]],
    baseline: str | None = None,
    select: str = "last",
    by: Sequence[str] = ("method",),
) -> list[Row]:
    """One `Row` per method, in the order in which the runs name them.

    Args:
        runs: summaries of `read_runs`.
        baseline: the group that differences are taken against: its `label`, or what the first of
            ``by`` is in it, and then groups are compared that agree in the others; ``None`` for
            ``kd``, where there is one.
        select: ``"last"`` or ``"best"``, the value that differences use.
        by: what tells groups apart, see `label`.

    Raises:
        UserError: runs of one group that differ in more than their seed, see `check_groups`; groups
            of different data or teachers that would be compared; different first metrics; an
            unknown key of ``by`` or an unknown ``baseline``.
    """
    metric, heading = first_metric(runs)
    check_groups(runs, by)
    groups = grouped(runs, by)
    against = baselines(groups, baseline)

    def values(name: tuple[str, ...]) -> dict[int, float]:
        return {run["seed"]: run[f"{metric}_{select}"] for run in groups[name]}

    rows = []
    for name, group in groups.items():
        ordered = sorted(group, key=lambda run: run["seed"])
        other = against.get(name)
        if other is not None:
            check_comparable(group, groups[other], runs, by)
        rows.append(
            Row(
                method=label(group[0], by),
                heading=heading,
                seeds=tuple(run["seed"] for run in ordered),
                last=tuple(run[f"{metric}_last"] for run in ordered),
                best=tuple(run[f"{metric}_best"] for run in ordered),
                seconds=tuple(run["seconds"] for run in ordered),
                difference=other and paired_difference(values(name), values(other)),
            )
        )
    return rows


def spread(values: tuple[float, ...], digits: int = 2) -> str:
    """``mean ± sample standard deviation``, or the single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def to_markdown(rows: list[Row], baseline: str | None = None, select: str = "last") -> str:
    """The comparison as a Markdown table; every number says which one it is."""
    heading = markdown_text(rows[0].heading if rows else "metric")
    lines = [
        f"| method | seeds | last {heading} | best {heading} | seconds a run "
        f"| {select} vs {markdown_text(baseline or 'kd')}, paired (95 % interval, p) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        text = "–"
        if row.difference is not None:
            d = row.difference
            text = f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}, p = {d.p:.3f})"
        lines.append(
            f"| {markdown_text(row.method)} | {len(row.seeds)} | {spread(row.last)} "
            f"| {spread(row.best)} | {spread(row.seconds, 1)} | {text} |"
        )
    return "\n".join(lines)


def report(
    pattern: str,
    by: str | Sequence[str] = ("method",),
    baseline: str | None = None,
    select: str = "last",
    plot: str | None = None,
) -> str:
    """The table of the finished runs in the directories that match a glob ``pattern``.

    Below it stand warnings (mixed precision, devices, versions and commits) and the runs that were
    left out, with reasons: unfinished, damaged, or of another metric than most.

    Raises:
        UserError: no finished run, a mixture of settings, or a wrong name.
    """
    check_choice("select", select, ("last", "best"))
    check_text("runs", pattern)
    if baseline is not None:
        check_text("baseline", baseline)
    by = [by] if isinstance(by, str) else by
    if not isinstance(by, list | tuple) or not by:
        raise UserError(f"by: found {shortened(by)}, allowed is a list of keys, such as [method]")
    for key in by:
        check_text("by", key)
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    runs, left_out = find_runs(path for path in found if path.is_dir())
    runs, others = _most_common_metric(runs)
    left_out |= others
    if not runs:
        raise UserError(
            f"runs: found no finished run in {pattern!r}{_first_reason(left_out)}, allowed is a "
            "glob of runs"
        )
    rows = compare(runs, baseline, select, by)
    warnings = list(environment_warnings(runs))
    if plot:
        warnings += plot_curves(runs, Path(plot), by)
    parts = [to_markdown(rows, baseline, select)]
    parts += ["\n".join(f"Warning: {text}" for text in warnings), _left_out_lines(left_out, runs)]
    return printable("\n\n".join(filter(None, parts)))


def _most_common_metric(
    runs: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[Path, str]]:
    """The runs whose first metric most runs have, and the others; without a majority, all."""
    firsts = {run["directory"]: next(iter(metrics_of(run)), "") for run in runs}
    (metric, count), *rest = Counter(firsts.values()).most_common() or [("", 0)]
    if rest and rest[0][1] == count:
        return runs, {}
    others = {
        place: f"of another metric: {one_line(first)}, most have {one_line(metric)}"
        for place, first in firsts.items()
        if first != metric
    }
    return [run for run in runs if run["directory"] not in others], others


def _first_reason(left_out: Mapping[Path, str]) -> str:
    if not left_out:
        return ""
    place, reason = next(iter(left_out.items()))
    return f" ({len(left_out)} left out, such as {one_line(place)}: {reason})"


def _left_out_lines(left_out: Mapping[Path, str], runs: Sequence[Any], shown: int = 20) -> str:
    """How many were left out for which reason, and where the first of them are."""
    if not left_out:
        return ""
    kinds = Counter(reason.partition(":")[0] for reason in left_out.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    lines = [f"Left out: {len(left_out)} of {len(left_out) + len(runs)} runs ({counts})"]
    # What is damaged comes first: it will not finish by itself.
    ordered = sorted(left_out.items(), key=lambda item: (item[1].partition(":")[0], item[0]))
    lines += [f"- {one_line(place)}: {reason}" for place, reason in ordered[:shown]]
    more = len(ordered) - shown
    return "\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])])


def plot_curves(
    runs: list[dict[str, Any]], path: Path, by: Sequence[str] = ("method",)
) -> list[str]:
    """Draw the test metric over epochs: the mean of each method's seeds ± one standard deviation.

    The first third of the epochs is left out, and the axis begins at the means of the last third,
    so that methods can be told apart. A dotted line is the teacher, if all runs have the same.

    Returns:
        Warnings: runs that are not in the picture because their ``metrics.jsonl`` is damaged.

    Raises:
        UserError: runs with different first metrics, or a kind of file that cannot be drawn.
    """
    metric, heading = first_metric(runs)
    if not has_matplotlib():
        raise UserError("plot: needs matplotlib: pip install 'eakd[plots]'")
    check_choice("plot", path.suffix.removeprefix(".") or "png", FORMATS)
    curves: dict[str, list[dict[int, float]]] = defaultdict(list)
    warnings = []
    for run in runs:
        try:
            lines = [line for line in read_metrics(run["directory"]) if f"test_{metric}" in line]
        except UserError as error:
            warnings.append(f"not in {path}: {one_line(error)}")
            continue
        curves[label(run, by)].append({line["epoch"]: line[f"test_{metric}"] for line in lines})
    taught = {run[f"teacher_{metric}"] for run in runs if f"teacher_{metric}" in run}
    with style():
        figure = new_figure(WIDTHS["double"], 4.0)
        draw_curves(figure.add_subplot(), curves, taught)
        figure.axes[0].set(xlabel="epoch", ylabel=one_line(f"test {heading}"))
        kind = path.suffix.removeprefix(".") or "png"
        content = image(figure, kind, dpi=150)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return warnings


def draw_curves(
    axes: Any, curves: Mapping[str, Sequence[Mapping[int, float]]], taught: set[float]
) -> None:
    """Mean over epochs of each group's curves ± one standard deviation, and the teacher.

    Args:
        axes: of matplotlib.
        curves: name → ``{epoch: value}`` of each seed.
        taught: the teachers' values; drawn if there is one.
    """
    import numpy as np

    shown, starts = [], []
    for (name, values), look in zip(curves.items(), looks(list(curves)).values(), strict=True):
        epochs = sorted(set.intersection(*map(set, values)))  # that all seeds were evaluated after
        stacked = np.array([[curve[epoch] for epoch in epochs] for curve in values])
        mean = stacked.mean(axis=0)
        axes.plot(
            epochs, mean, color=look.colour, linestyle="-" if look.filled else "--",
            label=f"{one_line(name)} (n = {len(values)})",
        )  # fmt: skip
        if len(values) > 1:
            spread = stacked.std(axis=0, ddof=1)
            how = {"alpha": 0.15, "color": look.colour, "linewidth": 0}
            axes.fill_between(epochs, mean - spread, mean + spread, **how)
        shown += mean[2 * len(mean) // 3 :].tolist()
        starts += epochs[len(epochs) // 3 :][:1]
    if len(taught) == 1:
        axes.axhline(*taught, color=SOFT, linestyle=":", label="teacher")
        shown += taught
    if shown:
        axes.set_xlim(left=min(starts))
        margin = 0.05 * (max(shown) - min(shown)) or 1.0
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=True, edgecolor="none", framealpha=0.9)
