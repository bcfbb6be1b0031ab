"""What finished runs were made with, and what to know before comparing them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from omegaconf import OmegaConf

from eakd.composing import compose
from eakd.config import base_method, published
from eakd.reproduce.agreement import (
    TOLERANCE,
    count_runs,
    counted,
    environment,
    environment_warnings,
    mixed,
)
from eakd.reproduce.escaping import one_line
from eakd.reproduce.table import Cell, Table, paper_numbers


class Finished(Protocol):
    """A run with its summary."""

    cell: Cell
    summary: Mapping[str, Any]


def notes(table: Table, runs: Sequence[Finished]) -> Iterator[str]:
    """What a reader must know before comparing numbers, a line each."""
    yield from (f"Warning: {text}" for text in _warnings(table, runs))
    for note in paper_numbers()["notes"] if table.in_paper else ():
        named = " ".join(re.findall(r"Tables? ((?:, | and |\d+)+)", note))
        if table.name in re.findall(r"\d+", named):
            yield f"Note on the paper: {note}"


def _warnings(table: Table, runs: Sequence[Finished]) -> Iterator[str]:
    short, teachers = Counter(), defaultdict(set)
    for run in runs:
        if has_authors_protocol(table.data):
            epochs, full = run.summary["epochs"], paper_epochs(table, run.cell)
            if epochs < full:
                short[epochs, full] += 1
        for metric in table.metrics:
            if f"teacher_{metric}" in run.summary:
                teacher = run.cell.pair.split("-")[0]
                teachers[teacher, metric].add(run.summary[f"teacher_{metric}"])
    for (epochs, full), count in sorted(short.items()):
        told = f"{epochs} epochs instead of the {full} of the authors' protocol"
        yield f"{told} in {count_runs(count)}"
    for (teacher, metric), values in teachers.items():
        if max(values) - min(values) > TOLERANCE:
            yield (
                f"{metric} of the teacher {teacher} is from {min(values):.2f} to "
                f"{max(values):.2f} among the runs: different teacher files, precision or devices"
            )
    summaries = [run.summary for run in runs]
    for key in ("selection", "recipe", "data_fingerprint"):
        yield from mixed(key, [summary.get(key) for summary in summaries])
    yield from environment_warnings(summaries)


@cache
def has_authors_protocol(data: str) -> bool:
    """Whether a data set is the paper's, so that ``recipe=authors`` is its own recipe."""
    return compose([f"data={data}"]).recipe.name == "authors"


def full_length(table: Table, cell: Cell, epochs: int) -> bool:
    """Whether a run is as long as the one behind the paper's number."""
    return has_authors_protocol(table.data) and epochs == paper_epochs(table, cell)


def paper_epochs(table: Table, cell: Cell) -> int:
    """The epochs of ``recipe=authors``, with which the paper's numbers were trained."""
    teacher, student = cell.pair.split("-")
    method = base_method(cell.method)
    names = {"data": table.data, "distiller": method, "teacher": teacher, "student": student}
    config = OmegaConf.create({key: {"name": name} for key, name in names.items()})
    config.weighting = {"kind": "uniform" if cell.method == method else "ea"}
    return published(config, "common.epochs", "authors.epochs")


def environment_lines(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What all runs share in one line, and a line for each thing that differs."""
    same, differing = [], []
    for key, values in environment(summaries).items():
        if len(set(map(str, values))) == 1:
            same.append(one_line(f"{key} {values[0]}"))
        else:
            differing.append(f"{one_line(key)}: {counted(values)}")
    if same:
        yield f"all runs: {', '.join(same)}"
    yield from differing
