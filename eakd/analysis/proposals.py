"""Which regions of images carry the weight in detection: those on objects, or the background."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from eakd.analysis.answers import weighting_of
from eakd.analysis.cache import Arrays, remembered
from eakd.analysis.comparing import differences, seeds_text
from eakd.analysis.marks import display
from eakd.analysis.networks import TEACHER_ONLY, Networks, Unusable, student_file
from eakd.analysis.pictures import choose, short
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs, composed
from eakd.analysis.seeds import corrected, difference_text, over_seeds
from eakd.config import plain
from eakd.detection.build import find_weights
from eakd.detection.pictures import drawn
from eakd.detection.rois import (
    Weighed,
    heaviest,
    hues_of,
    open_data,
    open_run,
    weigh,
    weighed,
)
from eakd.distillers.base import Progress
from eakd.errors import UserError, check_number
from eakd.reproduce.comparison import Difference, paired_difference
from eakd.training.find_teacher import weights_digest

log = logging.getLogger(__name__)

BINS = 40
TOP = 3  # regions in a caption
ACROSS = 5  # pictures beside each other that leave room for both classes in a line
FRAME, WIDTH = 400, 3  # pixels of a picture's longer side, and of the lines in it
GROUPS = ("foreground", "background")


@dataclass(frozen=True)
class Found:
    """The regions of the first test images of a run, ``R`` together.

    Attributes:
        image: ``(R,)`` int32, position of the image that each lies in.
        regions: of all images, one after the other.
        classes: names, the background first.
    """

    image: np.ndarray
    regions: Weighed
    classes: list[str]

    def of(self, position: int) -> Weighed:
        """The regions of one image."""
        return Weighed(*(rows[self.image == position] for rows in self.regions))


@dataclass(frozen=True)
class Shares:
    """What the regions of one run come to.

    Attributes:
        weight: of ``foreground`` and ``background`` the weights, ``(R,)`` each.
        region_share, weight_share: how much of all regions, and of the sum of all weights, is
            foreground, in percent.
    """

    weight: Mapping[str, np.ndarray]
    region_share: float
    weight_share: float


def proposals(
    runs: Runs,
    *,
    output_root: str,
    images: int = 500,
    count: int = 5,
    regions: int = 5,
    method: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """The weight of all regions that the trained students propose, on objects and beside them.

    A region lies on an object, or is foreground, if it has an IoU of 0.5 or more with an annotated
    box. The weight is the run's own formula, or EA's where the run weighs all alike.

    Args:
        images: of the test split, the first so many.
        count: images that are shown, the first ones.
        regions: drawn in each of them, those of highest weight.
        method: whose first seed is shown; ``"auto"`` for the first EA form.

    Raises:
        UserError: a wrong setting, no network that can be opened, or a run whose regions are all
            foreground or all background.
    """
    for key, value in (("images", images), ("count", count), ("regions", regions)):
        check_number(key, value, at_least=1, integer=True)
    networks = Networks(output_root, device, precision)
    shown = choose(runs, method)
    # Of all runs but the one that is shown, no more is kept than what is drawn.
    pictures: tuple[Run, Found] | None = None
    shares: dict[str, dict[int, Shares]] = {}
    each_image = []
    for run in runs:
        found = networks.attempt(run_regions, run, networks, images)
        if found is None:
            continue
        if run.method == shown and pictures is None:
            pictures = run, found
        shares.setdefault(run.method, {})[run.seed] = shares_of(found.regions, run.directory)
        each_image.append(len(found.image) / (found.image.max() + 1))
    if pictures is None:
        raise UserError(networks.notes[0])
    run, found = pictures
    total = int(found.image.max()) + 1
    tests = differences_of(shares)
    p = corrected(tests)
    return Result(
        panels={
            "pictures": picture_panel(run, found, networks, min(count, total), regions),
            **weight_panels(shares),
            "share": share_panel(shares),
        },
        columns=3,
        numbers=numbers_of(shares) | {"images": total, "regions": float(np.mean(each_image))},
        tests=p,
        shows=_shows(shares, {weighting_of(each).kind for each in runs}),
        not_shows=(
            "It does not show what a training step sees, which samples some of these regions, nor "
            "that a region with more weight is learned better."
        ),
        notes=(
            f"All regions that the trained students propose in the first {total:,} test images, "
            f"{np.mean(each_image):.0f} an image, among them the annotated boxes, as in training. "
            "Foreground has an IoU of 0.5 or more with an annotated box.",
            "The weight is the run's own formula, or EA's where a run weighs all regions alike or "
            "by a control: there the weight that counted falls as the regions do.",
            "Densities have the area 1, each the mean over seeds; error bars are 95 % intervals of "
            "the mean over seeds (Student's t).",
            *_test_note(tests, p),
            *networks.notes,
        ),
        about={
            "seeds": sorted({seed for seeds in shares.values() for seed in seeds}),
            "epochs": sorted({each.epochs for each in runs}),
            "split": "test",
            "entropy_temperature": sorted({each.entropy_temperature for each in runs}),
            "device": str(networks.compute.device),
            "precision": networks.compute.precision,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        },
    )


# The regions of a run


def run_regions(run: Run, networks: Networks, images: int) -> Found:
    """The regions of a run's first test images with their weights, computed once.

    Raises:
        Unusable: its weights are not there, or damaged.
        UserError: data or teacher are not there, or are not what the run was made from.
    """
    made, weights = composed(run)[0], student_file(run)
    roles = {
        role: {k: v for k, v in plain(made[role]).items() if k not in TEACHER_ONLY}
        for role in ("student", "teacher")
    }
    weighting = weighting_of(run)
    facts = {
        **roles,
        # It was there: nothing is downloaded.
        "weights": [weights_digest(weights), weights_digest(find_weights(made, "teacher", {}))],
        "method": plain(made.distiller),
        "weighting": [repr(weighting), weighting.temperature, weighting.gamma],
        "data": run.summary.get("data_fingerprint"),
        "sides": [made.data.get("test_short_side"), made.data.get("long_side")],
        "images": images,
        "precision": networks.compute.precision,
        "device": networks.compute.device.type,
        "folded": bool(made.fold_batchnorm),
    }

    def compute() -> Arrays:
        log.info("%s: weighing the regions of the test split", run.directory)
        try:
            opened = open_run(made, run.directory, networks.compute, weighting, "runs")
        except UserError as error:
            if str(error).startswith(f"{weights}: "):
                raise Unusable(f"{error}; delete the run and train it again") from error
            raise
        distiller, data = opened
        progress = Progress(made.seed, run.epochs, 0)
        batches = itertools.islice(data.evaluation("test"), images)
        total = min(images, len(data.data.splits["test"]))
        parts, image = [], []
        for batch in tqdm(batches, desc="weighing", total=total, unit=" images", disable=None):
            parts.append(weighed(weigh(distiller, batch, networks.compute, progress), batch))
            image.append(len(parts[-1].weight))
        rows = Weighed(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        kinds = (np.float32, np.float32, bool, np.int32, np.int32)
        arrays = {
            name: each.astype(kind)
            for name, each, kind in zip(Weighed._fields, rows, kinds, strict=True)
        }
        arrays["image"] = np.repeat(np.arange(len(image), dtype=np.int32), image)
        return {**arrays, "classes": np.array(["background", *data.data.classes])}

    arrays = remembered(networks.cache, "regions", facts, compute)
    image, classes = arrays.pop("image"), arrays.pop("classes")
    return Found(image, Weighed(**arrays), classes.tolist())


def shares_of(regions: Weighed, directory: Path) -> Shares:
    """What the regions of a run come to.

    Raises:
        UserError: all of them are foreground, or all background.
    """
    foreground, weight = regions.foreground, regions.weight.astype(float)
    if foreground.all() or not foreground.any():
        kind = GROUPS[0] if foreground.any() else GROUPS[1]
        raise UserError(
            f"runs: found {kind} regions alone in {directory}, allowed are runs with "
            "distiller.rois=all and test images with annotated boxes"
        )
    total = weight.sum()
    return Shares(
        {"foreground": weight[foreground], "background": weight[~foreground]},
        100 * float(foreground.mean()),
        100 * float(weight[foreground].sum() / total) if total else 0.0,
    )


# Numbers

BySeed = dict[str, dict[int, float]]


def excess_of(shares: Mapping[str, Mapping[int, Shares]]) -> BySeed:
    """By how many points foreground has more of the weight than of the regions."""
    return {
        name: {seed: each.weight_share - each.region_share for seed, each in seeds.items()}
        for name, seeds in shares.items()
    }


def numbers_of(shares: Mapping[str, Mapping[int, Shares]]) -> dict[str, float]:
    """Means over the seeds of each method."""
    numbers: dict[str, float] = {}
    excess = excess_of(shares)
    for name, seeds in shares.items():
        for group in GROUPS:
            means = [each.weight[group].mean() for each in seeds.values()]
            numbers[f"weight.{group}.{name}"] = float(np.mean(means))
        for key in ("region_share", "weight_share"):
            values = [getattr(each, key) for each in seeds.values()]
            numbers[f"{key}.{name}"] = float(np.mean(values))
        numbers[f"excess.{name}"] = float(np.mean([*excess[name].values()]))
    return numbers


def differences_of(shares: Mapping[str, Mapping[int, Shares]]) -> dict[str, Difference]:
    """``excess.ea_kd`` against 0, and ``excess.ea_kd-kd`` of two methods, seed by seed."""
    excess = excess_of(shares)
    own = {
        f"excess.{name}": paired_difference(seeds, dict.fromkeys(seeds, 0.0))
        for name, seeds in excess.items()
    }
    return {k: each for k, each in own.items() if each is not None} | differences(excess, "excess")


def _test_note(tests: Mapping[str, Difference], p: Mapping[str, float]) -> list[str]:
    parts = []
    for key, difference in tests.items():
        name, _, other = key.removeprefix("excess.").partition("-")
        against = f" against {display(other)}" if other else ""
        text = difference_text(difference, p[key], " points")
        parts.append(f"{display(name)}{against} {text}")
    what = "Foreground's share of the weight less its share of the regions, p after Holm"
    return [f"{what}: {'; '.join(parts)}."] if parts else []


def _shows(shares: Mapping[str, Mapping[int, Shares]], kinds: set[str]) -> str:
    numbers, parts = numbers_of(shares), []
    for name in shares:
        regions, weight = numbers[f"region_share.{name}"], numbers[f"weight_share.{name}"]
        high, low = (numbers[f"weight.{group}.{name}"] for group in GROUPS)
        parts.append(
            f"{display(name)} {weight:.1f} % for {regions:.1f} % of the regions (mean weight "
            f"{high:.2f}, of background {low:.2f})"
        )
    whose = "EA's weight" if kinds == {"ea"} else "the weight"
    seeds = seeds_text(max(map(len, shares.values())))
    return (
        f"What foreground gets of {whose}, by networks trained with {'; '.join(parts)} ({seeds})."
    )


# Panels


def weight_panels(shares: Mapping[str, Mapping[int, Shares]]) -> dict[str, Panel]:
    """The density of the weight of foreground and of background, each method a line."""
    every = [each.weight for seeds in shares.values() for each in seeds.values()]
    highest = max(float(weight.max()) for groups in every for weight in groups.values())
    edges = np.linspace(0, highest or 1.0, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    panels = {}
    for group in GROUPS:
        lines = []
        for name, seeds in shares.items():
            density = {
                seed: np.histogram(each.weight[group], edges, density=True)[0]
                for seed, each in seeds.items()
            }
            # Without a band: of few seeds it hides the lines.
            mean = np.mean([*density.values()], axis=0)
            lines.append(Series(name, middles, mean, style="steps", by_seed=density))
        panels[group] = Panel(f"{group} regions", "weight w", "density", tuple(lines))
    return panels


def share_panel(shares: Mapping[str, Mapping[int, Shares]]) -> Panel:
    """Foreground's part of the regions beside its part of the weight, method by method."""
    x = np.arange(1.0, len(shares) + 1)
    bars = []
    for key, label in (("region_share", "of the regions"), ("weight_share", "of the weight")):
        # Each method has seeds of its own, so bars are put together method by method.
        one = [
            over_seeds("", x[:1], {s: np.array([getattr(each, key)]) for s, each in seeds.items()})
            for seeds in shares.values()
        ]
        seeds = sorted({seed for each in one for seed in each.by_seed})
        missing = np.array([np.nan])
        by_seed = {s: np.concatenate([e.by_seed.get(s, missing) for e in one]) for s in seeds}
        y = np.concatenate([each.y for each in one])
        low, high = (
            np.concatenate([e.y if getattr(e, side) is None else getattr(e, side) for e in one])
            for side in ("low", "high")
        )
        spread = (low, high) if any(each.low is not None for each in one) else (None, None)
        bars.append(Series(key, x, y, *spread, label=label, style="bars", by_seed=by_seed))
    return Panel(
        "foreground's share",
        y="%",
        series=tuple(bars),
        x_ticks={float(at): display(name) for at, name in zip(x, shares, strict=True)},
    )


def picture_panel(run: Run, found: Found, networks: Networks, count: int, regions: int) -> Panel:
    """The first images with their regions of highest weight, blue to red, and what they hold."""
    data = open_data(composed(run)[0], networks.compute)
    pictures, captions = [], []
    between = " | " if count <= ACROSS else "\n| "
    for position in range(count):
        rows = heaviest(found.of(position), found.classes, regions)
        pictures.append(_picture(data.data.read("test", position), rows))
        captions.append(
            "\n".join(
                f"{row['weight']:.2f} {short(row['student'])}{between}{short(row['teacher'])}"
                for row in rows[:TOP]
            )
        )
    return Panel(
        title=f"{display(run.method)}, seed {run.seed}: regions of highest weight, red the highest;"
        " w, top class of student | teacher",
        pictures=in_frames(pictures),
        captions=tuple(captions),
        wide=True,
    )


def _picture(image: np.ndarray, rows: Sequence[Mapping]) -> np.ndarray:
    """The image with its boxes, its longer side `FRAME` pixels."""
    factor = FRAME / max(image.shape[:2])
    size = [max(1, round(factor * side)) for side in image.shape[1::-1]]
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    boxes = np.array([row["bbox"] for row in rows[::-1]]).reshape(-1, 4)  # the heaviest on top
    boxes[:, 2:] += boxes[:, :2]
    hues = hues_of(np.array([row["weight"] for row in rows[::-1]]))
    return drawn(resized, factor * boxes, None, hues, WIDTH)


def in_frames(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Images of any sizes as ``(n, h, w, 3)``, each in the middle of white."""
    height, width = (max(each.shape[side] for each in pictures) for side in (0, 1))
    frames = np.full((len(pictures), height, width, 3), 255, np.uint8)
    for frame, picture in zip(frames, pictures, strict=True):
        h, w = picture.shape[:2]
        top, left = (height - h) // 2, (width - w) // 2
        frame[top : top + h, left : left + w] = picture
    return frames
