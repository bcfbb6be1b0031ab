"""The data map: how sure of each training sample a student was, and how much that moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eakd.analysis.comparing import differences, told
from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.sample_records import (
    about,
    epochs_text,
    mean_over,
    means_of,
    over_epochs,
    shared_epochs,
    spread_over,
)
from eakd.analysis.seeds import corrected
from eakd.errors import UserError, check_choice, check_number

# What a map may be coloured by, and what the colour bar says.
COLOURS = {
    "teacher_entropy": "mean H_T, nats",
    "student_entropy": "mean H_S, nats",
    "weight": "mean weight",
    "correctness": "epochs right, %",
    "forgetting": "times forgotten",
}
REGIONS = ("easy", "ambiguous", "hard")


def data_map(
    runs: Runs,
    *,
    output_root: str = "outputs",
    colors: Sequence[str] = ("teacher_entropy", "weight"),
    share: float = 1 / 3,
    points: int = 5000,
) -> Result:
    """Where the samples lie by how sure of the true class a student was through training.

    Source: Swayamdipta et al., Dataset Cartography, EMNLP 2020; allenai/cartography,
    ``selection/train_dy_filtering.py``. Forgetting events: Toneva et al., ICLR 2019.

    Args:
        colors: of `COLOURS`, a panel for each method and each of them; one that is the same for all
            samples, as the weight of a plain method, has none.
        share: of the samples that make up a region: easy (highest confidence), ambiguous (highest
            variability), hard (lowest confidence).
        points: drawn at most, evenly spaced in the training set; numbers are of all samples.

    Raises:
        UserError: a wrong setting; runs that share fewer than two recorded epochs.
    """
    if not isinstance(colors, list | tuple) or not colors:
        raise UserError(f"colors: found {colors!r}, allowed is a list of {', '.join(COLOURS)}")
    for each in colors:
        check_choice("colors", each, COLOURS)
    check_number("share", share, above=0, at_most=0.5)
    check_number("points", points, at_least=1, integer=True)
    epochs = shared_epochs(runs)
    panels: dict[str, Panel] = {}
    arrays: dict[str, np.ndarray] = {}
    by_seed: dict[str, dict[str, dict[int, float]]] = {}
    samples = 0
    for name in runs.names:
        for run in runs.of(name):
            found = map_of(run, epochs)
            samples = len(found["confidence"])
            for key, value in summary(found, share).items():
                by_seed.setdefault(key, {}).setdefault(name, {})[run.seed] = value
            if run is runs.of(name)[0]:
                panels |= _map_panels(run, found, colors, points)
                arrays |= {f"{key}.{name}": each.astype(np.float32) for key, each in found.items()}
    if not panels:
        raise UserError(
            f"colors: found {', '.join(colors)}, which all samples of these runs have alike, "
            "allowed is one in which they differ"
        )
    # A row for each colour.
    panels = {key: panels[key] for each in colors for key in panels if key.startswith(f"{each} ")}
    numbers = means_of(by_seed)
    tests = differences(by_seed["variability"], "variability")
    p = corrected(tests)
    weighted = [n for n in runs.names if f"weight.ambiguous.{n}" in numbers] or runs.names[:1]
    said = "; ".join(_regions(name, numbers) for name in weighted)
    return Result(
        panels=panels,
        columns=min(3, len(runs.names)),
        numbers=numbers,
        tests=p,
        shows=f"{said}.",
        not_shows=(
            "It does not show that ambiguous samples teach more: that needs training on parts of "
            "the data."
        ),
        notes=(
            f"Confidence and variability are mean and standard deviation (ddof 0) of the true "
            f"class's probability over {epochs_text(epochs)}, on augmented images, while the "
            "weights move; a sample is forgotten when it is right in one of them and wrong in the "
            "next. H_T and H_S are the entropies of teacher and student.",
            f"Regions are the {100 * share:.0f} % of the samples with the highest confidence "
            "(easy), highest variability (ambiguous), lowest confidence (hard); they overlap.",
            "The picture shows the lowest seed of each method"
            + (f", {points:,} samples of {samples:,}." if points < samples else "."),
            *told(tests, p),
        ),
        about=about(runs, samples),
        arrays=arrays,
    )


def map_of(run: Run, epochs: Sequence[int]) -> dict[str, np.ndarray]:
    """What a map shows of each sample of a run, ``(n,)`` each.

    ``confidence``, ``variability``, ``correctness`` (percent of the epochs), ``forgetting``
    (events) and, as far as the run has them, the means of ``teacher_entropy``, ``student_entropy``
    and ``weight``; ``index`` is the position in the training set.

    Raises:
        UserError: the run measures no probability of a true class.
    """
    needed, more = (
        ("target_probability", "correct"),
        ("teacher_entropy", "student_entropy", "weight"),
    )
    index, values = over_epochs(run, epochs, needed, more)
    return {
        "index": index,
        "confidence": mean_over(values["target_probability"]),
        "variability": spread_over(values["target_probability"]),
        "correctness": 100 * mean_over(values["correct"]),
        "forgetting": forgetting_events(values["correct"]),
        **{name: mean_over(values[name]) for name in more if name in values},
    }


def forgetting_events(correct: np.ndarray) -> np.ndarray:
    """``(n,)`` how often a sample was right in one row of ``(epochs, n)`` and wrong in the next."""
    return ((correct[:-1] == 1) & (correct[1:] == 0)).sum(axis=0).astype(float)


def summary(found: Mapping[str, np.ndarray], share: float) -> dict[str, float]:
    """Means over all samples, and over each region of what the weight does there."""
    numbers = {
        key: float(found[key].mean())
        for key in ("confidence", "variability", "correctness", "forgetting")
    }
    numbers["never_right"] = float(100 * (found["correctness"] == 0).mean())
    count = max(1, round(share * len(found["confidence"])))
    members = {
        "easy": np.argsort(-found["confidence"], kind="stable")[:count],
        "ambiguous": np.argsort(-found["variability"], kind="stable")[:count],
        "hard": np.argsort(found["confidence"], kind="stable")[:count],
    }
    for name in ("teacher_entropy", "weight"):
        if name in found and np.ptp(found[name]) > 0:
            for region in REGIONS:
                numbers[f"{name}.{region}"] = float(found[name][members[region]].mean())
            for other in ("confidence", "variability"):
                numbers[f"rank.{name}_{other}"] = _rank(found[name], found[other])
    return numbers


def _map_panels(
    run: Run, found: Mapping[str, np.ndarray], colors: Sequence[str], points: int
) -> dict[str, Panel]:
    total = len(found["confidence"])
    # Samples are often in the order of their classes: evenly spaced, so that all have their part.
    shown = np.unique(np.linspace(0, total - 1, min(points, total)).astype(int))
    panels = {}
    for name in colors:
        if name in found and np.ptp(found[name]) > 0:
            cloud = Series(
                run.method,
                found["variability"][shown],
                found["confidence"][shown],
                label=COLOURS[name],
                style="points",
                color=found[name][shown],
            )
            panels[f"{name} {run.method}"] = Panel(
                title=display(run.method),
                x="variability",
                y="confidence",
                series=(cloud,),
                x_limits=(-0.01, 0.51),
                y_limits=(-0.02, 1.02),
            )
    return panels


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def _regions(name: str, numbers: Mapping[str, float]) -> str:
    """A sentence without its end: what the weight does in each region, as far as there is one."""
    if f"weight.ambiguous.{name}" not in numbers:
        return (
            f"{display(name)}: mean confidence {numbers[f'confidence.{name}']:.2f}, variability "
            f"{numbers[f'variability.{name}']:.3f}, {numbers[f'forgetting.{name}']:.2f} times "
            f"forgotten, {numbers[f'never_right.{name}']:.1f} % never right"
        )
    weights = ", ".join(f"{numbers[f'weight.{r}.{name}']:.2f} on {r}" for r in REGIONS)
    return (
        f"{display(name)}: mean weight {weights} samples; rank correlation of the weight with "
        f"variability {numbers[f'rank.weight_variability.{name}']:+.2f}, with confidence "
        f"{numbers[f'rank.weight_confidence.{name}']:+.2f}"
    )
