"""A `Report` as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from eakd.reproduce.comparison import first_metric
from eakd.reproduce.escaping import csv_cell, markdown_item, markdown_text, one_line
from eakd.reproduce.table_report.layout import (
    Text,
    address,
    describe,
    grids,
    headline,
    progress,
    time_line,
)
from eakd.reproduce.table_report.numbers import SELECT, Report, Run


def markdown(report: Report, level: int = 1, runs: bool = True) -> str:
    """The report as GitHub's Markdown.

    Args:
        level: of the first heading.
        runs: also list the runs, with links that hold in the report's folder only.
    """
    heading, lines = "#" * level, []
    lines += [f"{heading} {markdown_text(headline(report))}", ""]
    lines += [f"- {markdown_item(f'{name}: {text}')}" for name, text in report.about.items()]
    lines += ["", markdown_text(describe(report)), "", time_line(report)]
    if report.notes:
        lines += ["", *(f"- {markdown_item(text)}" for text in report.notes)]
    for grid in grids(report):
        lines += ["", f"{heading}# {markdown_text(grid.title)}", ""]
        lines += [_md_row([*grid.corner, *grid.columns])]
        lines += ["|" + "---|" * (len(grid.corner) + len(grid.columns))]
        last = None
        for labels, texts in grid.rows:
            shown = ["" if labels[0] == last and len(labels) > 1 else labels[0], *labels[1:]]
            cells = [_md_row(shown)[:-2], *(f" | {_md_text(text)}" for text in texts)]
            lines.append("".join(cells) + " |")
            last = labels[0]
    if report.environment:
        lines += ["", f"{heading}# Environment", ""]
        lines += [f"- {markdown_item(text)}" for text in report.environment]
    if runs:
        lines += ["", f"{heading}# Runs, {report.select} epoch", ""]
        for cell, of_cell in groupby(report.runs, key=lambda run: run.cell):
            states = groupby(of_cell, key=lambda run: run.summary is None and run.state)
            parts = [part for state, some in states for part in _md_runs(report, state, list(some))]
            lines.append(f"- {markdown_item(cell.label)}: {', '.join(parts)}")
    return "\n".join(lines) + "\n"


def _md_runs(report: Report, state: str | bool, runs: list[Run]) -> list[str]:
    """Finished runs with links; others of one state together."""
    if state:
        seeds = " ".join(str(run.seed) for run in runs)
        return [f"seed{'s' * (len(runs) > 1)} {seeds}: {markdown_text(str(state))}"]
    return [f"[seed {r.seed}]({address(r)}) {progress(r, report)}" for r in runs]


def _md_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, texts)) + " |"


def _md_text(text: Text) -> str:
    around = {"best": ("**", "**"), "second": ("<u>", "</u>")}.get(text.mark, ("", ""))
    return f"{around[0]}{markdown_text(text.value)}{around[1]} {markdown_text(text.note)}".rstrip()


# LaTeX

_LATEX = {char: f"\\{char}" for char in "#$%&_{}"} | {char: f"${char}$" for char in "<>|"}
_LATEX |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
_LATEX |= {"−": "$-$", "±": r"$\pm$", "–": "--", "→": r"$\to$", "×": r"$\times$"}
_LATEX |= {"τ": r"$\tau$", "′": r"$'$", "…": r"\dots{}"}


def latex(report: Report) -> str:
    """The grids as floats with booktabs' rules; they shrink to the width of the text."""
    # On one line each: what follows a line break in a comment would be obeyed.
    comments = [headline(report), r"needs \usepackage{booktabs,graphicx}"]
    comments += [f"{name}: {text}" for name, text in report.about.items()]
    comments += [describe(report), *report.notes]
    lines = [f"% {one_line(text)}" for text in comments]
    for grid in grids(report):
        aligned = "l" * len(grid.corner) + "c" * len(grid.columns)
        lines += ["", r"\begin{table}[p]", r"\centering\small"]
        lines += [rf"\caption{{{_tex(f'{report.table.title}. {grid.title}.')}}}"]
        lines += [r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"]
        lines += [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule"]
        lines += [_tex_row([*map(_tex, grid.corner), *map(_tex_head, grid.columns)])]
        last = None
        for labels, texts in grid.rows:
            new = labels[0] != last
            if new and (last is None or len(labels) > 1):
                lines.append(r"\midrule")
            shown = [labels[0] if new else "", *labels[1:]]
            lines.append(_tex_row([*map(_tex, shown), *map(_tex_text, texts)]))
            last = labels[0]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in one_line(text))


def _tex_row(cells: Sequence[str]) -> str:
    # The braces keep a "[" or "*" that follows the line break from being read as its argument.
    return "{}" + " & ".join(cells) + r" \\"


def _tex_head(text: str) -> str:
    lines = r"\\".join(_tex(line) for line in text.split("\n"))
    return rf"\shortstack{{{lines}}}" if "\n" in text else lines


def _tex_text(text: Text) -> str:
    around = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(text.mark, "%s")
    return f"{around % _tex(text.value)} {_tex(text.note)}".rstrip()


# CSV

COLUMNS = (
    "table", "pair", "method", "variant", "seed", "metric", "paper", "last", "best",
    "best_epoch", "selection", "epochs", "seconds", "directory", "commit", "state",
)  # fmt: skip


def csv_text(report: Report) -> str:
    """One row for each cell, seed and metric; a teacher's row has no seed."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()

    def write(row: dict[str, Any]) -> None:
        writer.writerow({key: csv_cell(value) for key, value in row.items()})

    for entry in report.entries:
        cell = entry.cell
        common = {
            "table": report.table.name,
            "pair": cell.pair,
            "method": cell.method,
            "variant": cell.variant,
            "metric": entry.metric,
            "paper": entry.paper.mean,
        }
        if cell.method == "teacher":
            state = "missing" if entry.last.mean is None else "evaluated"
            write({**common, "last": entry.last.mean, "state": state})
        for run in report.runs_of(cell):
            row = {**common, "seed": run.seed, "directory": run.place, "state": run.state}
            if run.summary is not None:
                row |= {which: run.summary.get(f"{entry.metric}_{which}") for which in SELECT}
                row |= {key: run.summary.get(key) for key in ("selection", "epochs", "seconds")}
                row["best_epoch"] = run.summary.get(f"{first_metric([run.summary])[0]}_best_epoch")
                row["commit"] = run.summary.get("environment", {}).get("commit")
            write(row)
    return stream.getvalue()
