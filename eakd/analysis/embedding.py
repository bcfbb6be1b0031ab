"""How networks arrange samples: t-SNE and class separation (Figs. 2b, 6, A1b and A3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eakd.analysis.answers import SEGMENTS, Answers, sample_weights, segments, top_share
from eakd.analysis.comparing import differences, seeds_text
from eakd.analysis.marks import display
from eakd.analysis.networks import Networks, epochs_of, first_with_teacher
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import corrected
from eakd.analysis.separation import (
    ITERATIONS,
    calinski_harabasz,
    neighbour_purity,
    silhouettes,
)
from eakd.analysis.tsne import Embeddings, choose_classes
from eakd.config import EA
from eakd.errors import UserError, check_choice, check_number, check_numbers

TEACHER = "teacher"
SYMBOLS = {"teacher": "H_T", "student": "H_S", "weight": "w"}


@dataclass(frozen=True)
class Shown:
    """A network in the figure, and what its samples are ranked by."""

    name: str
    epoch: int | None
    last: bool
    seed: int
    answers: Answers
    ranking: np.ndarray
    ranked_by: str

    @property
    def key(self) -> str:
        return self.name if self.epoch is None else f"{self.name}.epoch{self.epoch}"


def embedding(
    runs: Runs,
    *,
    output_root: str,
    networks: str = "students",
    snapshots: Sequence[float] = (),
    highlight: str = "auto",
    share: float = 0.1,
    classes: str | Sequence[int] = "first",
    class_count: int = 10,
    perplexity: float = 30,
    perplexities: Sequence[float] = (10, 30, 50),
    draws: int = 3,
    library: str = "auto",
    boundary: bool = True,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Pooled features in two dimensions, with the samples that matter most as rings.

    Args:
        networks: ``"teacher"``, ``"students"`` (of the lowest seed), or ``"all"``.
        snapshots: epochs of students beside the last; below 1 fractions of the run.
        highlight: what ranks the samples: ``"teacher"`` or ``"student"`` entropy, ``"weight"``, or
            ``"auto"``: the weight of EA forms, else the network's own entropy.
        share: of the samples that get a ring.
        classes: ``"first"`` or ``"random"`` ``class_count`` classes, ``"all"``, or a list.
        perplexities, draws: how far the CH index of the embedding depends on the perplexity, and
            on the class choice, is shown for these and for so many random choices.
        library: ``"sklearn"``, ``"opentsne"``, or ``"auto"``.
        boundary: also show silhouette and neighbour purity by tenth.

    Raises:
        UserError: a wrong setting, or no network that can be opened.
    """
    check_choice("networks", networks, ("teacher", "students", "all"))
    check_choice("highlight", highlight, ("auto", *SYMBOLS))
    check_number("share", share, above=0, at_most=1)
    opened = Networks(output_root, device, precision)
    teacher = opened.teacher_answers(first_with_teacher(runs), split)
    check_number("draws", draws, at_least=0, integer=True)
    check_numbers("perplexities", perplexities, above=0)
    shown = list(_shown(runs, opened, teacher, networks, snapshots, highlight, split))
    if not shown:
        raise UserError(opened.notes[0])
    chosen = choose_classes(classes, class_count, teacher)
    last = [each for each in shown if each.last]
    others = [choose_classes("random", class_count, teacher, seed + 1) for seed in range(draws)]
    choices = [
        *((chosen, float(p)) for p in (perplexity, *perplexities)),
        *((other, float(perplexity)) for other in others),
    ]
    made = Embeddings(opened.cache, library)
    made.compute([(each.answers, *choices[0]) for each in shown])
    made.compute([(each.answers, *choice) for each in last for choice in choices])
    numbers: dict[str, float] = {}
    for each in shown:
        index = numbers[f"ch.{each.key}"] = made.index(each.answers, *choices[0])
        if each in last:
            every = [made.index(each.answers, *choice) for choice in choices]
            numbers |= {
                f"ch.{each.name}": index,
                f"ch.{each.name}.low": min(every),
                f"ch.{each.name}.high": max(every),
            }
    for name, kept in _overlaps(shown, share).items():
        numbers |= {f"overlap.{name}.{place}": value for place, value in enumerate(kept, 1)}
    separation, tests = _feature_indices(runs, opened, split) if networks != "teacher" else ({}, {})
    if networks != "students":
        separation[TEACHER] = {0: calinski_harabasz(teacher.pooled, teacher.labels)}
    numbers |= {f"feature_ch.{n}": float(np.mean([*v.values()])) for n, v in separation.items()}
    panels = {
        each.key: _cloud(each, made.points(each.answers, *choices[0]), chosen, share, numbers)
        for each in shown
    }
    if boundary:
        panels |= _boundary(last, chosen, numbers)
    return Result(
        panels=panels,
        columns=min(3, len(panels)),
        numbers=numbers,
        tests=tests,
        shows=_shows(last, numbers, "perplexities and class choices" if others else "perplexities"),
        not_shows=_not_shows(last, separation, tests),
        notes=(
            f"t-SNE of the pooled features of the {split} images of {len(chosen)} classes "
            f"(perplexity {perplexity:g}, PCA start, {ITERATIONS} iterations, {made.about}), of "
            f"seed {shown[-1].seed}; rings are the {100 * share:g} % of highest "
            f"{' or '.join(dict.fromkeys(SYMBOLS[each.ranked_by] for each in shown))}.",
            *opened.notes,
        ),
        about=opened.about(runs, split, teacher)
        | {
            "entropy_temperature": runs[0].entropy_temperature,
            "embedding": made.about,
            "shown_seeds": sorted({each.seed for each in shown}),
        },
        arrays={f"embedding.{each.key}": made.points(each.answers, *choices[0]) for each in shown},
    )


def _shown(
    runs: Runs,
    opened: Networks,
    teacher: Answers,
    networks: str,
    snapshots: Sequence[float],
    highlight: str,
    split: str,
) -> Iterator[Shown]:
    first = first_with_teacher(runs)
    if networks in ("teacher", "all"):
        ranking = teacher.entropy(first.entropy_temperature)
        yield Shown(TEACHER, None, True, first.seed, teacher, ranking, "teacher")
    if networks == "teacher":
        return
    for name in runs.names:
        for run in runs.of(name):
            found = [
                (epoch, opened.attempt(opened.answers, run, split, epoch))
                for epoch in epochs_of(run, snapshots)
            ]
            if all(answers is None for _, answers in found):
                continue  # the next seed
            for epoch, answers in found:
                if answers is not None:
                    by = highlight
                    if by == "auto":
                        by = "weight" if name.startswith(EA) else "student"
                    ranking = _ranking(by, run, answers, teacher)
                    yield Shown(name, epoch, epoch == run.epochs, run.seed, answers, ranking, by)
            break


def _ranking(by: str, run: Run, student: Answers, teacher: Answers) -> np.ndarray:
    if by == "weight":
        return sample_weights(run, student, teacher)
    return (teacher if by == "teacher" else student).entropy(run.entropy_temperature)


def _feature_indices(
    runs: Runs, opened: Networks, split: str
) -> tuple[dict[str, dict[int, float]], dict[str, float]]:
    """Method → seed → CH index of the last features over all classes, and p of its differences."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        answers = opened.attempt(opened.answers, run, split)
        if answers is not None:
            index = calinski_harabasz(answers.pooled, answers.labels)
            found.setdefault(run.method, {})[run.seed] = index
    return found, corrected(differences(found, "feature_ch"))


def _overlaps(shown: Sequence[Shown], share: float) -> dict[str, list[float]]:
    """Percent of a network's highest samples that are still so at its next epoch."""
    found: dict[str, list[float]] = {}
    for one, other in pairwise(shown):
        if one.name == other.name:
            tops = [set(top_share(each.ranking, share).tolist()) for each in (one, other)]
            kept = 100 * len(tops[0] & tops[1]) / len(tops[0])
            found.setdefault(one.name, []).append(kept)
    return found


def _cloud(
    each: Shown,
    points: np.ndarray,
    chosen: np.ndarray,
    share: float,
    numbers: Mapping[str, float],
) -> Panel:
    members = np.isin(each.answers.labels, chosen)
    labels = each.answers.labels[members]
    series = []
    for label in chosen:
        own = points[labels == label]
        series.append(
            Series(str(each.answers.classes[label]), own[:, 0], own[:, 1], style="points")
        )
    top = points[top_share(each.ranking[members], share)]
    ring = f"highest {100 * share:g} %"  # the same in all panels, so that the legend has it once
    series.append(Series("highest", top[:, 0], top[:, 1], label=ring, style="rings"))
    epoch = "" if each.epoch is None else f", epoch {each.epoch}"
    index = numbers[f"ch.{each.key}"]
    title = f"{display(each.name)}{epoch}\nCH {index:.4g}, rings by {SYMBOLS[each.ranked_by]}"
    return Panel(title=title, x="t-SNE 1", y="t-SNE 2", series=tuple(series), equal=True)


def _boundary(
    last: Sequence[Shown], chosen: np.ndarray, numbers: dict[str, float]
) -> dict[str, Panel]:
    """Silhouette of the shown classes, and purity among all, by tenth of the ranking."""
    x = np.arange(1, SEGMENTS + 1, dtype=float)
    lines: dict[str, list[Series]] = {"silhouette": [], "purity": []}
    for each in last:
        answers, members = each.answers, np.isin(each.answers.labels, chosen)
        values = {
            "silhouette": (
                silhouettes(answers.pooled[members], answers.labels[members]),
                each.ranking[members],
            ),
            "purity": (neighbour_purity(answers.pooled, answers.labels), each.ranking),
        }
        label = f"{display(each.name)}, by {SYMBOLS[each.ranked_by]}"
        for name, (value, ranking) in values.items():
            tenths = np.array([value[part].mean() for part in segments(ranking)])
            lines[name].append(Series(each.name, x, tenths, label=label))
            numbers |= {f"{name}.{each.name}.{i}": float(v) for i, v in enumerate(tenths, 1)}
    axis = "tenth of the samples, lowest first"
    return {
        "silhouette": Panel(
            x=axis, y=f"silhouette ({len(chosen)} classes)", series=tuple(lines["silhouette"])
        ),
        "purity": Panel(
            x=axis,
            y="neighbours of the same class",
            series=tuple(lines["purity"]),
        ),
    }


def _shows(last: Sequence[Shown], numbers: Mapping[str, float], varied: str) -> str:
    texts = [
        f"{display(each.name)} {numbers[f'ch.{each.name}']:.4g} "
        f"(from {numbers[f'ch.{each.name}.low']:.4g} to {numbers[f'ch.{each.name}.high']:.4g})"
        for each in last
    ]
    return f"CH index of the embedding, and its range over {varied}: {', '.join(texts)}."


def _not_shows(
    last: Sequence[Shown], separation: Mapping[str, Mapping[int, float]], tests: Mapping[str, float]
) -> str:
    texts = [
        f"{display(name)} {np.mean([*found.values()]):.4g} ({seeds_text(len(found))})"
        for name, found in separation.items()
    ]
    tested = [f"p = {p:.3g} of {key.removeprefix('feature_ch.')}" for key, p in tests.items()]
    return (
        "An embedding's index depends on perplexity and class choice and is no evidence by itself; "
        f"that of the features themselves, over all classes, is {', '.join([*texts, *tested])}."
    )
