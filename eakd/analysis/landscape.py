"""How rough the loss is around a network's weights (Figs. 7 and A2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from eakd.analysis.cache import Arrays, remembered
from eakd.analysis.directions import Plane, direction, fold
from eakd.analysis.measures import measure
from eakd.analysis.networks import Networks, epochs_of, student_file, teacher_file
from eakd.analysis.result import Result
from eakd.analysis.roughness import TEACHER, Key, not_shows, over_epochs, pictures, shows, summarise
from eakd.analysis.runs import Run, Runs
from eakd.analysis.surface import Loss, cross_entropy, grid, place, surface
from eakd.errors import UserError, check_choice, check_number, check_numbers

log = logging.getLogger(__name__)


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
    epochs = {run.method: epochs_of(run, snapshots) for run in used}
    numbers, tests = summarise(measures, epochs)
    return Result(
        panels={
            **pictures(found, measures, grid(points, range)),
            **over_epochs(measures, area),
        },
        columns=max(1, len({epoch for _, epoch, *_ in found if epoch is not None})),
        numbers=numbers,
        tests=tests,
        shows=shows(numbers),
        not_shows=not_shows(numbers, measures),
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
