"""Captions, and the page of all figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eakd.analysis.result import Result
from eakd.analysis.statements import Line
from eakd.files import write_text
from eakd.plotting import inline_svg
from eakd.reproduce.escaping import html_text, markdown_text
from eakd.reproduce.table_report.page import STYLE
from eakd.training.reading import read_json

LARGE = 3_000_000  # bytes of an SVG from which the page shows the PNG
ROWS = ("statement", "paper", "ours", "holds")

_MORE_STYLE = """
figure.chart { background: #fff; padding: .5rem; max-width: 54rem; }
figure.chart svg, figure.chart img { display: block; width: 100%; height: auto; }
.soft { color: var(--soft); font-size: .875rem; } td { white-space: normal; }
"""


class Shown(NamedTuple):
    """A figure as pages show it: what its folder's ``figure.json`` holds under ``page``."""

    name: str
    title: str
    shows: str
    not_shows: str
    about: str
    notes: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def heading(self) -> str:
        return f"Fig. {self.name}. {self.title}" if self.name != "run" else self.title


def shown(name: str, title: str, result: Result, lines: Sequence[Line]) -> Shown:
    """What pages say of a figure."""
    return Shown(
        name, title, result.shows, result.not_shows, about_text(result.about), tuple(result.notes),
        tuple(lines),
    )  # fmt: skip


def about_text(about: Mapping[str, Any]) -> str:
    """``n = 3 (seeds 0, 1, 2); 12 epochs; …`` of whatever is known."""
    seeds = list(about.get("seeds", ()))
    parts = []
    if seeds:
        one = f"n = 1: one seed ({seeds[0]}), so no spread"
        many = f"n = {len(seeds)} (seeds {', '.join(map(str, seeds))})"
        parts.append(one if len(seeds) == 1 else many)
    for key, words in (
        ("epochs", "{} epochs"),
        ("samples", "{} samples"),
        ("split", "{} split"),
        ("entropy_temperature", "τ′ = {}"),
        ("data", "{}"),
        ("pair", "{}"),
        ("protocol", "protocol {}"),
        ("scale", "scale {}"),
        ("device", "{}"),
        ("commit", "commit {}"),
    ):
        value = about.get(key)
        if value in (None, "", (), []):
            continue
        several = isinstance(value, list | tuple)
        text = " and ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) \
            if several else f"{value:,}" if type(value) is int else str(value)  # fmt: skip
        parts.append(words.format(text))
    versions = about.get("versions") or {}
    parts += [f"{name} {version}" for name, version in versions.items()]
    return "; ".join(parts)


def caption(figure: Shown) -> str:
    """``caption.md``: Markdown without a picture."""
    parts = [
        f"**{markdown_text(figure.heading)}.** {markdown_text(figure.shows)}",
        f"*{markdown_text(figure.not_shows)}*" if figure.not_shows else "",
        markdown_text(" ".join(figure.notes)),
        markdown_text(f"{figure.about}.") if figure.about else "",
        markdown_lines(figure.lines),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_lines(lines: Sequence[Line]) -> str:
    """The table of statements."""
    if not lines:
        return ""
    rows = [f"| {' | '.join(ROWS)} |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(map(markdown_text, line))} |" for line in lines]
    return "\n".join(rows)


def block(figure: Shown, picture: str) -> str:
    """What ``into=FILE`` puts into a document: heading, picture, caption."""
    alt = markdown_text(f"{figure.heading}. {figure.shows}").replace("]", r"\]")
    return f"### {markdown_text(figure.heading)}\n\n![{alt}]({picture})\n\n{caption(figure)}"


def write_index(folder: Path, order: Sequence[str]) -> Path:
    """``index.html`` of every figure that lies in ``folder``, the paper's order first.

    Returns:
        Its path.
    """
    known = {name: place for place, name in enumerate(order)}
    found = []
    for path in sorted(folder.glob("*/figure.json")):
        described = read_json(path)
        page = described.get("page") if isinstance(described, dict) else None
        if isinstance(page, dict):
            try:
                lines = tuple(Line(*each) for each in page.pop("lines"))
                found.append((Shown(**page, lines=lines), path.parent))
            except (TypeError, KeyError):  # of another version
                continue
    found.sort(key=lambda each: (known.get(each[0].name, len(known)), each[1].name))
    content = "\n".join(_section(figure, place) for figure, place in found)
    links = " · ".join(
        f'<a href="#{html_text(place.name)}">{html_text(figure.name)}</a>'
        for figure, place in found
    )
    path = folder / "index.html"
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Figures</title><style>{STYLE}{_MORE_STYLE}</style></head><body><main>\n"
        f"<h1>Figures</h1>\n<p>{links}</p>\n{content}\n</main></body></html>\n"
    )
    write_text(path, text)
    return path


def _section(figure: Shown, folder: Path) -> str:
    name = html_text(folder.name)
    files = ["figure.pdf", "figure.svg", "figure.png", "data.csv", "data.npz", "figure.json"]
    links = " · ".join(
        f'<a href="{name}/{file}">{file}</a>' for file in files if (folder / file).is_file()
    )
    rows = "".join(
        f"<tr>{''.join(f'<td>{html_text(cell)}</td>' for cell in line)}</tr>"
        for line in figure.lines
    )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ROWS)
    table = (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    parts = [
        f'<section id="{name}"><h2>{html_text(figure.heading)}</h2>',
        f'<figure class="chart">{_picture(figure, folder)}</figure>',
        f"<p>{html_text(figure.shows)}</p>",
        f"<p><em>{html_text(figure.not_shows)}</em></p>" if figure.not_shows else "",
        table if rows else "",
        f'<p class="soft">{html_text(" ".join(figure.notes))}</p>' if figure.notes else "",
        f'<p class="soft">{html_text(figure.about)}</p>',
        f"<p>{links}</p></section>",
    ]
    return "\n".join(filter(None, parts))


def _picture(figure: Shown, folder: Path) -> str:
    alt = html_text(f"{figure.heading}. {figure.shows}")
    svg = folder / "figure.svg"
    if svg.is_file() and svg.stat().st_size < LARGE:
        text = inline_svg(svg.read_bytes(), f"{figure.heading}. {figure.shows}")
        # The page decides how wide it is.
        return re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    if (folder / "figure.png").is_file():
        return f'<img src="{html_text(folder.name)}/figure.png" alt="{alt}">'
    return "<p>Not drawn: draw=true draws it.</p>"
