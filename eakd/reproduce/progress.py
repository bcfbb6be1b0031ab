"""A plan as text: how far it is, and how long the rest takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eakd.reproduce.answers import tables_that_pay
from eakd.reproduce.escaping import printable
from eakd.reproduce.plan import STATES, Job, Plan, State
from eakd.reproduce.table import Cell
from eakd.training.protocol import read_speeds
from eakd.training.protocol import recorded_epochs as epochs_of
from eakd.training.reading import read_json

TOLD = ("done", "failed", "stale")  # the last two are trained again only when told


class Estimate(NamedTuple):
    """Hours of computation that remain on a kind of device.

    Attributes:
        device: as recorded by the runs that were timed.
        hours: of the remaining runs whose speed is known.
        known, unknown: how many runs that covers, and how many not.
        spared: runs of which it counts teacher passes that a table will spare them, because none
            with a table is on record.
    """

    device: str
    hours: float
    known: int
    unknown: int
    spared: int = 0


def recorded_epochs(
    plan: Plan, states: dict[Path, State], output_root: str
) -> dict[str, dict[str, float]]:
    """``{device: {kind of run: mean seconds per epoch}}``, from runs or else as timed.

    Runs for which a table answered are a kind of their own, `with_table`.
    """
    begun: dict[str, list[Path]] = defaultdict(list)
    for job in plan.jobs:
        if states[job.directory].epochs:
            kind = with_table(job.kind) if _has_table(job.directory) else job.kind
            begun[kind].append(job.directory)
    speeds = read_speeds(output_root)
    for kind, directories in begun.items():
        for device, seconds in epochs_of(directories).items():
            speeds.setdefault(device, {})[kind] = sum(seconds) / len(seconds)
    return speeds


def estimate(plan: Plan, states: dict[Path, State], output_root: str) -> list[Estimate]:
    """Time that remains on each kind of device on which something was timed."""
    remaining = [job for job in plan.jobs if states[job.directory].name not in TOLD]
    using = frozenset().union(*(t.jobs for t in tables_that_pay(plan, states) if t.room))
    found = []
    for device, seconds in recorded_epochs(plan, states, output_root).items():
        left, spared = [], 0
        for job in remaining:
            table = job.directory in using or _has_table(job.directory)
            kind = with_table(job.kind) if table and with_table(job.kind) in seconds else job.kind
            if kind in seconds:
                left.append((job.epochs - states[job.directory].epochs) * seconds[kind])
                spared += table and kind == job.kind
        hours, unknown = sum(left) / 3600, len(remaining) - len(left)
        found.append(Estimate(device, hours, len(left), unknown, spared))
    return found


def with_table(kind: str) -> str:
    """The kind of such runs with a table of answers in the teacher's place."""
    return f"{kind} with a table"


def _has_table(directory: Path) -> bool:
    found = read_json(directory / "environment.json")
    return isinstance(found, dict) and found.get("teacher_table", "none") != "none"


def describe_plan(
    plan: Plan,
    states: dict[Path, State],
    output_root: str,
    *,
    every_run: bool,
    grid: bool = False,
    measurable: bool = False,
) -> str:
    """The plan as text: counts, time that remains, and runs.

    Args:
        every_run: list every run; otherwise those that are begun and not done.
        grid: instead of the latter, methods × pairs with the number of seeds in each state.
        measurable: where no speed is known, say how to time the runs.
    """
    table, jobs = plan.table, plan.jobs
    counts = Counter(states[job.directory].name for job in jobs)
    # What nobody hopes for is told where there is some.
    told = [name for name in STATES if counts[name] or name not in ("damaged", "stale")]
    lines = [
        f"table {table.name} (protocol {plan.protocol}, scale {plan.scale}): {len(jobs)} runs, "
        f"{len(plan.teachers)} of them teachers",
        "  " + ", ".join(f"{counts[name]} {name}" for name in told),
    ]
    estimates = estimate(plan, states, output_root)
    for device, hours, known, unknown, spared in estimates:
        rest = f"; the speed of {unknown} more is not known" if unknown else ""
        rest += f"; less, for a table will answer {spared} of them" if spared else ""
        if known:
            lines.append(f"  {hours:.1f} hours remain on one {device} for {known} runs{rest}")
    remains = any(states[job.directory].name not in TOLD for job in jobs)
    if measurable and remains and not any(each.known for each in estimates):
        lines.append("  no speed is known here: measure=20 times 20 steps of each kind of run")
    lines += [f"  {shared}" for shared in tables_that_pay(plan, states)]
    for job in jobs:
        name, text, _ = states[job.directory]
        if every_run or (not grid and name not in ("done", "to do")):
            detail = f": {text}" if text else ""
            lines.append(f"  {name:<11} {job.label} ({job.directory}){detail}")
    if grid:  # at the end, where a terminal shows it
        lines += ["", *_grid(plan, states)]
        lines += [] if every_run else ["  verbose=true lists every run"]
    return printable("\n".join(lines))


def _grid(plan: Plan, states: dict[Path, State]) -> list[str]:
    """Methods down, pairs along, teacher over student; in each place the states of its runs."""
    table, teachers = plan.table, {job.saves: job for job in plan.teachers}
    labels = list(dict.fromkeys((cell.method, cell.variant) for cell in plan.cells))
    rows = [["", *(pair.split("-")[place] for pair in table.pairs)] for place in (0, 1)]
    if teachers:
        row = ["teacher"]
        for pair in table.pairs:
            files = {job.teacher for cell in table.at(pair=pair) for job in _of(plan, cell)}
            row.append(_counts([teachers[file] for file in files & teachers.keys()], states))
        rows.append(row)
    for method, variant in labels:
        row = [f"{method} {variant}".strip()]
        for pair in table.pairs:
            cells = table.at(pair=pair, method=method, variant=variant)
            row.append(_counts([job for cell in cells for job in _of(plan, cell)], states))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  "
        + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    legend = ", ".join(f"{letter} {name}" for name, letter in STATES.items())
    return [*lines, f"  seeds in each state: {legend}"]


def _of(plan: Plan, cell: Cell) -> list[Job]:
    return list(plan.cells.get(cell, {}).values())


def _counts(jobs: Sequence[Job], states: dict[Path, State]) -> str:
    """``3d 1r 1t``."""
    counts = Counter(states[job.directory].name for job in jobs)
    return " ".join(f"{counts[name]}{letter}" for name, letter in STATES.items() if counts[name])
