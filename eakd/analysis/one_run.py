"""One run's page, finished or still training: ``figure=run runs=DIRECTORY``."""

from __future__ import annotations

from typing import Any

import numpy as np

from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.errors import UserError


def page(runs: Runs, *, output_root: str = "outputs") -> Result:
    """Loss, accuracy, learning rate, what easy and hard samples weigh, and speed, by epoch.

    Args:
        runs: one run.
    """
    if len(runs) != 1:
        raise UserError(f"runs: found {len(runs)} runs, allowed is one for a page")
    run = runs[0]
    if not run.metrics:
        raise UserError(f"{run.directory / 'metrics.jsonl'}: found no finished epoch")
    last = run.metrics[-1]
    panels = {
        "loss": _panel(run, "training loss", "loss", _losses(last)),
        "accuracy": _panel(run, "accuracy", "accuracy, %", _accuracies(last)),
        "rate": _panel(run, "learning rate", "rate", {"lr": "learning rate"}),
        "share": _panel(
            run,
            "loss share by teacher entropy",
            "share, %",
            {"share_low_entropy": "lowest tenth", "share_high_entropy": "highest tenth"},
            scale=100,
        ),
        "weight": _weight(run),
        "speed": _panel(run, "speed", "samples/s", {"samples_per_second": "samples/s"}),
    }
    panels = {key: panel for key, panel in panels.items() if panel.series}
    numbers = {key: float(each) for key, each in last.items() if isinstance(each, int | float)}
    measured = [f"{key} {last[key]:.2f}" for key in _accuracies(last) if key in last]
    return Result(
        panels,
        columns=3,
        numbers=numbers,
        shows=f"{display(run.method)}, seed {run.seed}, after epoch {last['epoch']} of "
        f"{run.epochs}: training loss {last['train_loss']:.4f}"
        + (f", {', '.join(measured)}." if measured else "."),
        not_shows="One run has no spread over seeds.",
        about={
            "seeds": [run.seed],
            "epochs": [run.epochs],
            "entropy_temperature": [run.entropy_temperature],
        },
    )


def _losses(last: dict[str, Any]) -> dict[str, str]:
    terms = {key: key.removeprefix("train_loss_") for key in last if key.startswith("train_loss_")}
    return {"train_loss": "loss", **terms}


def _accuracies(last: dict[str, Any]) -> dict[str, str]:
    """The first metric on every split that has it."""
    names = [key.removeprefix("test_") for key in last if key.startswith("test_")]
    name = next((each for each in names if f"train_{each}" in last), next(iter(names), ""))
    found = {f"{split}_{name}": split for split in ("train", "val", "test")}
    return {key: split for key, split in found.items() if key in last}


def _panel(run: Run, title: str, y: str, keys: dict[str, str], scale: float = 1) -> Panel:
    """A curve for each of ``{key of metrics.jsonl: label}`` that was recorded."""
    series = []
    for key, label in keys.items():
        lines = [line for line in run.metrics if isinstance(line.get(key), int | float)]
        if lines:
            x, values = (np.array([line[each] for line in lines]) for each in ("epoch", key))
            series.append(Series(label, x, values * scale))
    return Panel(title, "epoch", y, tuple(series), log="y" if "lr" in keys and series else "")


def _weight(run: Run) -> Panel:
    lines = [line for line in run.metrics if {"weight_mean", "weight_std"} <= line.keys()]
    x, mean, spread = (
        np.array([line[key] for line in lines], dtype=float)
        for key in ("epoch", "weight_mean", "weight_std")
    )
    series = Series("weight", x, mean, mean - spread, mean + spread, "w ± s over samples")
    return Panel("weight of samples", "epoch", "w", (series,) if len(x) else ())
