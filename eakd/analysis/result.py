"""What a figure comes to: panels to draw, numbers to print, and what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Series:
    """One line, cloud, set of bars or row of pictures in a panel.

    Attributes:
        name: as people read it: a method, ``teacher``, a class. It decides colour and marker.
        x, y: ``(n,)``.
        low, high: ``(n,)``, a band or error bars around ``y``; ``None`` without.
        label: what the legend says instead of ``name``.
        style: ``line``, ``points``, ``bars``, ``steps``, ``reference`` (grey, labelled directly),
            ``rings`` (hollow markers over others) or ``arrow`` (from the first point to the last).
        color: ``(n,)`` numbers for a colour map instead of one colour; ``None`` mostly.
        low2, high2: a second, narrower band inside the first; ``None`` mostly.
        texts: one beside each point; empty mostly.
        by_seed: ``{seed: (n,)}``, what ``y`` is the mean of, for ``data.csv``; not drawn.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    label: str | None = None
    style: str = "line"
    color: np.ndarray | None = None
    low2: np.ndarray | None = None
    high2: np.ndarray | None = None
    texts: tuple[str, ...] = ()
    by_seed: Mapping[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title, x, y: texts, with units.
        series: drawn in this order.
        surface: ``(x (k,), y (m,), z (m, k))`` under them, as contours or a heat map; ``None``
            mostly.
        surface_style: ``contour`` (lines with numbers), ``filled`` or ``heat``.
        levels: of contours; ``None`` for ten. Of a heat map, both ends of its scale.
        pictures: ``(n, h, w, 3)`` uint8 with one of ``captions`` each, in place of axes.
        log: which axes are logarithmic: ``""``, ``x``, ``y`` or ``xy``.
        x_ticks: ``{position: text}`` where numbers would not say it.
        equal: one unit is equally long on both axes.
        x_limits, y_limits: of the axes; ``None`` for what the data says.
        wide: it has a row of the figure to itself.
    """

    title: str = ""
    x: str = ""
    y: str = ""
    series: tuple[Series, ...] = ()
    surface: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    surface_style: str = "contour"
    levels: tuple[float, ...] | None = None
    pictures: np.ndarray | None = None
    captions: tuple[str, ...] = ()
    log: str = ""
    x_ticks: Mapping[float, str] = field(default_factory=dict)
    equal: bool = False
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    wide: bool = False


@dataclass(frozen=True)
class Result:
    """A figure before it is drawn. It holds no torch object, and drawing needs nothing else.

    Attributes:
        panels: ``{key: panel}``; the key names its rows in ``data.csv``.
        columns: panels side by side.
        numbers: ``{dotted.name: number}``, all that is printed or stated.
        tests: ``{dotted.name: p}`` of paired tests, after correction.
        shows, not_shows: one sentence each, with numbers: what it shows, and what it does not.
        notes: further sentences of the caption: readings that were chosen, seeds that are missing.
        about: ``seeds, epochs, samples, split, entropy_temperature, protocol, device, commit,
            versions``, as far as they apply; ``shown_seeds`` where the picture has fewer of them.
        arrays: further arrays worth keeping, which no panel draws.
    """

    panels: Mapping[str, Panel]
    columns: int = 1
    numbers: Mapping[str, float] = field(default_factory=dict)
    tests: Mapping[str, float] = field(default_factory=dict)
    shows: str = ""
    not_shows: str = ""
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
