"""Reading what runs recorded of single samples, over epochs (`eakd.training.sample_values`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eakd.analysis.runs import Run, Runs
from eakd.errors import UserError
from eakd.training.sample_values import read_samples, sample_epochs, sample_file


class Recorded(NamedTuple):
    """Values over epochs.

    Attributes:
        index: ``(n,)``, positions in the training set.
        values: ``{name: (epochs, n)}`` float32; NaN where an epoch did not see a sample, or where a
            method has no such value.
    """

    index: np.ndarray
    values: dict[str, np.ndarray]


def shared_epochs(runs: Runs, at_least: int = 2) -> list[int]:
    """The epochs of which all of the runs have the values of samples.

    Raises:
        UserError: there are fewer than ``at_least``.
    """
    shared = sorted(set.intersection(*(set(sample_epochs(run.directory)) for run in runs)))
    if len(shared) < at_least:
        raise UserError(
            f"runs: found {len(shared)} epochs of which all runs have the values of samples, "
            f"allowed are at least {at_least} (record.samples=all; retrain=true trains again)"
        )
    return shared


def over_epochs(
    run: Run, epochs: Iterable[int], names: Sequence[str], optional: Sequence[str] = ()
) -> Recorded:
    """The values of a run's samples at these epochs.

    Args:
        optional: names that are left out where the run has no such value.

    Raises:
        UserError: a file is damaged, or none of them holds one of the values.
    """
    files = [read_samples(sample_file(run.directory, epoch)) for epoch in epochs]
    index = np.unique(np.concatenate([each["index"] for each in files]))
    values = {}
    for name in (*names, *optional):
        if not any(name in each for each in files):
            if name in optional:
                continue
            raise UserError(
                f"runs: found no {name} of single samples in {run.directory}, allowed is a run "
                "that measures it"
            )
        rows = np.full((len(files), len(index)), np.nan, np.float32)
        for row, each in zip(rows, files, strict=True):
            if name in each:
                row[np.searchsorted(index, each["index"])] = each[name]
        values[name] = rows
    return Recorded(index, values)


def mean_over(values: np.ndarray) -> np.ndarray:
    """``(n,)`` means of ``(epochs, n)`` over the epochs that saw a sample."""
    return np.nanmean(values, axis=0, dtype=np.float64)


def spread_over(values: np.ndarray) -> np.ndarray:
    """``(n,)`` standard deviations, ddof 0, of ``(epochs, n)`` over those epochs."""
    return np.nanstd(values, axis=0, dtype=np.float64)


def means_of(by_seed: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, float]:
    """``{quantity: {method: {seed: value}}}`` as ``{quantity.method: mean}``."""
    return {
        f"{key}.{name}": float(np.mean([*seeds.values()]))
        for key, methods in by_seed.items()
        for name, seeds in methods.items()
    }


def epochs_text(epochs: Sequence[int]) -> str:
    """``epochs 1 to 12``, or which of them were recorded."""
    every = list(epochs) == list(range(epochs[0], epochs[-1] + 1))
    return f"{'' if every else 'recorded '}epochs {epochs[0]} to {epochs[-1]}" + (
        "" if every else f" ({len(epochs)} of them)"
    )


def about(runs: Runs, samples: int) -> dict[str, Any]:
    """What the caption says of runs that are compared on the training set."""
    return {
        "seeds": runs.seeds,
        "epochs": sorted({run.epochs for run in runs}),
        "samples": samples,
        "split": "train",
        "entropy_temperature": sorted({run.entropy_temperature for run in runs}),
    }
