"""The paper's numbers against ours as an SVG; the same report gives the same bytes."""

from __future__ import annotations

from typing import Any

from eakd.plotting import INK, LINE, SOFT, image, inline_svg, new_figure, style
from eakd.reproduce.escaping import html_text, one_line
from eakd.reproduce.palette import Look, looks
from eakd.reproduce.table_report.numbers import Entry, Report

SIDE, LEGEND = 3.4, 1.1  # inches of a panel and of the list of names beside it
EMPTY = "No finished cell that the paper prints."


def chart(report: Report) -> str:
    """A panel for each metric: paper across, ours up, a dot a cell, bars of one standard deviation.

    Teachers are left out: their numbers come from a file, and would squeeze the students'.

    Raises:
        UserError: matplotlib is missing.
    """
    entries = [
        entry
        for entry in report.entries
        if entry.cell.method != "teacher"
        and entry.paper.mean is not None
        and report.ours(entry).mean is not None
    ]
    paint = looks(list(dict.fromkeys(_series(report, entry) for entry in entries)))
    panels = [metric for metric in report.table.metrics if any(e.metric == metric for e in entries)]
    with style():
        figure = new_figure(SIDE * max(1, len(panels)) + LEGEND * bool(panels), SIDE)
        if not panels:
            figure.set_size_inches(SIDE, 0.6)
            figure.text(0.05, 0.5, EMPTY)
        handles: dict[str, Any] = {}
        titles: dict[str, str] = {}
        for place, metric in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            shown = [entry for entry in entries if entry.metric == metric]
            handles |= _panel(axes, report, metric, shown, paint, titles)
        if handles:
            names = [name for name in paint if name in handles]
            figure.legend(
                [handles[name] for name in names],
                list(map(one_line, names)),
                loc="outside right upper",
            )
        content = image(figure, "svg")
    quantities = one_line(report.table.quantities)
    label = f"The paper's {quantities} against ours, {report.select} epoch"
    text = inline_svg(content, label).replace("<svg ", '<svg class="chart" ', 1)
    for key, title in titles.items():  # what the browser shows beside a dot
        text = text.replace(
            f'<g id="{key}">', f'<g id="{key}"><title>{html_text(title)}</title>', 1
        )
    # Dark pages have light text; a picture on its own is black on white.
    return text.replace(INK, "currentColor")


def _series(report: Report, entry: Entry) -> str:
    return entry.cell.method if len(report.table.methods) > 1 else entry.cell.variant


def _panel(
    axes: Any,
    report: Report,
    metric: str,
    entries: list[Entry],
    paint: dict[str, Look],
    titles: dict[str, str],
) -> dict[str, Any]:
    """Draw one; add ``{id in the SVG: text}`` of each dot to ``titles``.

    Returns:
        Name → what a legend shows for it.
    """
    ends = [entry.paper.mean for entry in entries]
    for score in map(report.ours, entries):
        ends += [score.mean - (score.std or 0), score.mean + (score.std or 0)]
    margin = 0.05 * (max(ends) - min(ends)) or 0.5
    # Both axes share the range, so that the diagonal is where ours equals the paper's.
    low, high = min(ends) - margin, max(ends) + margin
    shown = one_line(f"{metric} {report.table.unit}".rstrip())
    axes.set(
        xlim=(low, high), ylim=(low, high), aspect="equal", xlabel=f"paper, {shown}",
        ylabel=f"ours, {shown}, {report.select} epoch", facecolor="none", title="dashed: equal",
    )  # fmt: skip
    axes.figure.set_facecolor("none")
    axes.grid(color=LINE, alpha=0.6)
    axes.plot([low, high], [low, high], color=SOFT, linestyle="--", linewidth=0.8)
    handles = {}
    for entry in entries:
        score, name = report.ours(entry), _series(report, entry)
        look, key = paint[name], f"cell-{len(titles)}"
        spread = "" if score.std is None else f" ± {score.std:.2f}"
        titles[key] = (
            f"{entry.cell.label}: paper {entry.paper.mean:.2f}, ours {score.mean:.2f}{spread} "
            f"({score.seeds})"
        )
        if score.std:
            ends = [score.mean - score.std, score.mean + score.std]
            axes.plot([entry.paper.mean] * 2, ends, color=look.colour, alpha=0.7,
                      gid=f"spread-{len(titles)}")  # fmt: skip
        (dot,) = axes.plot(
            [entry.paper.mean], [score.mean], "o", color=look.colour, markersize=5, gid=key,
            markerfacecolor=look.colour if look.filled else "none",
        )  # fmt: skip
        handles.setdefault(name, dot)
    return handles
