"""How rough the loss is around a network's weights (Figs. 7 and A2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from eakd.analysis.cache import Arrays, remembered
from eakd.analysis.comparing import comparisons, differences, seeds_text
from eakd.analysis.directions import Plane, direction, fold
from eakd.analysis.measures import measure
from eakd.analysis.networks import Networks, epochs_of, student_file, teacher_file
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import corrected
from eakd.analysis.surface import Loss, cross_entropy, grid, place, surface
from eakd.errors import UserError, check_choice, check_number, check_numbers

log = logging.getLogger(__name__)

LEVELS = tuple(float(x) for x in np.arange(0.1, 10, 0.5))
TEACHER = "teacher"


@dataclass(frozen=True)
class Settings:
    """Of every surface in a figure; see `landscape`."""

    points: int
    reach: float
    images: int
    split: str

    def __post_init__(self) -> None:
        points = self.points
        whole = isinstance(points, int) and not isinstance(points, bool)
        if not whole or points < 3 or points % 2 == 0:  # even: the centre would be missing
            raise UserError(f"points: found {points}, allowed is an odd integer >= 3")
        check_number("range", self.reach, above=0)
        check_number("images", self.images, at_least=1, integer=True)
        check_choice("split", self.split, ("test", "train", "val"))


def landscape(
    runs: Runs,
    *,
    output_root: str,
    snapshots: Sequence[float] = (1 / 6, 1 / 2),
    teacher: bool = True,
    points: int = 21,
    range: float = 1.0,
    images: int = 2000,
    directions: Sequence[int] = (0, 1, 2, 3, 4),
    seeds: int | None = None,
    area: float = 1.6,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """The cross-entropy over planes of weights through each network, in eval mode.

    Args:
        snapshots: epochs of students beside the last; below 1 fractions of the run.
        teacher: also the teacher's surface.
        points: of the grid along each axis, odd.
        range: the grid reaches from minus this to this.
        images: of the split, about equally many of each class.
        directions: seeds of pairs of random directions: each is a surface of every network, and
            the first is shown.
        seeds: how many seeds of runs, the lowest first; ``None`` for all.
        area: the loss of "Area@1.6".

    Raises:
        UserError: a wrong setting, or no network that can be opened.
    """
    settings = Settings(points, range, images, split)
    seeds_of_directions = check_numbers("directions", directions, at_least=0, integer=True)
    if not seeds_of_directions:
        raise UserError("directions: found none, allowed is a list of seeds")
    check_number("area", area, above=0)
    if seeds is not None:
        seeds = check_number("seeds", seeds, at_least=1, integer=True)
    networks = Networks(output_root, device, precision)
    surfaces = Surfaces(networks, settings)
    wanted = [
        (run.method, run.seed, run, epoch)
        for name in runs.names
        for run in runs.of(name)[:seeds]
        for epoch in epochs_of(run, snapshots)
    ]
    if teacher:
        first = next((run for run in runs if run.teacher), None)
        wanted += [(TEACHER, 0, first, None)] * (first is not None)
    found: dict[Key, np.ndarray] = {}
    used: dict[Run, int | None] = {}
    for name, seed, run, epoch in wanted:
        for drawn in seeds_of_directions:
            loss = networks.attempt(surfaces.of, run, epoch, drawn)
            if loss is None:
                break
            found[name, epoch, seed, drawn], used[run] = loss, epoch
    if not any(name != TEACHER for name, *_ in found):
        raise UserError(networks.notes[0] if networks.notes else "runs: found none")
    count = surfaces.count(next(iter(used)))
    measures = {key: measure(loss, range, area) for key, loss in found.items()}
    last = max(epoch for _, epoch, *_ in found if epoch is not None)
    numbers, tests = summarise(measures, last)
    return Result(
        panels={
            **_pictures(found, measures, settings),
            **_over_epochs(measures, area),
        },
        columns=max(1, len({epoch for _, epoch, *_ in found if epoch is not None})),
        numbers=numbers,
        tests=tests,
        shows=_shows(numbers, last, area),
        not_shows=_not_shows(numbers, measures),
        notes=(
            f"Cross-entropy on {count} {split} images, {points} × {points} points on "
            f"[−{range:g}, {range:g}]², filter-normalised Gaussian directions, fixed running "
            f"statistics; {len(seeds_of_directions)} draws of directions, the same for networks "
            "of equal shapes, the first is shown. Variance over the grid, ddof 0; area as a share "
            "of it.",
            *networks.notes,
        ),
        about={
            "seeds": sorted({run.seed for run in used}),
            "epochs": sorted({run.epochs for run in used}),
            "samples": count,
            "split": split,
            "device": str(networks.compute.device),
            "precision": networks.compute.precision,
            "directions": seeds_of_directions,
        },
        arrays={
            f"surface.{name}.{epoch or 'end'}.seed{seed}.directions{drawn}": loss
            for (name, epoch, seed, drawn), loss in found.items()
        },
    )


Key = tuple[str, int | None, int, int]  # name, epoch (None: a teacher), seed, directions


class Surfaces:
    """Surfaces of students and teachers, of the same images and the same directions."""

    def __init__(self, networks: Networks, settings: Settings):
        self.networks, self.settings = networks, settings
        self._placed: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def of(self, run: Run, epoch: int | None, drawn: int) -> np.ndarray:
        """``(K, K)``, see `surface`; of the teacher of ``run`` without an epoch."""
        path: Path = teacher_file(run) if epoch is None else student_file(run, epoch)
        role = TEACHER if epoch is None else "student"
        settings = self.settings
        facts = {
            **self.networks.facts(run, path, role, settings.split),
            "folded": True,
            "points": settings.points,
            "range": settings.reach,
            "images": settings.images,
            "directions": drawn,
        }

        def opened() -> tuple[Plane, Loss]:
            images, labels = self._images(run)
            if epoch is None:
                model = self.networks.teacher(run, fold=False)
            else:
                model = self.networks.student(run, epoch)
            log.info("surface of %s, directions %d", path, drawn)
            folded, first, second = plane(model, drawn, images[0][:2].float())
            compute = self.networks.compute
            loss = cross_entropy(compute.move(folded), images, labels, compute)
            return Plane(folded, first, second), loss

        return surface(self.networks.cache, facts, grid(settings.points, settings.reach), opened)

    def count(self, run: Run) -> int:
        """How many images the surfaces are of: not all that are asked for may be there."""
        facts = self.networks.facts(run, student_file(run), "student", self.settings.split)
        facts = {k: facts[k] for k in ("data", "split", "held_out")}
        facts["images"] = self.settings.images

        def compute() -> Arrays:
            return {"count": np.array(sum(map(len, self._images(run)[1])))}

        return int(remembered(self.networks.cache, "images", facts, compute)["count"])

    def _images(self, run: Run) -> tuple[list[Tensor], list[Tensor]]:
        data = self.networks.data(run)
        if id(data) not in self._placed:
            check_choice("split", self.settings.split, data.splits)
            placed = place(data, self.settings.split, self.settings.images, self.networks.compute)
            self._placed[id(data)] = placed
        return self._placed[id(data)]


def plane(
    model: nn.Module, drawn: int, example: Tensor
) -> tuple[nn.Module, Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The folded network and two directions of its weights, what `Plane` takes."""
    folded, (first, second) = fold(
        model, (direction(model, drawn, 0), direction(model, drawn, 1)), example
    )
    return folded, first, second


def summarise(
    measures: Mapping[Key, Mapping[str, float]], last: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and ranges over seeds and draws, and how often one method's surface is smoother.

    Returns:
        ``variance.kd.epoch40`` (mean; also ``.low`` and ``.high``), which is also
        ``variance.kd.snapshot1``, and ``variance.kd`` of the last epoch;
        ``smaller.variance.ea_kd-kd``, in how many of ``pairs.ea_kd-kd`` seeds and draws; and p of
        the paired test over seeds of the log variance, averaged over draws.
    """
    numbers: dict[str, float] = {}
    epochs = sorted({epoch for _, epoch, *_ in measures if epoch is not None})
    names = list(dict.fromkeys(name for name, *_ in measures))
    for name, epoch in dict.fromkeys(key[:2] for key in measures):
        own = [m for key, m in measures.items() if key[:2] == (name, epoch)]
        places = [name] if epoch in (None, last) else []
        if epoch is not None:  # by both, as the epochs of a shorter run have other numbers
            places += [f"{name}.epoch{epoch}", f"{name}.snapshot{epochs.index(epoch) + 1}"]
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
        twins = {key: (other, *key[1:]) for key in measures if key[:2] == (name, last)}
        shared = [(measures[a], measures[b]) for a, b in twins.items() if b in measures]
        if not shared:
            continue
        numbers[f"pairs.{name}-{other}"] = len(shared)
        for quantity in ("variance", "log_variance"):
            count = sum(a[quantity] < b[quantity] for a, b in shared)
            numbers[f"smaller.{quantity}.{name}-{other}"] = count
    by_seed = {n: _log_variance_by_seed(measures, n, last) for n in names if n != TEACHER}
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


def _pictures(
    found: Mapping[Key, np.ndarray], measures: Mapping[Key, Mapping[str, float]], settings: Settings
) -> dict[str, Panel]:
    xs, shown = grid(settings.points, settings.reach), {}
    for key, loss in found.items():
        name, epoch, *_ = key
        at = name if epoch is None else f"{name}.epoch{epoch}"
        if at in shown:  # of the lowest seed and the first directions
            continue
        when = "" if epoch is None else f", epoch {epoch}"
        m = measures[key]
        shown[at] = Panel(
            title=f"{name}{when}: variance {m['variance']:.4g}, area {m['area']:.3f}",
            x="first direction",
            y="second direction",
            surface=(xs, xs, loss),
            levels=LEVELS,
            equal=True,
        )
    return shown


def _over_epochs(measures: Mapping[Key, Mapping[str, float]], area: float) -> dict[str, Panel]:
    """Variance and area by epoch: mean and range over seeds and draws; the teacher's as a line."""
    labels = {
        "variance": "variance over the grid",
        "log_variance": "variance of log L",
        "area": f"area with L < {area:g} (share)",
        "radius": "radius at which L has risen by 0.5",
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


def _shows(numbers: Mapping[str, float], last: int, area: float) -> str:
    texts = []
    for key, count in numbers.items():
        if key.startswith("pairs."):
            pair = key.removeprefix("pairs.")
            name, other = pair.split("-")
            texts.append(
                f"{name} {numbers[f'variance.{name}']:.4g} against {other} "
                f"{numbers[f'variance.{other}']:.4g} (mean), smaller in "
                f"{numbers[f'smaller.variance.{pair}']:.0f} of {count:.0f} seeds × draws"
            )
    if not texts:
        texts = [
            f"{key.removeprefix('variance.')} {value:.4g}"
            for key, value in numbers.items()
            if key.startswith("variance.") and key.count(".") == 1
        ]
    return f"Variance of the loss surface at epoch {last}: {'; '.join(texts)}."


def _not_shows(numbers: Mapping[str, float], measures: Mapping[Key, Mapping[str, float]]) -> str:
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
