"""A result as a picture: its panels side by side, one legend for all of them."""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from eakd.analysis.labels import place_texts
from eakd.analysis.marks import MANY, bars_of, draw_series, is_cloud, marks
from eakd.analysis.result import Panel, Result
from eakd.plotting import SOFT, WIDTHS, lay_out, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND = 16  # entries at most: a hundred classes have none
INSIDE = 4  # entries of a legend in a panel; a longer one would hide what it explains
LETTER = 0.056  # inches of a letter of the axes' names, on average
LINE = 0.13  # inches of a line of text


def draw(result: Result, width: float | None = None) -> Figure:
    """The picture; to be called inside `eakd.plotting.style`.

    Args:
        width: in inches; by default of one column for one panel, of two for more.
    """
    panels = list(result.panels.values())
    columns = max(1, min(result.columns, len(panels)))
    places = _places(panels, columns)
    rows = places[-1][0] + 1 if places else 0
    width = width or WIDTHS["single" if len(panels) == 1 else "double"]
    each = [width / (1 if panel.wide else columns) for panel in panels]
    heights = [0.0] * rows
    for panel, room, (row, _) in zip(panels, each, places, strict=True):
        heights[row] = max(heights[row], _height(panel, room))
    figure = new_figure(width, sum(heights))
    looks = marks(panels)
    clouds = (series for panel in panels for series in panel.series if is_cloud(series))
    raster = sum(len(series.x) for series in clouds) > MANY
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    handles: list[dict[str, Any]] = []
    for place, panel in enumerate(panels):
        spec = grid[places[place]]
        letter = f"({chr(ord('a') + place)}) " if len(panels) > 1 else ""
        if panel.pictures is not None:
            _pictures(figure, spec, panel, letter)
        else:
            axes = figure.add_subplot(spec)
            handles.append(_panel(axes, panel, looks, letter, each[place], raster))
    lines = _legends(figure, handles, width)
    figure.set_figheight(figure.get_figheight() + LINE * lines)
    if len(result.about.get("shown_seeds") or result.about.get("seeds", ())) == 1:
        figure.supxlabel("one seed", x=0.995, ha="right", fontsize=6.5, color=SOFT)
    lay_out(figure)
    for axes in _charts(figure):
        place_texts(axes)
    return figure


def _places(panels: Sequence[Panel], columns: int) -> list[tuple[int, slice]]:
    """Row and columns of each panel."""
    row, column, found = 0, 0, []
    for panel in panels:
        across = columns if panel.wide else 1
        if column + across > columns:
            row, column = row + 1, 0
        found.append((row, slice(column, column + across)))
        column += across
    return found


def _height(panel: Panel, width: float) -> float:
    """Inches of a panel with its texts."""
    if panel.pictures is not None:
        count, high, wide = panel.pictures.shape[:3]
        across = _across(count)
        text = 0.12 * (1 + max((c.count("\n") for c in panel.captions), default=0))
        each = width / across * high / wide + (text if panel.captions else 0)
        return math.ceil(count / across) * each + 0.3
    more = panel.title.count("\n") + _x_name(panel, width).count("\n")
    return _inside(panel, width) + 0.5 + LINE * more


def _inside(panel: Panel, width: float) -> float:
    """Inches of the axes of a chart."""
    square = panel.equal or panel.surface is not None
    return max(1.0, (0.92 if square else 0.68) * width - 0.4)


def _x_name(panel: Panel, width: float) -> str:
    return _wrapped(panel.x, width - 0.6)


def _across(count: int) -> int:
    """Pictures side by side."""
    return min(count, 10) or 1


def _panel(
    axes: Axes, panel: Panel, looks: dict[str, Any], letter: str, width: float, raster: bool
) -> dict[str, Any]:
    if panel.surface is not None:
        _surface(axes, panel)
    found: dict[str, Any] = {}
    bars = bars_of(panel.series)
    # Lines above bands of other series, references below all.
    for place, series in enumerate(panel.series):
        handle = draw_series(axes, series, looks.get(series.name), bars.get(place, (0, 1)), raster)
        if handle is not None and series.label != "":
            found.setdefault(handle.get_label(), handle)
    names = {"xlabel": _x_name(panel, width), "ylabel": _wrapped(panel.y, _inside(panel, width))}
    axes.set(title=letter + panel.title, gid="panel", **names)
    _axis(axes, panel)
    return found


def _wrapped(text: str, room: float) -> str:
    """In lines about as long as each other that fit beside an axis of so many inches."""
    longest = max(12, int(room / LETTER))
    text = re.sub(" ([=<]) ", "\u00a0\\1\u00a0", text)  # stays together
    count = len(textwrap.wrap(text, longest, break_long_words=False))
    widths = range(len(text) // max(count, 1), longest + 1)
    found = (textwrap.wrap(text, width, break_long_words=False) for width in widths if width)
    return "\n".join(next((lines for lines in found if len(lines) <= count), [text]))


def _axis(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in panel.log:
            getattr(axes, f"set_{name}scale")("log")
            # The default labels are formulas, and few of them on a short axis.
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            low, high = getattr(axes, f"get_{name}lim")()
            if high / max(low, 1e-300) < 100:
                digits = "25" if high / low > 6 else "2346"
                axis.set_minor_formatter(FuncFormatter(partial(_with_digit, digits)))
        elif name == "y" or not panel.x_ticks:
            axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if panel.x_ticks:
        axes.set_xticks(list(panel.x_ticks), list(panel.x_ticks.values()))
        axes.grid(visible=False, axis="x")
    elif panel.x == "epoch" and "x" not in panel.log:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if panel.x_limits:
        axes.set_xlim(*panel.x_limits)
    if panel.y_limits:
        axes.set_ylim(*panel.y_limits)
    if panel.equal:
        axes.set_aspect("equal", adjustable="box")
    axes.tick_params(which="minor", labelsize=6.5)


def _with_digit(digits: str, value: float, _: Any) -> str:
    """The number if it begins with one of the digits."""
    return f"{value:g}" if f"{value:.0e}"[0] in digits else ""


def _surface(axes: Axes, panel: Panel) -> None:
    assert panel.surface is not None
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    x, y, z = (np.asarray(each, dtype=float) for each in panel.surface)
    axes.grid(visible=False)
    if panel.surface_style == "heat":
        low, high = panel.levels or (None, None)
        drawn = axes.pcolormesh(x, y, z, rasterized=True, shading="nearest", vmin=low, vmax=high)
        axes.figure.colorbar(drawn, ax=axes, shrink=0.9, aspect=25)
        return
    levels: Any = 10 if panel.levels is None else sorted(panel.levels)
    if panel.surface_style == "filled":
        drawn = axes.contourf(x, y, z, levels=levels, extend="both" if panel.levels else "neither")
        axes.figure.colorbar(drawn, ax=axes, shrink=0.9, aspect=25)
        return
    # Without the yellow end, which is not seen on white.
    shades = colormaps["viridis"].resampled(256)(np.linspace(0, 0.82, 256))
    drawn = axes.contour(x, y, z, levels=levels, linewidths=0.8, cmap=ListedColormap(shades))
    # Five numbers at most: where the surface is steep, those of all levels lie on each other.
    named = drawn.levels[:: max(1, math.ceil(len(drawn.levels) / 5))]
    for text in axes.clabel(drawn, named, fontsize=6, fmt=lambda z: f"{z:.3g}", zorder=3):
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.4})


def _pictures(figure: Figure, spec: Any, panel: Panel, letter: str) -> None:
    pictures = np.asarray(panel.pictures)
    across = _across(len(pictures))
    inner = spec.subgridspec(math.ceil(len(pictures) / across), across)
    for place, picture in enumerate(pictures):
        axes = figure.add_subplot(inner[place // across, place % across])
        axes.imshow(picture, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        if panel.captions:
            axes.set_xlabel(panel.captions[place], fontsize=6, labelpad=2)
        if place == 0:
            # The layout takes the middle of a title into the column of its axes, and this one is
            # longer than a picture is wide. So a blank keeps the room, and the text is not asked.
            axes.set_title(" ")
            title = axes.annotate(
                letter + panel.title, (0, 1), (0, 5), xycoords="axes fraction",
                textcoords="offset points", fontsize="medium",
            )  # fmt: skip
            title.set_in_layout(False)


def _legends(figure: Figure, handles: list[dict[str, Any]], width: float) -> int:
    """Above, what several panels show; in a panel, what it alone shows beside other things.

    Returns:
        How many lines there are above.
    """
    counts = Counter(name for each in handles for name in each)
    shared = {name for name, count in counts.items() if count > 1 or len(handles) == 1}
    shared |= {name for each in handles if len(each) > INSIDE for name in each}
    for axes, each in zip(_charts(figure), handles, strict=True):
        own = {name: handle for name, handle in each.items() if name not in shared}
        if own and len(each) > 1:
            axes.legend(
                own.values(), own.keys(), loc="best", frameon=True, edgecolor="none",
                framealpha=0.9, borderpad=0.2,
            )  # fmt: skip
    entries: dict[str, Any] = {}
    for each in handles:
        for name in each:
            if name in shared:
                entries.setdefault(name, each[name])  # as the first panel shows it
    if not 1 < len(entries) <= LEGEND:
        return 0
    # As many beside each other as fit: a letter takes about 0.06 inches, a handle half an inch.
    columns = max(1, min(len(entries), int(width / (0.5 + 0.062 * max(map(len, entries))))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=columns,
        columnspacing=1.2,
    )  # fmt: skip
    return math.ceil(len(entries) / columns)


def _charts(figure: Figure) -> list[Axes]:
    """The axes of panels that are no pictures, without colour bars."""
    return [axes for axes in figure.axes if axes.get_gid() == "panel"]
