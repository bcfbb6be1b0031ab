"""What surfaces of several networks come to: numbers, panels and sentences of Figs. 7 and A2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eakd.analysis.comparing import comparisons, differences, seeds_text
from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Series
from eakd.analysis.seeds import corrected

LEVELS = tuple(float(x) for x in np.arange(0.1, 10, 0.5))
TEACHER = "teacher"

Key = tuple[str, int | None, int, int]  # name, epoch (None: a teacher), seed, directions


def summarise(
    measures: Mapping[Key, Mapping[str, float]], epochs: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and ranges over seeds and draws, and how often one method's surface is smoother.

    Args:
        epochs: of each method: those of its snapshots, then its last.

    Returns:
        ``variance.kd.epoch40`` (mean; also ``.low`` and ``.high``), which is also
        ``variance.kd.snapshot1``, and ``variance.kd`` of the last epoch;
        ``smaller.variance.ea_kd-kd``, in how many of ``pairs.ea_kd-kd`` seeds and draws; and p of
        the paired test over seeds of the log variance, averaged over draws.
    """
    numbers: dict[str, float] = {}
    last = {name: each[-1] for name, each in epochs.items()}
    names = list(dict.fromkeys(name for name, *_ in measures))
    for name, epoch in dict.fromkeys(key[:2] for key in measures):
        own = [m for key, m in measures.items() if key[:2] == (name, epoch)]
        places = [name] if epoch in (None, last.get(name)) else []
        if epoch is not None:  # by both, as the epochs of a shorter run have other numbers
            places += [f"{name}.epoch{epoch}", f"{name}.snapshot{epochs[name].index(epoch) + 1}"]
        for quantity in own[0]:
            values = np.array([each[quantity] for each in own])
            known = values[np.isfinite(values)]
            for at in places if len(known) else ():
                key = f"{quantity}.{at}"
                numbers[key] = float(known.mean())
                numbers[f"{key}.low"], numbers[f"{key}.high"] = (
                    float(known.min()),
                    float(known.max()),
                )
    for name, other in comparisons([name for name in names if name != TEACHER]):
        twins = {
            key: (other, last[other], *key[2:]) for key in measures if key[:2] == (name, last[name])
        }
        shared = [(measures[a], measures[b]) for a, b in twins.items() if b in measures]
        if not shared:
            continue
        numbers[f"pairs.{name}-{other}"] = len(shared)
        for quantity in ("variance", "log_variance"):
            count = sum(a[quantity] < b[quantity] for a, b in shared)
            numbers[f"smaller.{quantity}.{name}-{other}"] = count
    by_seed = {n: _log_variance_by_seed(measures, n, last[n]) for n in names if n != TEACHER}
    return numbers, corrected(differences(by_seed, "variance"))


def _log_variance_by_seed(
    measures: Mapping[Key, Mapping[str, float]], name: str, last: int
) -> dict[int, float]:
    """Seed → mean over draws of the logarithm of the variance: draws of a seed are no new seeds."""
    found: dict[int, list[float]] = {}
    for (method, epoch, seed, _), each in measures.items():
        if (method, epoch) == (name, last):
            found.setdefault(seed, []).append(math.log(each["variance"]))
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def pictures(
    found: Mapping[Key, np.ndarray], measures: Mapping[Key, Mapping[str, float]], xs: np.ndarray
) -> dict[str, Panel]:
    """The surface of each network and epoch, of the lowest seed and the first directions."""
    shown: dict[str, Panel] = {}
    for key, loss in found.items():
        name, epoch, *_ = key
        at = name if epoch is None else f"{name}.epoch{epoch}"
        if at in shown:
            continue
        when = "" if epoch is None else f", epoch {epoch}"
        m = measures[key]
        shown[at] = Panel(
            title=f"{display(name)}{when}\nvariance {m['variance']:.4g}, area {m['area']:.3f}",
            x="first direction",
            y="second direction",
            surface=(xs, xs, loss),
            levels=LEVELS,
            equal=True,
        )
    return shown


def over_epochs(measures: Mapping[Key, Mapping[str, float]], area: float) -> dict[str, Panel]:
    """Variance and area by epoch: mean and range over seeds and draws; the teacher's as a line."""
    labels = {
        "variance": "variance over the grid",
        "log_variance": "variance of log L",
        "area": f"area with L < {area:g} (share)",
        "radius": "radius of a rise by 0.5",
    }
    panels, names = {}, list(dict.fromkeys(name for name, *_ in measures))
    epochs = sorted({epoch for _, epoch, *_ in measures if epoch is not None})
    for quantity, label in labels.items():
        series = []
        for name in names:
            at = [None] * len(epochs) if name == TEACHER else epochs
            values = [
                np.array([m[quantity] for key, m in measures.items() if key[:2] == (name, epoch)])
                for epoch in at
            ]
            values = [v[np.isfinite(v)] for v in values]
            kept = [(x, v) for x, v in zip(epochs, values, strict=True) if len(v)]
            if not kept:
                continue
            x = np.array([x for x, _ in kept], dtype=float)
            mean, low, high = (np.array([f(v) for _, v in kept]) for f in (np.mean, np.min, np.max))
            if name == TEACHER:
                series.append(Series(name, x, mean, style="reference"))
            else:
                series.append(Series(name, x, mean, low, high))
        if series:
            log_axis = "y" if quantity == "variance" else ""
            panels[quantity] = Panel(x="epoch", y=label, series=tuple(series), log=log_axis)
    return panels


def shows(numbers: Mapping[str, float]) -> str:
    texts = []
    for key, count in numbers.items():
        if key.startswith("pairs."):
            pair = key.removeprefix("pairs.")
            name, other = pair.split("-")
            texts.append(
                f"{_ranged(numbers, name)} against {_ranged(numbers, other)}, smaller in "
                f"{numbers[f'smaller.variance.{pair}']:.0f} of {count:.0f} seeds × draws"
            )
    if not texts:
        names = [key.removeprefix("variance.") for key in numbers if key.startswith("variance.")]
        texts = [_ranged(numbers, name) for name in names if "." not in name]
    return (
        "Variance of the loss surface after the last epoch, mean and range over seeds and draws: "
        f"{'; '.join(texts)}."
    )


def _ranged(numbers: Mapping[str, float], name: str) -> str:
    mean, low, high = (numbers[f"variance.{name}{end}"] for end in ("", ".low", ".high"))
    return f"{display(name)} {mean:.4g} ({low:.4g} to {high:.4g})"


def not_shows(numbers: Mapping[str, float], measures: Mapping[Key, Mapping[str, float]]) -> str:
    factors = []
    for name, epoch, seed in dict.fromkeys(key[:3] for key in measures):
        values = [m["variance"] for key, m in measures.items() if key[:3] == (name, epoch, seed)]
        if len(values) > 1 and min(values) > 0:
            factors.append(max(values) / min(values))
    seeds = seeds_text(len({seed for name, _, seed, _ in measures if name != TEACHER}))
    text = (
        f"The variance is mostly that of the rim and depends on range and number of points; {seeds}"
    )
    if factors:
        return (
            f"{text}. The draw of the directions alone changes one network's variance by a factor "
            f"of {np.median(factors):.2f} (median; largest {max(factors):.2f})."
        )
    return f"{text}, one draw of directions: how much it changes with the draw is not known."
