"""A `Report` as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from eakd.reproduce.escaping import html_text
from eakd.reproduce.table_report.layout import (
    Grid,
    Text,
    address,
    describe,
    grids,
    headline,
    progress,
    time_line,
)
from eakd.reproduce.table_report.numbers import Report

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --page: #ffffff; --tint: #f6f8fa; --link: #0969da; --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --page: #0d1117; --tint: #151b23; --link: #4493f8; --warn: #d29922; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 48rem; } li, p { overflow-wrap: anywhere; } a { color: var(--link); }
ul { padding-left: 1.25rem; } .notes { color: var(--warn); }
.scroll { overflow-x: auto; } figure { margin: 1.5rem 0; }
svg { max-width: 100%; height: auto; } .chart { font-family: system-ui, sans-serif; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); }
tbody { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 400; color: var(--soft); }
tbody th:first-child:not(.sub) { font-weight: 600; color: var(--ink); position: sticky; left: 0;
  background: var(--page); }
tbody tr:hover td { background: var(--tint); }
td small { color: var(--soft); } td .runs { display: block; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; } table { font-size: 7pt; } th, td { padding: 1pt 3pt; }
  td .runs { display: none; } tbody, figure { break-inside: avoid; } }
"""


def html_page(report: Report, chart: str) -> str:
    """One page that needs nothing else; ``chart`` is an SVG."""
    title = html_text(headline(report))
    about = [f"{html_text(name)}: {html_text(text)}" for name, text in report.about.items()]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{title}</h1>",
        _html_list("about", about),
        f"<p>{html_text(describe(report))}</p>",
        f"<p>\n{time_line(report)}\n</p>",
        _html_list("notes", map(html_text, report.notes)),
    ]
    tables = [_html_grid(grid, report) for grid in grids(report)]
    parts += [tables[0], f"<figure>\n{chart}</figure>", *tables[1:]]
    if report.environment:
        parts += ["<h2>Environment</h2>", _html_list("plain", map(html_text, report.environment))]
    open_runs = [
        html_text(f"{run.cell.label}, seed {run.seed}: {run.state}")
        for run in report.runs
        if run.summary is None
    ]
    if open_runs:
        parts += ["<details><summary>Unfinished runs</summary>", _html_list("plain", open_runs)]
        parts += ["</details>"]
    return "\n".join([*filter(None, parts), "</main></body></html>"]) + "\n"


def _html_list(kind: str, items: Iterable[str]) -> str:
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<ul class="{kind}">\n{lines}\n</ul>' if lines else ""


def _html_grid(grid: Grid, report: Report) -> str:
    heads = "".join(f'<th scope="col">{html_text(t)}</th>' for t in (*grid.corner, *grid.columns))
    heads = heads.replace("\n", "<br>")
    lines = [f"<h2>{html_text(grid.title)}</h2>", '<div class="scroll" tabindex="0"><table>']
    lines += [f"<thead><tr>{heads}</tr></thead>"]
    for label, rows in groupby(grid.rows, key=lambda row: row[0][0]):
        rows = list(rows)
        lines.append("<tbody>")
        for place, (labels, texts) in enumerate(rows):
            first = ""
            sub = "".join(f'<th class="sub" scope="row">{html_text(t)}</th>' for t in labels[1:])
            if place == 0:
                scope = f'scope="rowgroup" rowspan="{len(rows)}"' if sub else 'scope="row"'
                first = f"<th {scope}>{html_text(label)}</th>"
            cells = "".join(f"<td>{_html_text(text, report)}</td>" for text in texts)
            lines.append(f"<tr>{first}{sub}{cells}</tr>")
        lines.append("</tbody>")
    return "\n".join([*lines, "</table></div>"])


def _html_text(text: Text, report: Report) -> str:
    kind = {"best": "strong", "second": "u"}.get(text.mark, "span")
    shown = f"<{kind}>{html_text(text.value)}</{kind}>"
    if text.note:
        shown += f" <small>{html_text(text.note)}</small>"
    links = " ".join(
        f'<a href="{html_text(address(run))}" aria-label="run of seed {run.seed}" '
        f'title="{progress(run, report)}">{run.seed}</a>'
        for run in text.runs
    )
    return shown + (f'<small class="runs">{links}</small>' if links else "")
