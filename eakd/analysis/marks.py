"""What one series looks like: colours, dashes and markers, and the six ways to draw it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eakd.analysis.labels import POINT, REFERENCE, SIZE
from eakd.analysis.result import Panel, Series
from eakd.config import EA, base_method
from eakd.plotting import INK, SOFT
from eakd.reproduce.palette import COLOURS, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREYS = {"teacher": "#4d4d4d"}
CLASSES = (*COLOURS[:6], "#8c8c8c", "#7b4fa3", "#000000", "#c9b400")  # ten classes
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
MANY = 2000  # points of a picture's clouds from which they are embedded as images, in vector axes


class Mark(NamedTuple):
    """A colour, and what tells series apart where colours can't: grey print, colour blindness."""

    colour: str
    filled: bool
    marker: str
    dashes: str


def marks(panels: Iterable[Panel]) -> dict[str, Mark]:
    """The mark of every series of a figure, by its name: the same in all of its panels."""
    styles: dict[str, set[str]] = {}
    for series in (each for panel in panels for each in panel.series):
        if series.style != "reference" and series.name not in GREYS:
            styles.setdefault(series.name, set()).add(series.style)
    clouds = [name for name, found in styles.items() if found <= {"points", "rings"}]
    classes = clouds if len(clouds) > 3 and not set(map(base_method, clouds)) & set(KNOWN) else []
    found = {
        name: Mark(CLASSES[i % 10], True, MARKERS[i % 10], "-") for i, name in enumerate(classes)
    }
    rest = [name for name in styles if name not in found]
    for place, (name, look) in enumerate(looks(rest).items()):
        if base_method(name) in KNOWN:
            # Hollow in every figure, beside its EA form or alone.
            filled = name.startswith(EA) or "+" in name
            dashes = "--" if not filled else "-." if "+" in name else "-"
            found[name] = Mark(look.colour, filled, "s" if "+" in name else "o", dashes)
        else:  # anything else is told apart by its marker too
            found[name] = Mark(look.colour, look.filled, MARKERS[place % 10], "-")
    return found | {name: Mark(grey, True, "o", "-") for name, grey in GREYS.items()}


def display(name: str) -> str:
    """``EA-KD`` of ``ea_kd``, ``KD+matched`` of ``kd+matched``; other names as they are."""
    base, plus, rest = name.removeprefix(EA).partition("+")
    if name.startswith(EA) or base in KNOWN:
        shown = KNOWN.get(base, base.upper())
        return f"{'EA-' if name.startswith(EA) else ''}{shown}{plus}{rest}"
    return name


KNOWN = {
    "kd": "KD", "ctkd": "CTKD", "dkd": "DKD", "mld": "MLD", "mld_ls": "MLD+LS", "kd_ls": "KD+LS",
    "dkd_ls": "DKD+LS", "reviewkd": "ReviewKD", "fcfd": "FCFD",
}  # fmt: skip


def is_cloud(series: Series) -> bool:
    """Whether it is points without lines, of which there may be many."""
    return series.style in ("points", "rings")


def draw_series(
    axes: Axes, series: Series, mark: Mark | None, bar: tuple[int, int], raster: bool = False
) -> Any:
    """Draw one series but the texts at it, see `place_texts`; what a legend shows, or ``None``.

    Args:
        mark: ``None`` for references.
        bar: which of how many series of bars it is.
        raster: embed clouds as images.
    """
    x, y = np.asarray(series.x), np.asarray(series.y)
    label = series.label or display(series.name)
    if series.style == "reference":
        return _reference(axes, series, x, y, label)
    assert mark is not None, series.name
    face = mark.colour if mark.filled else "white"
    if series.style == "bars":
        return _bars(axes, series, x, y, mark, label, *bar)
    if series.style == "points" and series.color is not None:
        return _colored(axes, series, x, y, raster)
    if is_cloud(series):
        return _points(axes, series, x, y, mark, label, raster)
    if series.style == "arrow":
        arrow = {"arrowstyle": "-|>", "color": mark.colour, "linewidth": 0.8, "shrinkA": 3.5,
                 "shrinkB": 3.5, "mutation_scale": 6}  # fmt: skip
        axes.annotate("", (x[-1], y[-1]), (x[0], y[0]), arrowprops=arrow)
        return None
    for low, high, alpha in ((series.low, series.high, 0.16), (series.low2, series.high2, 0.22)):
        if low is not None and high is not None:
            step = "mid" if series.style == "steps" else None
            axes.fill_between(x, low, high, color=mark.colour, alpha=alpha, linewidth=0, step=step)
    drawn = "steps-mid" if series.style == "steps" else "default"
    few = len(x) <= 13
    every = None if few else max(1, len(x) // 8)
    (line,) = axes.plot(
        x, y, color=mark.colour, linestyle=mark.dashes, drawstyle=drawn, label=label,
        marker=mark.marker, markerfacecolor=face, markeredgecolor=mark.colour, markevery=every,
    )  # fmt: skip
    _write(axes, series, x, y, mark.colour)
    return line


def _reference(axes: Axes, series: Series, x: Any, y: Any, label: str) -> None:
    if series.low is not None and series.high is not None:
        axes.fill_between(x, series.low, series.high, color="#bdbdbd", alpha=0.45, linewidth=0)
    axes.plot(
        x, y, color=SOFT, linewidth=0.9, linestyle=(0, (1, 1.2)), zorder=1.5, gid=REFERENCE,
        label=label or "_",
    )  # fmt: skip


def _bars(
    axes: Axes, series: Series, x: Any, y: Any, mark: Mark, label: str, which: int, count: int
) -> Any:
    gaps = np.diff(np.sort(np.asarray(x, dtype=float)))
    width = (0.82 * gaps.min() if len(gaps) and gaps.min() > 0 else 0.5) / count
    at = x + (which - (count - 1) / 2) * width
    spread = None
    if series.low is not None and series.high is not None:
        spread = np.stack([y - series.low, series.high - y])
    control = mark.dashes == "-."  # hatched: in grey print it would look like an EA form
    return axes.bar(
        at, y, width * 0.92, yerr=spread, label=label, edgecolor=mark.colour, linewidth=0.8,
        facecolor=mark.colour if mark.filled and not control else "white",
        hatch="//////" if control else "",
        error_kw={"elinewidth": 0.7, "ecolor": INK, "capsize": 1.2, "capthick": 0.7},
    )  # fmt: skip


def _points(
    axes: Axes, series: Series, x: Any, y: Any, mark: Mark, label: str, raster: bool
) -> Any:
    rings = series.style == "rings"
    hollow = rings or not mark.filled
    colour = INK if rings else mark.colour
    many = len(x) > 60
    size = (14 if rings else 5) if many else 22
    if series.low is not None and series.high is not None:
        spread = np.stack([y - series.low, series.high - y])
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=0.7, zorder=1.9)
    drawn = axes.scatter(
        x, y, s=size, marker="o" if rings else mark.marker, label=label, zorder=2.1 if rings else 2,
        facecolors="none" if rings else "white" if hollow else colour, edgecolors=colour,
        linewidths=(0.5 if rings else 0) if many else 0.9, rasterized=raster,
    )  # fmt: skip
    _write(axes, series, x, y, INK)
    return drawn


def _colored(axes: Axes, series: Series, x: Any, y: Any, raster: bool) -> None:
    drawn = axes.scatter(x, y, s=5, c=series.color, linewidths=0, rasterized=raster)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.9, aspect=25, label=series.label or "")
    bar.outline.set_linewidth(0.4)


def _write(axes: Axes, series: Series, x: Any, y: Any, colour: str) -> None:
    for place, text in enumerate(series.texts):
        at = {"xytext": (4, 3), "textcoords": "offset points", "in_layout": False, "gid": POINT}
        axes.annotate(text, (x[place], y[place]), color=colour, fontsize=SIZE, **at)


def bars_of(series: Sequence[Series]) -> dict[int, tuple[int, int]]:
    """Place in the sequence → which of how many series of bars it is."""
    places = [place for place, each in enumerate(series) if each.style == "bars"]
    positions = [float(x) for place in places for x in series[place].x]
    if len(set(positions)) == len(positions):  # side by side already
        return dict.fromkeys(places, (0, 1))
    return {place: (number, len(places)) for number, place in enumerate(places)}
