"""Fig. 1: accuracy against what a training step costs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import corrected, difference_text, mean_of
from eakd.config import EA
from eakd.errors import UserError, check_choice
from eakd.reproduce.comparison import metrics_of, paired_difference
from eakd.training.protocol import device_of
from eakd.training.reading import read_object


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
        base = name.removeprefix(EA)
        # A method and its EA form are labelled once, directly.
        texts = (display(base),) if base != name or EA + name not in steps else ("",)
        series.append(Series(name, x, mean, low, high, label="", style="points", texts=texts))
        numbers[f"accuracy.{name}"] = float(mean[0])
        numbers[f"step_ms.{name}"] = steps[name]
        if base != name and base in steps:
            ends = np.array([steps[base], steps[name]])
            heights = np.array([numbers.get(f"accuracy.{base}", np.nan), mean[0]])
            arrows.append(Series(base, ends, heights, style="arrow"))
            numbers[f"step_ratio.{name}"] = steps[name] / steps[base]
            numbers[f"gain.{name}"] = float(heights[1] - heights[0])
            found = paired_difference(values[name], values[base])
            if found is not None:
                gains[name] = found
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
            "interval; hollow: plain, filled: with EA; an arrow leads from one to the other.",
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
