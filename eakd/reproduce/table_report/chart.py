"""The paper's numbers against ours as an SVG, written by hand: no dependency, the same bytes."""

from __future__ import annotations

import math

from eakd.reproduce.escaping import html_text
from eakd.reproduce.palette import Look, looks
from eakd.reproduce.table_report.numbers import Entry, Report

SIDE, LEFT, TOP, BOTTOM, LEGEND = 420, 56, 34, 48, 150  # pixels

_STYLE = """
.chart { color: #1f2328; font: 12px system-ui, sans-serif; }
.chart text { fill: currentColor; } .chart .grid { stroke: currentColor; opacity: .15; }
.chart .same { stroke: currentColor; stroke-dasharray: 4 3; opacity: .6; }
.chart .frame { fill: none; stroke: currentColor; opacity: .4; }
.chart circle { stroke-width: 1.5; } .chart .spread { stroke-width: 1.5; opacity: .7; }
@media (prefers-color-scheme: dark) { .chart { color: #e6edf3; } }
"""


def chart(report: Report) -> str:
    """A panel for each metric: paper across, ours up, a dot a cell, bars of one standard deviation.

    Teachers are left out: their numbers come from a file, and would squeeze the students'.
    """
    entries = [
        entry
        for entry in report.entries
        if entry.cell.method != "teacher"
        and entry.paper.mean is not None
        and report.ours(entry).mean is not None
    ]
    names = list(dict.fromkeys(_series(report, entry) for entry in entries))
    paint = {name: _paint(look) for name, look in looks(names).items()}
    panels = [metric for metric in report.table.metrics if any(e.metric == metric for e in entries)]
    width = LEFT + len(panels) * (SIDE + LEFT) + (LEGEND if panels else SIDE)
    height = TOP + SIDE + BOTTOM if panels else 2 * TOP
    title = f"The paper's {html_text(report.table.quantities)} against ours, {report.select} epoch"
    lines = [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
    ]
    if not panels:
        lines.append(f'<text x="{LEFT}" y="{TOP}">No finished cell that the paper prints.</text>')
    for place, metric in enumerate(panels):
        shown = [entry for entry in entries if entry.metric == metric]
        lines += _panel(report, metric, shown, paint, LEFT + place * (SIDE + LEFT))
    for place, name in enumerate(names):
        x, y = LEFT + len(panels) * (SIDE + LEFT) - LEFT + 20, TOP + 10 + 20 * place
        lines.append(f'<circle cx="{x}" cy="{y}" r="5" {paint[name]}/>')
        lines.append(f'<text x="{x + 12}" y="{y + 4}">{html_text(name)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _series(report: Report, entry: Entry) -> str:
    return entry.cell.method if len(report.table.methods) > 1 else entry.cell.variant


def _paint(look: Look) -> str:
    """A look as attributes of an element."""
    return f'stroke="{look.colour}" fill="{look.colour if look.filled else "none"}"'


def _panel(
    report: Report, metric: str, entries: list[Entry], paint: dict[str, str], left: int
) -> list[str]:
    ends = [entry.paper.mean for entry in entries]
    for score in map(report.ours, entries):
        ends += [score.mean - (score.std or 0), score.mean + (score.std or 0)]
    # Both axes share the range, so that the diagonal is where ours equals the paper's.
    step = _step(max(ends) - min(ends))
    low, high = step * math.floor(min(ends) / step), step * math.ceil(max(ends) / step)
    high = high if high > low else low + step
    bottom = TOP + SIDE

    def across(value: float) -> float:
        return left + SIDE * (value - low) / (high - low)

    def up(value: float) -> float:
        return bottom - SIDE * (value - low) / (high - low)

    lines = [f'<rect class="frame" x="{left}" y="{TOP}" width="{SIDE}" height="{SIDE}"/>']
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        x, y = f"{across(value):.1f}", f"{up(value):.1f}"
        lines += [
            f'<path class="grid" d="M{x} {TOP}V{bottom}M{left} {y}H{left + SIDE}"/>',
            f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>',
            f'<text x="{left - 6}" y="{y}" dy="4" text-anchor="end">{value:g}</text>',
        ]
    middle, shown = left + SIDE // 2, html_text(f"{metric} {report.table.unit}".rstrip())
    lines += [
        f'<path class="same" d="M{left} {bottom}L{left + SIDE} {TOP}"/>',
        f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">paper, {shown}</text>',
        f'<text x="{left}" y="{TOP - 12}">ours, {shown}, {report.select} epoch; '
        "dashed: equal</text>",
    ]
    for entry in entries:
        score, look = report.ours(entry), paint[_series(report, entry)]
        x, y = across(entry.paper.mean), up(score.mean)
        spread = "" if score.std is None else f" ± {score.std:.2f}"
        lines.append(
            f"<g><title>{html_text(entry.cell.label)}: paper {entry.paper.mean:.2f}, "
            f"ours {score.mean:.2f}{spread} ({score.seeds})</title>"
        )
        if score.std:
            ends = f"M{x:.1f} {up(score.mean - score.std):.1f}V{up(score.mean + score.std):.1f}"
            lines.append(f'<path class="spread" d="{ends}" {look}/>')
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {look}/></g>')
    return lines


def _step(span: float) -> float:
    """A round distance between ticks, of which at most ten fit into ``span``."""
    return next(
        (step for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if span <= 10 * step),
        10.0,
    )
