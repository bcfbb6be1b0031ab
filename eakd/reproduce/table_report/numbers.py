"""What finished runs say about a table of the paper: computed once, for every format."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from eakd.errors import check_choice
from eakd.reproduce.agreement import INPUTS, count_runs, outdated, stale_text
from eakd.reproduce.comparison import Difference, metrics_of, paired_difference
from eakd.reproduce.escaping import one_line
from eakd.reproduce.table import Cell, Table, paper_numbers
from eakd.reproduce.table_report.provenance import environment_lines, notes

# cell → seed → what summary.json holds, with "directory" and "config" added
Results = Mapping[Cell, Mapping[int, Mapping[str, Any]]]
States = Mapping[Cell, Mapping[int, str]]

SELECT = ("last", "best")


@dataclass(frozen=True)
class Score:
    """The value of a metric, in the table's unit.

    Attributes:
        mean: ``None`` where there is none yet.
        std: sample standard deviation over seeds, ``None`` below two.
        seeds: how many; 0 for numbers that are no mean of ours (the paper's, a teacher's).
        mark: ``"best"``, ``"second"`` or ``""`` among those it competes with.
    """

    mean: float | None = None
    std: float | None = None
    seeds: int = 0
    mark: str = ""

    @classmethod
    def over(cls, values: Iterable[float]) -> Score:
        values = list(values)
        if not values:
            return cls()
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True)
class Entry:
    """One metric of one cell: the paper's number and both of ours.

    Attributes:
        sampling: standard deviation over samplings of one model, pooled over the cell's runs (root
            mean square); ``None`` where nothing is sampled.
    """

    cell: Cell
    metric: str
    paper: Score
    last: Score
    best: Score
    sampling: float | None = None


@dataclass(frozen=True)
class Run:
    """A wanted run.

    Attributes:
        state: ``"finished"``, and then there is a ``summary``, or what it is instead.
        place: the run's directory, relative to the report's folder.
    """

    cell: Cell
    seed: int
    state: str
    place: str = ""
    summary: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Gain:
    """A cell against the cell that `Table.gains` compares it with.

    Attributes:
        mean: over the ``seeds`` that both have, ``None`` without any.
        test: ``None`` where there is nothing to test: fewer than two seeds, or no spread.
        holm: the test's p, corrected for all tests of the table.
        paper: the difference of the paper's numbers.
    """

    cell: Cell
    other: Cell
    metric: str
    mean: float | None
    seeds: int
    test: Difference | None
    paper: float | None
    holm: float | None = None

    @property
    def names(self) -> tuple[str, str]:
        """The two methods, or variants, that are compared."""
        axis = "method" if self.cell.method != self.other.method else "variant"
        return getattr(self.cell, axis), getattr(self.other, axis)

    @property
    def verdict(self) -> str:
        if self.mean is None:
            return "no shared seed"
        if self.holm is None:
            return "no test"
        if self.holm >= 0.05:
            return "noise"
        return "gain" if self.mean > 0 else "loss"


@dataclass(frozen=True)
class Average:
    """A mean of gains, as the paper prints it below a table.

    Attributes:
        ours: over the ``done`` of ``total`` gains that have runs.
        paper: the paper's over the same gains.
        printed: the paper's over all, as printed.
    """

    name: str
    ours: float | None
    done: int
    total: int
    paper: float | None
    printed: float


@dataclass(frozen=True)
class Report:
    """Everything that a report shows; all formats are renderings of it.

    Attributes:
        select: ``"last"`` or ``"best"``: the value that is compared.
        selection: the splits that chose the best epochs.
        notes, environment: lines; warnings are among the notes.
        seconds: of each finished run.
    """

    table: Table
    select: str
    about: Mapping[str, str]
    entries: tuple[Entry, ...]
    gains: tuple[Gain, ...]
    averages: tuple[Average, ...]
    runs: tuple[Run, ...]
    selection: tuple[str, ...]
    notes: tuple[str, ...]
    environment: tuple[str, ...]
    seconds: tuple[float, ...]

    def ours(self, entry: Entry) -> Score:
        """The selected one of ``entry``'s two values."""
        return getattr(entry, self.select)

    def runs_of(self, cell: Cell) -> list[Run]:
        return [run for run in self.runs if run.cell == cell]


def summarise(
    table: Table,
    results: Results,
    folder: Path,
    *,
    select: str = "last",
    wanted_seeds: Sequence[int],
    states: States,
    about: Mapping[str, str],
) -> Report:
    """Compute a report.

    Args:
        results: the finished runs.
        folder: where the report will lie; places of runs are relative to it.
        select: the value that is compared with the paper and between cells.
        wanted_seeds: of every cell; the seeds of ``results`` are used beyond these too.
        states: what the unfinished runs are; ``"missing"`` where nothing is said.
        about: name → text, printed as lines.

    Raises:
        UserError: the runs do not measure what the table shows.
    """
    check_choice("select", select, SELECT)
    results, states = _set_aside(results, states)
    runs = []
    for cell in table.cells:
        if cell.method == "teacher":
            continue
        by_seed = results.get(cell, {})
        for seed in sorted({*wanted_seeds, *by_seed}):
            if seed in by_seed:
                place = os.path.relpath(by_seed[seed]["directory"], folder)
                run = Run(cell, seed, "finished", Path(place).as_posix(), by_seed[seed])
            else:
                run = Run(cell, seed, one_line(states.get(cell, {}).get(seed, "missing")))
            runs.append(run)
    # Pairs with the same student share its runs without distillation: counted once.
    finished = list({run.place: run for run in runs if run.summary is not None}.values())
    summaries = [run.summary for run in finished]
    # What is measured after training may be there in part: a set may be missing.
    for metric, summary in product(table.metrics, summaries if not table.evaluation else ()):
        check_choice(f"metrics of table {table.name}", metric, metrics_of(summary))
    gains = _gains(table, results, select)
    return Report(
        table=table,
        select=select,
        about={one_line(name): one_line(text) for name, text in about.items()},
        entries=_entries(table, results),
        gains=gains,
        averages=_averages(table, gains),
        runs=tuple(runs),
        selection=tuple(sorted({run["selection"] for run in summaries})),
        notes=(*_aside_notes(runs), *notes(table, finished)),
        environment=tuple(environment_lines(summaries)),
        seconds=tuple(run["seconds"] for run in summaries),
    )


def _aside_notes(runs: Sequence[Run]) -> Iterator[str]:
    for kind, why in (
        ("stale", "made with other data or another teacher than is used now; see retry=true"),
        ("damaged", "not readable"),
    ):
        count = sum(run.state.partition(":")[0] == kind for run in runs)
        if count:
            yield f"Warning: {count_runs(count)} {kind} ({why}) and in no mean"


def _set_aside(results: Results, states: States) -> tuple[Results, States]:
    """Take the runs out that were made from other data, or another teacher, than the newest ones.

    A plan has done so by the files that lie there now; this holds for runs from anywhere.
    """
    alike: dict[tuple[Any, ...], dict[tuple[Cell, int], Mapping[str, Any]]] = defaultdict(dict)
    for cell, by_seed in results.items():
        for seed, run in by_seed.items():
            config = run.get("config", {})
            # A table's own variants may set the data, or the teacher's file.
            alike[INPUTS[0], str(config.get("data"))][cell, seed] = run
            alike[INPUTS[1], cell.pair, str(config.get("teacher"))][cell, seed] = run
    stale = {}
    for (key, *_), runs in alike.items():
        for place, values in outdated(runs, key).items():
            stale[place] = stale_text(key, *values)
    kept = {
        cell: {seed: run for seed, run in by_seed.items() if (cell, seed) not in stale}
        for cell, by_seed in results.items()
    }
    told = {cell: dict(by_seed) for cell, by_seed in states.items()}
    for (cell, seed), text in stale.items():
        told.setdefault(cell, {})[seed] = f"stale: {text}"
    return kept, told


def _values(results: Results, cell: Cell, metric: str, which: str) -> dict[int, float]:
    by_seed, key = sorted(results.get(cell, {}).items()), f"{metric}_{which}"
    return {seed: run[key] for seed, run in by_seed if key in run}


def _entries(table: Table, results: Results) -> tuple[Entry, ...]:
    """Every cell and metric, with marks for the best and second best."""
    teachers = defaultdict(list)
    for cell in table.cells:
        for run in results.get(cell, {}).values():
            for metric in table.metrics:
                if f"teacher_{metric}" in run:
                    teachers[cell.pair, metric].append(run[f"teacher_{metric}"])
    entries, rivals = [], defaultdict(list)
    for cell in table.cells:
        for metric in table.metrics:
            if cell.method == "teacher":
                known = teachers[cell.pair, metric]
                last = best = Score(statistics.fmean(known) if known else None)
            else:
                last, best = (
                    Score.over(_values(results, cell, metric, which).values()) for which in SELECT
                )
                if cell.method not in ("none", "sft"):  # without a teacher
                    # Variants compete within a method, methods within a pair.
                    method = cell.method if len(table.variants) > 1 else ""
                    rivals[cell.pair, method, metric].append(len(entries))
            paper = Score(cell.paper.get(metric))
            sampling = _sampling(table, results, cell, metric)
            entries.append(Entry(cell, metric, paper, last, best, sampling))
    for places in rivals.values():
        for which in ("paper", *SELECT):
            scores = [getattr(entries[place], which) for place in places]
            for place, score in zip(places, _marked(scores), strict=True):
                entries[place] = replace(entries[place], **{which: score})
    return tuple(entries)


def _sampling(table: Table, results: Results, cell: Cell, metric: str) -> float | None:
    key = f"{metric}_sampling_std"
    if cell.method == "teacher":
        runs = [run for each in table.at(pair=cell.pair) for run in results.get(each, {}).values()]
        key = f"teacher_{key}"
    else:
        runs = [*results.get(cell, {}).values()]
    squares = [run[key] ** 2 for run in runs if key in run]
    return statistics.fmean(squares) ** 0.5 if squares else None


def _marked(scores: Sequence[Score]) -> list[Score]:
    """The best and second best marked, by the digits that are shown; equals share a mark."""
    shown = [None if score.mean is None else f"{score.mean:.2f}" for score in scores]
    ranking = sorted({text for text in shown if text is not None}, key=float, reverse=True)
    # A number without a rival is not the best of anything.
    marks = dict(zip(ranking, ("best", "second"), strict=False)) if len(ranking) > 1 else {}
    return [
        replace(score, mark=marks.get(text, "")) for score, text in zip(scores, shown, strict=True)
    ]


def _gains(table: Table, results: Results, select: str) -> tuple[Gain, ...]:
    gains = []
    for cell, other in table.compared():
        for metric in table.metrics:
            a = _values(results, cell, metric, select)
            b = _values(results, other, metric, select)
            both = sorted(set(a) & set(b))
            differences = [a[seed] - b[seed] for seed in both]
            # Equal differences say nothing about chance: their t-test would claim certainty.
            testable = len(both) > 1 and statistics.stdev(differences) > 1e-9
            known = metric in cell.paper and metric in other.paper
            gains.append(
                Gain(
                    cell=cell,
                    other=other,
                    metric=metric,
                    mean=statistics.fmean(differences) if both else None,
                    seeds=len(both),
                    test=paired_difference(a, b) if testable else None,
                    paper=cell.paper[metric] - other.paper[metric] if known else None,
                )
            )
    tested = [place for place, gain in enumerate(gains) if gain.test is not None]
    corrected = holm([gains[place].test.p for place in tested])
    for place, p in zip(tested, corrected, strict=True):
        gains[place] = replace(gains[place], holm=p)
    return tuple(gains)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several tests, in the order of ``p_values``."""
    corrected, highest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = highest
    return corrected


def _averages(table: Table, gains: Sequence[Gain]) -> tuple[Average, ...]:
    averages = []
    if not table.in_paper:
        return ()
    for name, printed in paper_numbers()["average_gains"].get(table.name, {}).items():
        meant = [gain for gain in gains if name in ("all", gain.cell.method, gain.metric)]
        done = [gain for gain in meant if gain.mean is not None]
        paper = [gain.paper for gain in done if gain.paper is not None]
        if meant:
            averages.append(
                Average(
                    name=name,
                    ours=statistics.fmean(gain.mean for gain in done) if done else None,
                    done=len(done),
                    total=len(meant),
                    paper=statistics.fmean(paper) if paper else None,
                    printed=printed,
                )
            )
    return tuple(averages)
