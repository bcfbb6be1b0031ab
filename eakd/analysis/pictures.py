"""Which samples the weight chose: images, classes and the distribution of the weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from eakd.analysis.answers import Answers, sample_weights
from eakd.analysis.comparing import seeds_text
from eakd.analysis.marks import display
from eakd.analysis.networks import Networks, epochs_of
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import over_seeds
from eakd.config import EA
from eakd.errors import UserError, check_choice, check_number

TOP, LETTERS = 3, 10  # classes in a caption, and of the name of each
BINS = 40
NAMED = 20  # classes up to which each has its name on the axis


def gallery(
    runs: Runs,
    *,
    output_root: str,
    snapshots: Sequence[float] = (1 / 6, 1 / 2),
    count: int = 8,
    method: str = "auto",
    split: str = "train",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """The images with the highest and the lowest weight, and those whose weight changed most.

    Args:
        snapshots: epochs beside the last; below 1 fractions of the run.
        count: images of each kind.
        method: whose first seed is shown; ``"auto"`` for the first EA form.

    Raises:
        UserError: a wrong setting, or no network that can be opened.
    """
    check_number("count", count, at_least=1, integer=True)
    networks = Networks(output_root, device, precision)
    name = choose(runs, method)
    run, found = _first_opened(runs.of(name), networks, snapshots, split)
    teacher = networks.teacher_answers(run, split)
    count = min(count, len(teacher.labels))
    weights = {epoch: sample_weights(run, student, teacher) for epoch, student in found.items()}
    captions = {e: Captions(run, teacher, found[e], weights[e]) for e in found}
    images = _images(networks, run, split)
    panels, numbers, before = {}, {}, None
    for epoch, weight in weights.items():
        order = np.argsort(weight, kind="stable")
        chosen = {
            "high": (order[::-1][:count], "highest weight"),
            "low": (order[:count], "lowest weight"),
        }
        if before is not None:
            change = weight - weights[before]
            order = np.argsort(change, kind="stable")
            chosen["risen"] = order[::-1][:count], f"weight rose most since epoch {before}"
            chosen["fallen"] = order[:count], f"weight fell most since epoch {before}"
        for kind, (members, text) in chosen.items():
            key = f"{kind}.epoch{epoch}"
            earlier = weights.get(before) if kind in ("risen", "fallen") else None
            panels[key] = Panel(
                title=f"{display(name)}, epoch {epoch}: {text}",
                pictures=images[teacher.index[members]],
                captions=tuple(captions[epoch].of(place, earlier) for place in members),
            )
            numbers[f"weight.{key}"] = float(weight[members].mean())
            numbers[f"student_right.{key}"] = float(100 * found[epoch].correct[members].mean())
        numbers[f"weight.mean.epoch{epoch}"] = float(weight.mean())
        before = epoch
    last = max(weights)
    return Result(
        panels=panels,
        columns=1,
        numbers=numbers,
        shows=(
            f"The {count} images of each kind in {display(name)}, seed {run.seed}: mean weight "
            f"{numbers[f'weight.high.epoch{last}']:.2f} of the highest and "
            f"{numbers[f'weight.low.epoch{last}']:.2f} of the lowest at epoch {last}, "
            f"{numbers[f'weight.mean.epoch{last}']:.2f} over all."
        ),
        not_shows=(
            f"It does not show what is typical: these are {count} extremes of "
            f"{len(teacher.labels):,} images, of one seed."
        ),
        notes=(*_formula_note(run), *networks.notes),
        about=networks.about([run], split, teacher)
        | {"entropy_temperature": run.entropy_temperature},
    )


def weights(
    runs: Runs,
    *,
    output_root: str,
    snapshots: Sequence[float] = (1 / 6, 1 / 2),
    method: str = "auto",
    split: str = "train",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """How the weight is distributed over samples, and over classes: which ones got the teaching.

    Args:
        snapshots: epochs beside the last; below 1 fractions of the run.
        method: whose runs; ``"auto"`` for the first EA form.

    Raises:
        UserError: a wrong setting, or no network that can be opened.
    """
    networks = Networks(output_root, device, precision)
    name = choose(runs, method)
    first, opened = _first_opened(runs.of(name), networks, snapshots, split)
    teacher = networks.teacher_answers(first, split)
    labels, classes = teacher.labels, len(teacher.classes)
    found: dict[int, dict[int, np.ndarray]] = {epoch: {} for epoch in opened}
    for run in runs.of(name):
        for epoch in found:
            student = networks.attempt(networks.answers, run, split, epoch)
            if student is not None:
                found[epoch][run.seed] = sample_weights(run, student, teacher)
    share = {
        epoch: {seed: 100 * _by_class(w, labels, classes) for seed, w in seeds.items()}
        for epoch, seeds in found.items()
    }
    last = max(share)
    means = {epoch: np.mean([*seeds.values()], axis=0) for epoch, seeds in share.items()}
    order = np.argsort(-means[last], kind="stable")
    x = np.arange(1, classes + 1, dtype=float)
    lines = [
        over_seeds(f"epoch {epoch}", x, {seed: each[order] for seed, each in seeds.items()})
        for epoch, seeds in share.items()
    ]
    images = 100 * np.bincount(labels, minlength=classes)[order] / len(labels)
    lines.append(Series("share of the images", x, images, style="reference"))
    highest = max(w.max() for seeds in found.values() for w in seeds.values())
    edges = np.linspace(0, highest, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    steps = []
    for epoch, seeds in found.items():
        density = np.mean([np.histogram(w, edges, density=True)[0] for w in seeds.values()], axis=0)
        steps.append(Series(f"epoch {epoch}", middles, density, style="steps"))
    numbers: dict[str, float] = {}
    for epoch, seeds in found.items():
        values = np.stack([*seeds.values()])
        numbers[f"weight.mean.epoch{epoch}"] = float(values.mean())
        numbers[f"weight.std.epoch{epoch}"] = float(values.std(axis=1).mean())
        for label in range(classes):
            key = f"share.{teacher.classes[label]}.epoch{epoch}"
            numbers[key] = float(means[epoch][label])
    most, least = order[0], order[-1]
    shown = range(classes) if classes <= NAMED else (0, classes // 2, classes - 1)
    return Result(
        panels={
            "histogram": Panel(title=display(name), x="weight w", y="density", series=tuple(steps)),
            "share": Panel(
                title=display(name),
                x="class, by its share at the end",
                y="share of the weight (%)",
                series=tuple(lines),
                x_ticks={float(x[i]): str(teacher.classes[order[i]]) for i in shown},
            ),
        },
        columns=2,
        numbers=numbers,
        shows=(
            f"Of all weight at epoch {last}, class {teacher.classes[most]} has "
            f"{means[last][most]:.2f} % and class {teacher.classes[least]} "
            f"{means[last][least]:.2f} %; the weight has mean "
            f"{numbers[f'weight.mean.epoch{last}']:.2f} and standard deviation "
            f"{numbers[f'weight.std.epoch{last}']:.2f} ({seeds_text(len(found[last]))})."
        ),
        not_shows="It does not show that a class with more weight is learned better.",
        notes=(*_formula_note(first), *networks.notes),
        about=networks.about(runs.of(name), split, teacher)
        | {"entropy_temperature": first.entropy_temperature},
    )


class Captions:
    """A few lines for each image: its label, what both networks say, entropies and weight."""

    def __init__(self, run: Run, teacher: Answers, student: Answers, weight: np.ndarray):
        self.teacher, self.student, self.weight = teacher, student, weight
        temperature = run.entropy_temperature
        self.entropies = teacher.entropy(temperature), student.entropy(temperature)

    def of(self, place: int, earlier: np.ndarray | None = None) -> str:
        """The label; three answers with percent of ``T`` and of ``S``; ``H_T``, ``H_S``, ``w``."""
        label = self.teacher.classes[self.teacher.labels[place]]
        h_t, h_s = (h[place] for h in self.entropies)
        before = "" if earlier is None else f"{earlier[place]:.2f} → "
        return "\n".join(
            (
                short(label),
                *_top("T", self.teacher, place),
                *_top("S", self.student, place),
                f"H_T {h_t:.2f}",
                f"H_S {h_s:.2f}",
                f"w {before}{self.weight[place]:.2f}",
            )
        )


def _top(who: str, answers: Answers, place: int) -> list[str]:
    p = softmax(answers.logits[place].astype(float))
    best = np.argsort(-p, kind="stable")[:TOP]
    return [f"{who} {short(answers.classes[label])} {100 * p[label]:.0f}" for label in best]


def short(name: str) -> str:
    """A class's name in a caption, cut off after `LETTERS`."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def choose(runs: Runs, method: str) -> str:
    """The method that is shown: ``"auto"`` for the first EA form, or else one with a teacher.

    Raises:
        UserError: no run is of it, or none has a teacher.
    """
    if method == "auto":
        weighted = [name for name in runs.names if name.startswith(EA)]
        with_teacher = [name for name in runs.names if runs.of(name)[0].teacher]
        if not with_teacher:
            raise UserError("runs: found no method with a teacher, allowed are some with one")
        return (weighted or with_teacher)[0]
    check_choice("method", method, runs.names)
    return method


def _first_opened(
    runs: Sequence[Run], networks: Networks, snapshots: Sequence[float], split: str
) -> tuple[Run, dict[int, Answers]]:
    """The run of the lowest seed that can be opened, and its answers at each epoch."""
    for run in runs:
        found = {
            epoch: networks.attempt(networks.answers, run, split, epoch)
            for epoch in epochs_of(run, snapshots)
        }
        if opened := {epoch: each for epoch, each in found.items() if each is not None}:
            return run, opened
    raise UserError(networks.notes[0])


def _images(networks: Networks, run: Run, split: str) -> np.ndarray:
    data = networks.data(run).data
    return data.test_images if split == "test" else data.train_images


def _by_class(weight: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """``(classes,)`` shares, which sum to 1."""
    return np.bincount(labels, weight, minlength=classes) / weight.sum()


def _formula_note(run: Run) -> tuple[str, ...]:
    own = run.method.startswith(EA) or "+" in run.method
    text = "the run's own formula" if own else "EA's formula: the run itself weighs all alike"
    return (f"Weights of images without augmentation, by {text}.",)
