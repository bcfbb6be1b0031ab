"""The report of a table of the paper, from whatever runs are finished."""

from __future__ import annotations

from pathlib import Path

from eakd.files import write_text
from eakd.plotting import has_matplotlib
from eakd.reproduce.table_report.chart import chart
from eakd.reproduce.table_report.numbers import Report, Results, States, summarise
from eakd.reproduce.table_report.page import html_page
from eakd.reproduce.table_report.text import csv_text, latex, markdown
from eakd.reproduce.writing import insert_block

NO_CHART = "<p>The chart needs matplotlib: pip install 'eakd[plots]'</p>\n"

__all__ = ["Report", "Results", "States", "insert_block", "markdown", "summarise", "write_report"]


def write_report(report: Report, folder: Path) -> str:
    """Write ``report.md``, ``.tex``, ``.csv``, ``.html``, ``.svg`` to ``folder``; return Markdown.

    The same runs lead to the same bytes. Without matplotlib there is no ``.svg``, and the page says
    how to get it.
    """
    text, svg = markdown(report), chart(report) if has_matplotlib() else ""
    write_text(folder / "report.md", text)
    write_text(folder / "report.tex", latex(report))
    write_text(folder / "report.csv", csv_text(report))
    write_text(folder / "report.html", html_page(report, svg or NO_CHART))
    if svg:
        write_text(folder / "report.svg", svg)
    else:
        (folder / "report.svg").unlink(missing_ok=True)  # of other numbers
    return text
