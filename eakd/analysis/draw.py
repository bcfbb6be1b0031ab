"""A result as a picture: its panels side by side, one legend for all of them."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from eakd.analysis.marks import bars_of, draw_series, marks
from eakd.analysis.result import Panel, Result
from eakd.plotting import SOFT, WIDTHS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND = 16  # entries at most: a hundred classes have none


def draw(result: Result, width: float | None = None) -> Figure:
    """The picture; to be called inside `eakd.plotting.style`.

    Args:
        width: in inches; by default of one column for one panel, of two for more.
    """
    panels = list(result.panels.values())
    columns = max(1, min(result.columns, len(panels)))
    rows = math.ceil(len(panels) / columns)
    width = width or WIDTHS["single" if len(panels) == 1 else "double"]
    heights = [
        max(_height(p, width / columns) for p in panels[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    figure = new_figure(width, sum(heights))
    looks = marks(panels)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    handles: list[dict[str, Any]] = []
    for place, panel in enumerate(panels):
        spec = grid[place // columns, place % columns]
        letter = f"({chr(ord('a') + place)}) " if len(panels) > 1 else ""
        if panel.pictures is not None:
            _pictures(figure, spec, panel, letter)
        else:
            handles.append(_panel(figure.add_subplot(spec), panel, looks, letter))
    _legends(figure, handles, width)
    if len(result.about.get("seeds", ())) == 1:
        figure.supxlabel("one seed", x=0.995, ha="right", fontsize=6.5, color=SOFT)
    if any(series.texts for panel in panels for series in panel.series):
        spread_texts(figure)
    return figure


def _height(panel: Panel, width: float) -> float:
    """Inches of a panel with its texts."""
    if panel.pictures is not None:
        count, high, wide = panel.pictures.shape[:3]
        across = _across(count)
        text = 0.12 * (1 + max((c.count("\n") for c in panel.captions), default=0))
        each = width / across * high / wide + (text if panel.captions else 0)
        return math.ceil(count / across) * each + 0.3
    square = panel.equal or panel.surface is not None
    return max(1.5, (0.92 if square else 0.68) * width + 0.1)


def _across(count: int) -> int:
    """Pictures side by side."""
    return min(count, 10) or 1


def _panel(axes: Axes, panel: Panel, looks: dict[str, Any], letter: str) -> dict[str, Any]:
    if panel.surface is not None:
        _surface(axes, panel)
    found: dict[str, Any] = {}
    bars = bars_of(panel.series)
    # Lines above bands of other series, references below all.
    for place, series in enumerate(panel.series):
        handle = draw_series(axes, series, looks.get(series.name), bars.get(place, (0, 1)))
        if handle is not None and series.label != "":
            found.setdefault(handle.get_label(), handle)
    axes.set(title=letter + panel.title, xlabel=panel.x, ylabel=panel.y, gid="panel")
    _axis(axes, panel)
    return found


def _axis(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name in panel.log:
            getattr(axes, f"set_{name}scale")("log")
            # The default labels are formulas, and few of them on a short axis.
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
            low, high = getattr(axes, f"get_{name}lim")()
            if high / max(low, 1e-300) < 30:
                axis.set_minor_formatter(FuncFormatter(_one_two_five))
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


def _one_two_five(value: float, _: Any) -> str:
    first = f"{value:.0e}"[0]
    return f"{value:g}" if first in "25" else ""


def _surface(axes: Axes, panel: Panel) -> None:
    assert panel.surface is not None
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    x, y, z = (np.asarray(each, dtype=float) for each in panel.surface)
    axes.grid(visible=False)
    if panel.surface_style == "heat":
        drawn = axes.pcolormesh(x, y, z, rasterized=True, shading="nearest")
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
    for text in axes.clabel(drawn, fontsize=6, fmt=lambda value: f"{value:.3g}", zorder=3):
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


def _legends(figure: Figure, handles: list[dict[str, Any]], width: float) -> None:
    """Above, what several panels show; in a panel, what it alone shows beside other things."""
    counts = Counter(name for each in handles for name in each)
    shared = {name for name, count in counts.items() if count > 1 or len(handles) == 1}
    for axes, each in zip(_charts(figure), handles, strict=True):
        own = {name: handle for name, handle in each.items() if name not in shared}
        if own and 1 < len(each) <= LEGEND:
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
        return
    # As many beside each other as fit: a letter takes about 0.06 inches, a handle half an inch.
    columns = max(1, min(len(entries), int(width / (0.5 + 0.062 * max(map(len, entries))))))
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper center", ncols=columns,
        columnspacing=1.2,
    )  # fmt: skip


def _charts(figure: Figure) -> list[Axes]:
    """The axes of panels that are no pictures, without colour bars."""
    return [axes for axes in figure.axes if axes.get_gid() == "panel"]


PLACES = ((4, 3, "left"), (4, -8, "left"), (-4, 3, "right"), (-4, -8, "right"))


def spread_texts(figure: Figure) -> None:
    """Put each text beside its point where it covers the fewest others."""
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # for the layout, on which the places depend
    figure.set_layout_engine("none")
    for axes in _charts(figure):
        texts = axes.findobj(Annotation)
        points = axes.transData.transform([text.xy for text in texts])
        taken: list[Any] = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in points]
        for text in texts:
            if not text.get_text():
                continue
            boxes = []
            for x, y, side in PLACES:
                text.set_position((x, y))
                text.set_horizontalalignment(side)
                boxes.append(text.get_window_extent())
            inside = axes.get_window_extent()
            costs = [
                sum(box.overlaps(other) for other in taken) + 2 * (box.x1 > inside.x1)
                for box in boxes
            ]
            best = costs.index(min(costs))
            text.set_position(PLACES[best][:2])
            text.set_horizontalalignment(PLACES[best][2])
            taken.append(boxes[best])
