"""Texts in a panel where they hide nothing: beside their points, along their lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eakd.plotting import SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

POINT, REFERENCE = "point", "reference"  # what `eakd.analysis.marks` calls them in a picture
SIZE = 6.5
ALONG = (1.0, 0.0, 0.85, 0.7, 0.5, 0.3, 0.15)  # of a reference's length; its end is the usual place
STEP = 3.0  # pixels between the points that stand for a line: less than a letter is high


class Place(NamedTuple):
    """A point of the data, and where a text begins from there, in points."""

    xy: tuple[float, float]
    offset: tuple[float, float]
    horizontal: str
    vertical: str = "baseline"


def place_texts(axes: Axes) -> None:
    """Write the names of references, and move these and the texts of points to the best places.

    The best covers the fewest lines, marks and other texts. To be called after the layout, on which
    all of that depends.
    """
    texts = [text for text in axes.texts if text.get_gid() == POINT and text.get_text()]
    wanted = [(text, list(_beside(*text.xy))) for text in texts]
    for line in axes.lines:
        points = np.asarray(line.get_xydata(), dtype=float)
        if line.get_gid() == REFERENCE and len(points) and not line.get_label().startswith("_"):
            text = axes.annotate(
                line.get_label(), points[-1], (0, 0), textcoords="offset points", color=SOFT,
                fontsize=SIZE,
            )  # fmt: skip
            wanted.append((text, list(_along(points))))
    if not wanted:
        return
    drawn = np.concatenate([np.empty((0, 2)), *_drawn(axes)])
    taken: list[Any] = []
    for text, places in wanted:
        costs = [_cost(axes, _put(text, place), drawn, taken) for place in places]
        taken.append(_put(text, places[int(np.argmin(costs))]))  # the first of equals


def _beside(x: float, y: float) -> Iterator[Place]:
    for side, away in (("left", 4), ("right", -4)):
        for up in (3, -8):
            yield Place((x, y), (away, up), side)


def _along(points: np.ndarray) -> Iterator[Place]:
    for part in ALONG:
        at = part * (len(points) - 1)
        low, high = points[int(at)], points[min(int(at) + 1, len(points) - 1)]
        x, y = low + (at - int(at)) * (high - low)
        side = "right" if part > 0.8 else "left" if part < 0.2 else "center"
        for up, edge in ((2.5, "bottom"), (-2.5, "top")):
            yield Place((x, y), (0, up), side, edge)


def _put(text: Annotation, place: Place) -> Any:
    """The box that the text takes there."""
    text.xy = place.xy
    text.set(position=place.offset, ha=place.horizontal, va=place.vertical)
    return text.get_window_extent()


def _cost(axes: Axes, box: Any, drawn: np.ndarray, taken: Sequence[Any]) -> float:
    """Points that the box covers; a text under it, or a place beyond the panel, is worse."""
    inside = axes.get_window_extent()
    covered = ((drawn > (box.x0, box.y0)) & (drawn < (box.x1, box.y1))).all(1).sum()
    beyond = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
    return float(covered) + 20 * beyond + 50 * sum(box.overlaps(other) for other in taken)


def _drawn(axes: Axes) -> Iterator[np.ndarray]:
    """Points of all lines, bars, arrows and marks, ``(N, 2)`` in pixels."""
    for corners in _outlines(axes):
        corners = corners[np.isfinite(corners).all(1)]
        yield corners
        for start, end in pairwise(corners):
            count = 1 + int(np.hypot(*(end - start)) / STEP)
            yield start + np.linspace(0, 1, count)[:, None] * (end - start)
    for marks in axes.collections:
        yield axes.transData.transform(np.ma.filled(marks.get_offsets().astype(float), np.nan))


def _outlines(axes: Axes) -> Iterator[np.ndarray]:
    for line in axes.lines:
        yield line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
    for bar in axes.patches:
        yield bar.get_transform().transform(bar.get_path().vertices)
    for text in axes.texts:
        if text.arrow_patch is not None:
            yield axes.transData.transform([text.xyann, text.xy])
