"""Trajectories: the student's entropy of single samples through training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from eakd.analysis.comparing import differences, told
from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.sample_records import (
    Recorded,
    about,
    epochs_text,
    mean_over,
    means_of,
    over_epochs,
    shared_epochs,
    spread_over,
)
from eakd.analysis.seeds import corrected
from eakd.errors import check_boolean, check_number

GROUPS = ("highest", "median", "lowest")
LETTERS = 10  # of a class's name in a caption


def trajectories(
    runs: Runs,
    *,
    output_root: str = "outputs",
    count: int = 3,
    share: float = 0.1,
    pictures: bool = True,
) -> Result:
    """The student's entropy over epochs of samples that the teacher finds hard, middling and easy.

    Args:
        count: samples of each group, by the mean of the teacher's entropy over the epochs.
        share: of the samples of highest and of lowest teacher entropy that numbers are of.
        pictures: show the images too.

    Raises:
        UserError: a wrong setting; runs that share fewer than two recorded epochs, or without a
            teacher; images that are not there.
    """
    check_number("count", count, at_least=1, integer=True)
    check_number("share", share, above=0, at_most=0.5)
    check_boolean("pictures", pictures)
    epochs = shared_epochs(runs)
    first = over_epochs(runs[0], epochs, ("teacher_entropy",))
    entropy = mean_over(first.values["teacher_entropy"])
    chosen = {group: first.index[each] for group, each in _groups(entropy, count).items()}
    panels: dict[str, Panel] = {}
    by_seed: dict[str, dict[str, dict[int, float]]] = {}
    for name in runs.names:
        for run in runs.of(name):
            found = over_epochs(run, epochs, ("teacher_entropy", "student_entropy"))
            for key, value in _spreads(found, share).items():
                by_seed.setdefault(key, {}).setdefault(name, {})[run.seed] = value
            if run is runs.of(name)[0]:
                panels[name] = _lines(name, epochs, found, chosen)
    highest = max(float(np.nanmax(s.y)) for panel in panels.values() for s in panel.series)
    panels = {name: replace(each, y_limits=(0, 1.05 * highest)) for name, each in panels.items()}
    if pictures:
        known = dict(zip(first.index.tolist(), entropy.tolist(), strict=True))
        panels |= _thumbnails(runs[0], output_root, chosen, known)
    numbers = means_of(by_seed)
    tests = differences(by_seed["within.highest"], "within.highest")
    p = corrected(tests)
    spread = ", ".join(
        f"{numbers[f'within.highest.{n}']:.3f} under {display(n)}" for n in runs.names
    )
    return Result(
        panels=panels,
        columns=3 if pictures else min(3, len(panels)),
        numbers=numbers,
        tests=p,
        shows=(
            f"Over {epochs_text(epochs)} the student's entropy of one sample of the "
            f"{100 * share:.0f} % with the highest teacher entropy has a standard deviation of "
            f"{spread} (nats, mean over these samples)."
        ),
        not_shows=(
            f"It does not show what is typical: the lines are {count} samples a group, of one seed "
            "of each method; the numbers are of all seeds."
        ),
        notes=(
            "Entropies are those of the augmented images, so part of a line's movement is "
            "augmentation; H_T is the mean of the teacher's over these epochs.",
            "The samples are the same in all panels, chosen by the mean of the teacher's entropy "
            f"in the run {display(runs[0].method)}, seed {runs[0].seed}.",
            *told(tests, p),
        ),
        about=about(runs, len(entropy)),
        arrays={f"index.{group}": each for group, each in chosen.items()},
    )


def _groups(entropy: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """``{group: (count,) places}`` by teacher entropy, stable."""
    order = np.argsort(entropy, kind="stable")
    count = min(count, len(order))
    middle = (len(order) - count) // 2
    return {
        "highest": order[::-1][:count],
        "median": order[middle : middle + count],
        "lowest": order[:count],
    }


def _lines(
    name: str, epochs: Sequence[int], found: Recorded, chosen: Mapping[str, np.ndarray]
) -> Panel:
    x = np.array(epochs, dtype=float)
    series = tuple(
        Series(group, x, line.astype(float), label=f"{group} teacher entropy")
        for group in GROUPS
        for line in found.values["student_entropy"].T[np.isin(found.index, chosen[group])]
    )
    return Panel(display(name), "epoch", "student entropy, nats", series)


def _spreads(found: Recorded, share: float) -> dict[str, float]:
    """How much one sample's entropy moves, in the parts of highest and lowest teacher entropy."""
    order = np.argsort(mean_over(found.values["teacher_entropy"]), kind="stable")
    spread = spread_over(found.values["student_entropy"])[order]
    count = max(1, round(share * len(order)))
    return {
        "within": float(spread.mean()),
        "within.lowest": float(spread[:count].mean()),
        "within.highest": float(spread[-count:].mean()),
    }


def _thumbnails(
    run: Run, output_root: str, chosen: Mapping[str, np.ndarray], entropy: Mapping[int, float]
) -> dict[str, Panel]:
    from eakd.analysis.networks import Networks  # the only thing here that imports torch

    data = Networks(output_root, "cpu", "float32").data(run).data
    return {
        f"pictures.{group}": Panel(
            title=f"{group} H_T",
            pictures=data.train_images[chosen[group]],
            captions=tuple(
                f"{str(data.classes[data.train_labels[place]])[:LETTERS]}\nH_T {entropy[place]:.2f}"
                for place in chosen[group].tolist()
            ),
        )
        for group in GROUPS
    }
