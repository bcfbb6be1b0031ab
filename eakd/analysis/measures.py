"""Numbers of a loss surface: what the paper prints, and what does not hang on its corners."""

from __future__ import annotations

import math

import numpy as np

RISE = 0.5  # of the loss, at the radius


def measure(loss: np.ndarray, reach: float, level: float = 1.6) -> dict[str, float]:
    """All measures of a surface.

    Args:
        loss: ``(K, K)`` on a grid from ``-reach`` to ``reach``, K odd.
        level: of the area.

    Returns:
        ``variance`` over the grid (mean squared deviation, ddof 0) and ``log_variance``, the same
        of log L; ``area``, the share of points with a loss below ``level``; ``centre`` and
        ``maximum``; ``radius`` at which the mean loss along the circle is `RISE` above the centre
        (NaN if it is not within the grid); ``curvature``, the spectral norm of the second
        derivative at the centre, and ``curvature_ratio``, that norm over the smaller eigenvalue's.
    """
    middle = len(loss) // 2
    with np.errstate(divide="ignore", invalid="ignore"):
        log_loss = np.log(loss)
        eigenvalues = np.sort(np.abs(np.linalg.eigvalsh(second_derivative(loss, reach))))
        ratio = float(eigenvalues[1] / eigenvalues[0])
    return {
        "variance": float(loss.var()),
        "log_variance": float(log_loss.var()),
        "area": float((loss < level).mean()),
        "centre": float(loss[middle, middle]),
        "maximum": float(loss.max()),
        "radius": radius(loss, reach),
        "curvature": float(eigenvalues[1]),
        "curvature_ratio": ratio,
    }


def second_derivative(loss: np.ndarray, reach: float) -> np.ndarray:
    """``(2, 2)`` at the centre, by central differences over one step of the grid."""
    m, step = len(loss) // 2, 2 * reach / (len(loss) - 1)
    aa = loss[m, m + 1] - 2 * loss[m, m] + loss[m, m - 1]
    bb = loss[m + 1, m] - 2 * loss[m, m] + loss[m - 1, m]
    corners = loss[m + 1, m + 1] - loss[m + 1, m - 1] - loss[m - 1, m + 1] + loss[m - 1, m - 1]
    return np.array([[aa, corners / 4], [corners / 4, bb]]) / step**2


def radius(loss: np.ndarray, reach: float, rise: float = RISE) -> float:
    """Where the mean loss along a circle around the centre has risen by ``rise``; NaN beyond."""
    from scipy.interpolate import RectBivariateSpline

    if not np.isfinite(loss).all():
        return math.nan
    xs, m = np.linspace(-reach, reach, len(loss)), len(loss) // 2
    order = min(3, len(loss) - 1)
    spline = RectBivariateSpline(xs, xs, loss, kx=order, ky=order)
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radii = np.linspace(0, reach, 401)
    y, x = (np.outer(radii, f(angles)) for f in (np.sin, np.cos))
    risen = spline.ev(y, x).mean(axis=1) - loss[m, m] - rise
    above = np.flatnonzero(risen >= 0)
    if not len(above):
        return math.nan
    first = above[0]
    if first == 0:
        return 0.0
    share = -risen[first - 1] / (risen[first] - risen[first - 1])
    return float(radii[first - 1] + share * (radii[first] - radii[first - 1]))
