"""The report of a table of the paper, from whatever runs are finished."""

from __future__ import annotations

from pathlib import Path

from eakd.errors import UserError
from eakd.files import write_atomically
from eakd.reproduce.table_report.chart import chart
from eakd.reproduce.table_report.numbers import Report, Results, States, summarise
from eakd.reproduce.table_report.page import html_page
from eakd.reproduce.table_report.text import csv_text, latex, markdown

__all__ = ["Report", "Results", "States", "insert_block", "markdown", "summarise", "write_report"]


def write_report(report: Report, folder: Path) -> str:
    """Write ``report.md``, ``.tex``, ``.csv``, ``.html``, ``.svg`` to ``folder``; return Markdown.

    The same runs lead to the same bytes.
    """
    text, svg = markdown(report), chart(report)
    _write(folder / "report.md", text)
    _write(folder / "report.tex", latex(report))
    _write(folder / "report.csv", csv_text(report))
    _write(folder / "report.html", html_page(report, svg))
    _write(folder / "report.svg", svg)
    return text


def insert_block(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in a file.

    Raises:
        UserError: the file does not hold both markers, once and in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (old.count(begin), old.count(end)) != (1, 1) or old.index(begin) > old.index(end):
        raise UserError(
            f"{path}: found no block {name!r}, allowed is one line {begin} and, after it, {end}"
        )
    before, rest = old.split(begin)
    _write(path, f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))
