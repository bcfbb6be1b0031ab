"""What finished runs were made with, and what to know before comparing them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from omegaconf import OmegaConf

from eakd.config import base_method, published
from eakd.reproduce.table import Cell, Table, paper_numbers


class Finished(Protocol):
    """A run with its summary."""

    cell: Cell
    summary: Mapping[str, Any]


def notes(table: Table, runs: Sequence[Finished]) -> Iterator[str]:
    """What a reader must know before comparing numbers, a line each."""
    yield from (f"Warning: {text}" for text in _warnings(table, runs))
    for note in paper_numbers()["notes"]:
        named = " ".join(re.findall(r"Tables? ((?:, | and |\d+)+)", note))
        if table.name in re.findall(r"\d+", named):
            yield f"Note on the paper: {note}"


def _warnings(table: Table, runs: Sequence[Finished]) -> Iterator[str]:
    short, teachers = Counter(), defaultdict(set)
    for run in runs:
        epochs, full = run.summary["epochs"], paper_epochs(table, run.cell)
        if epochs < full:
            short[epochs, full] += 1
        for metric in table.metrics:
            if f"teacher_{metric}" in run.summary:
                teacher = run.cell.pair.split("-")[0]
                teachers[teacher, metric].add(run.summary[f"teacher_{metric}"])
    for (epochs, full), count in sorted(short.items()):
        yield f"{epochs} epochs instead of the {full} of the authors' protocol in {_runs(count)}"
    for (teacher, metric), values in teachers.items():
        if max(values) - min(values) > 0.015:  # more than the last of the digits that are shown
            yield (
                f"{metric} of the teacher {teacher} is from {min(values):.2f} to "
                f"{max(values):.2f} among the runs: different teacher files, precision or devices"
            )
    summaries = [run.summary for run in runs]
    for key in ("selection", "recipe", "data_fingerprint"):
        yield from _mixed(key, [summary.get(key) for summary in summaries])
    for key, values in environment(summaries).items():
        if key != "modified":  # has a line of its own
            yield from _mixed(key, values)
    modified = sum(bool(summary.get("environment", {}).get("modified")) for summary in summaries)
    if modified:
        yield f"the code had uncommitted changes in {_runs(modified)}"


def paper_epochs(table: Table, cell: Cell) -> int:
    """The epochs of ``recipe=authors``, with which the paper's numbers were trained."""
    teacher, student = cell.pair.split("-")
    method = base_method(cell.method)
    names = {"data": table.data, "distiller": method, "teacher": teacher, "student": student}
    config = OmegaConf.create({key: {"name": name} for key, name in names.items()})
    config.weighting = {"kind": "uniform" if cell.method == method else "ea"}
    return published(config, "common.epochs", "authors.epochs")


def environment(summaries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Precision, device, versions and commit: key → one value a run."""
    found = [
        {
            "precision": summary.get("precision"),
            "device": str(summary.get("device")).split(":")[0],  # cuda:0 and cuda:1 are alike
            **summary.get("environment", {}),
        }
        for summary in summaries
    ]
    # Which core or GPU a worker happened to get changes from launch to launch, and no number.
    places = ("affinity", "visible_devices")
    keys = dict.fromkeys(key for each in found for key in each if key not in places)
    return {key: [each.get(key) for each in found] for key in keys}


def environment_lines(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What all runs share in one line, and a line for each thing that differs."""
    same, differing = [], []
    for key, values in environment(summaries).items():
        if len(set(map(str, values))) == 1:
            same.append(one_line(f"{key} {values[0]}"))
        else:
            differing.append(f"{one_line(key)}: {_counts(values)}")
    if same:
        yield f"all runs: {', '.join(same)}"
    yield from differing


def one_line(text: object) -> str:
    """Without the line breaks that an error message or a name may hold."""
    return " ".join(str(text).split())


def _mixed(key: str, values: Sequence[Any]) -> Iterator[str]:
    if len(set(map(str, values))) > 1:
        yield f"mixed {one_line(key)} among the runs: {_counts(values)}"


def _counts(values: Iterable[Any]) -> str:
    """``2.9.0 (5 runs), 2.8.0 (1 run)``: the most frequent first."""
    counts = Counter(map(one_line, values))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{text} ({_runs(count)})" for text, count in ordered)


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count} runs"
