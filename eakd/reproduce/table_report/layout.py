"""A `Report` as grids of text, which Markdown, LaTeX and HTML write each in its own way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from urllib.parse import quote

from eakd.reproduce.table import AXES
from eakd.reproduce.table_report.numbers import SELECT, Entry, Report, Run, Score

DASH = "–"


@dataclass(frozen=True)
class Text:
    """A place of a grid: ``note`` follows ``value`` and takes no part in its ``mark``."""

    value: str
    mark: str = ""
    note: str = ""
    runs: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Grid:
    """A table to print. Lines of a heading are separated by a line break.

    Attributes:
        corner: headings of the label columns.
        rows: labels, one for each of ``corner``, and one text for each of ``columns``.
    """

    title: str
    corner: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Text, ...]], ...]


def grids(report: Report) -> list[Grid]:
    """What is printed, in order; a grid without rows is left out."""
    other = SELECT[1 - SELECT.index(report.select)]
    found = [_paper_grid(report)]
    # One checkpoint of each run is evaluated after training.
    found += [_spread_grid(report)] if report.table.evaluation else [_our_grid(report, other)]
    found += [_gains_grid(report), _averages_grid(report)]
    return [grid for grid in found if grid.rows]


def headline(report: Report) -> str:
    name = report.table.name
    return f"Table {name}: {report.table.title}" if name.isdigit() else report.table.title


def describe(report: Report) -> str:
    """How to read the grids."""
    finished = sum(run.summary is not None for run in report.runs)
    # With a validation split, the best epoch is chosen there and its value on test is shown.
    chosen = " and ".join(report.selection) or "test"
    quantity = report.table.quantity
    separately = ", for the paper and ours separately" if report.table.in_paper else ""
    paper = "Paper: its mean of five runs. " if report.table.in_paper else ""
    return (
        f"{finished} of {len(report.runs)} runs are finished. {paper}Ours: "
        f"test {quantity}{_unit(report.table.unit)}, mean ± sample standard deviation over seeds, "
        "in brackets how many seeds. Last: after the final epoch. Best: of the epoch with the "
        f"highest {quantity} on the {chosen} split. Bold is the best, underlined the second best "
        f"among a pair's methods, or a method's variants{separately}. Gains "
        "are paired seed by seed, with a two-sided t-test, corrected by Holm's method over the "
        "tests of this table; noise is a corrected p of 0.05 or more."
    )


def _unit(unit: str, percent: str = "percent") -> str:
    """A table's unit behind the word for a quantity."""
    return f" in {percent if unit == '%' else unit}" if unit else ""


def time_line(report: Report) -> str:
    """The only line, besides a CSV column, that tells how long something took."""
    hours = sum(report.seconds) / 3600
    return f"Time: {hours:.2f} hours of training in all (finished runs: {len(report.seconds)})."


def address(run: Run) -> str:
    """A link to a finished run's directory."""
    return quote(os.fsencode(run.place), safe="/")


def progress(run: Run, report: Report) -> str:
    """A finished run's values, one for each metric, or what the run is instead."""
    if run.summary is None:
        return run.state
    values = [run.summary.get(f"{metric}_{report.select}") for metric in report.table.metrics]
    return " / ".join(DASH if value is None else f"{value:.2f}" for value in values)


# What is in the grids


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # + 0.0: no minus before zero


def _score(
    score: Score, wanted: int | None = None, runs: Sequence[Run] = (), stale: int = 0
) -> Text:
    """``wanted`` is how many seeds there should be, ``None`` for what is no mean over seeds."""
    note = ""
    if wanted is not None:
        parts = [str(score.seeds) if score.seeds == wanted else f"{score.seeds} of {wanted}"]
        note = f"({', '.join([*parts, *([f'{stale} stale'] if stale else [])])})"
    if score.mean is None:
        return Text(DASH, note=note)
    spread = "" if score.std is None else f" ± {score.std:.2f}"
    return Text(f"{score.mean:.2f}{spread}", score.mark, note, tuple(runs))


def _axes(report: Report) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The values along each axis, and the axes that rows' labels are made of."""
    table = report.table
    values = dict(
        zip(AXES, (table.pairs, table.methods, table.variants, table.metrics), strict=True)
    )
    joined = [a for a in AXES if a not in (table.rows, table.columns) and len(values[a]) > 1]
    return values, [table.rows, *joined]


def _laid_out(report: Report) -> tuple[tuple[str, ...], list[tuple[str, list[Entry]]]]:
    """Columns' headings, and each row's label and entries, as the paper arranges them."""
    table, (values, down) = report.table, _axes(report)
    at = {
        (entry.cell.pair, entry.cell.method, entry.cell.variant, entry.metric): entry
        for entry in report.entries
    }
    rows = []
    for labels in product(*(values[axis] for axis in down)):
        where = {axis: names[0] for axis, names in values.items()}
        where.update(zip(down, labels, strict=True))
        entries = [
            at[tuple({**where, table.columns: name}[axis] for axis in AXES)]
            for name in values[table.columns]
        ]
        rows.append((", ".join(labels), entries))
    heads = (name.replace("-", "\n") for name in values[table.columns])  # teacher over student
    return tuple(heads), rows


def _title(report: Report, which: str) -> str:
    values, down = _axes(report)
    fixed = [
        names[0]
        for axis, names in values.items()
        if axis not in (*down, report.table.columns) and names[0]
    ]
    # Nothing is fixed where all axes have several values, such as metrics of several pairs.
    return ": ".join(filter(None, [f"{which.capitalize()} epoch", ", ".join(fixed)]))


def _our_score(report: Report, entry: Entry, which: str) -> Text:
    if entry.cell.method == "teacher":
        return _score(getattr(entry, which))
    runs = report.runs_of(entry.cell)
    # One link to a run is enough: in the grid of the selected value.
    linked = [run for run in runs if run.summary is not None and which == report.select]
    stale = sum(run.state.startswith("stale") for run in runs)
    return _score(getattr(entry, which), len(runs), linked, stale)


def _paper_grid(report: Report) -> Grid:
    """The paper's number, ours and the difference below each other; of a table of its own, ours."""
    if not report.table.in_paper:
        return _our_grid(report, report.select)
    columns, laid_out = _laid_out(report)
    rows = []
    for label, entries in laid_out:
        ours = [report.ours(entry) for entry in entries]
        differences = [
            Text(DASH)
            if None in (score.mean, entry.paper.mean)
            else Text(_signed(score.mean - entry.paper.mean))
            for score, entry in zip(ours, entries, strict=True)
        ]
        rows += [
            ((label, "paper"), tuple(_score(entry.paper) for entry in entries)),
            ((label, "ours"), tuple(_our_score(report, e, report.select) for e in entries)),
            ((label, "ours − paper"), tuple(differences)),
        ]
    corner = (report.table.rows, f"{report.select} epoch")
    return Grid(_title(report, report.select), corner, columns, tuple(rows))


def _our_grid(report: Report, which: str) -> Grid:
    columns, laid_out = _laid_out(report)
    rows = [
        ((label,), tuple(_our_score(report, entry, which) for entry in entries))
        for label, entries in laid_out
        # A teacher has no last and best epoch; its place is in the grid of the selected one.
        if which == report.select or any(entry.cell.method != "teacher" for entry in entries)
    ]
    return Grid(_title(report, which), (f"{report.table.rows}, ours",), columns, tuple(rows))


def _spread_grid(report: Report) -> Grid:
    """The two reasons why a number would be another one next time, side by side."""
    columns, laid_out = _laid_out(report)
    rows = []
    for label, entries in laid_out:
        training = [report.ours(entry).std for entry in entries]
        sampling = [entry.sampling for entry in entries]
        for name, values in (("training seeds", training), ("sampling seeds", sampling)):
            if any(value is not None for value in values):
                shown = [DASH if value is None else f"{value:.2f}" for value in values]
                rows.append(((label, name), tuple(map(Text, shown))))
    title = "Standard deviations: between training seeds, and between samplings of one model"
    return Grid(title, (report.table.rows, "over"), columns, tuple(rows))


def _gains_grid(report: Report) -> Grid:
    rows = []
    for gain in report.gains:
        place = [gain.cell.pair, *([] if report.table.variants == ("",) else [gain.cell.method])]
        place += [gain.metric] if len(report.table.metrics) > 1 else []
        test, paper = gain.test, DASH if gain.paper is None else _signed(gain.paper)
        texts = (
            DASH if gain.mean is None else _signed(gain.mean),
            DASH if test is None else f"{_signed(test.low)} to {_signed(test.high)}",
            str(gain.seeds),
            DASH if test is None else _p(test.p),
            DASH if gain.holm is None else _p(gain.holm),
            gain.verdict,
            paper,
        )
        rows.append(((" − ".join(gain.names), ", ".join(place)), tuple(map(Text, texts))))
    columns = ("ours", "95 % interval", "seeds", "p", "Holm p", "verdict", "paper")
    if not report.table.in_paper:
        columns, rows = columns[:-1], [(labels, texts[:-1]) for labels, texts in rows]
    unit = _unit(report.table.unit, "percentage points")
    title = f"Gains, {report.select} epoch{',' if unit else ''}{unit}"
    return Grid(title, ("gain", "at"), columns, tuple(rows))


def _p(p: float) -> str:
    return "<0.001" if p < 0.0005 else f"{p:.3f}"


def _averages_grid(report: Report) -> Grid:
    rows = []
    for average in report.averages:
        ours, paper = (
            DASH if value is None else _signed(value) for value in (average.ours, average.paper)
        )
        over = f"{average.done} of {average.total}"
        texts = (ours, over, paper, _signed(average.printed))
        rows.append(((average.name,), tuple(map(Text, texts))))
    columns = ("ours", "over", "paper, over the same", "paper, printed")
    return Grid(f"Average gains, {report.select} epoch", ("of",), columns, tuple(rows))
