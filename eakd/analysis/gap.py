"""Where a student falls behind its teacher: accuracy by entropy (Figs. 2a and A1a)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eakd.analysis.answers import SEGMENTS, Answers, segments
from eakd.analysis.comparing import differences
from eakd.analysis.marks import display
from eakd.analysis.networks import Networks, first_with_teacher
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Runs
from eakd.analysis.seeds import corrected, over_seeds
from eakd.errors import UserError, check_choice, check_number

X = np.arange(1, SEGMENTS + 1, dtype=float)
VALUES = {
    "gap": "teacher − student (percentage points)",
    "accuracy": "top-1 (%)",
    "agreement": "same answer as the teacher (%)",
}


def gap(
    runs: Runs,
    *,
    output_root: str,
    by: str = "teacher",
    split: str = "test",
    second_temperature: float | None = 1.0,
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """The gap in accuracy to the teacher, in ten equal parts of a split by entropy.

    Args:
        by: whose entropy ranks the samples: ``"teacher"`` (Fig. 2a), the same parts for every
            student, or ``"student"`` (Fig. A1a), each student's own.
        second_temperature: a further τ′ to rank by, beside that of the runs; ``None`` for none.

    Raises:
        UserError: a wrong setting, no teacher, or weights of which none can be opened.
    """
    check_choice("by", by, ("teacher", "student"))
    if second_temperature is not None:
        check_number("second_temperature", second_temperature, above=0)
    networks = Networks(output_root, device, precision)
    first = first_with_teacher(runs)
    teacher = networks.teacher_answers(first, split)
    found: dict[str, dict[int, Answers]] = {}
    for name in runs.names:
        answers = {r.seed: networks.attempt(networks.answers, r, split) for r in runs.of(name)}
        found[name] = {seed: each for seed, each in answers.items() if each is not None}
    names = [name for name in runs.names if found[name]]
    if not names:
        raise UserError(networks.notes[0])
    temperature = first.entropy_temperature
    main = _measure({name: found[name] for name in names}, teacher, by, temperature)
    panels, numbers, tests = {}, {}, {}
    whose = "teacher" if by == "teacher" else "student"
    for value, label in VALUES.items():
        panels[value] = _panel(main, value, label, f"{whose} entropy at τ′ = {temperature:g}")
    if second_temperature not in (None, temperature):
        second = _measure({n: found[n] for n in names}, teacher, by, second_temperature)
        text = f"{whose} entropy at τ′ = {second_temperature:g}"
        panels["gap_second"] = _panel(second, "gap", VALUES["gap"], text)
    for value in (*VALUES, "teacher"):
        for name in names:
            mean = np.mean([*main[value][name].values()], axis=0)
            numbers |= {f"{value}.{name}.{part + 1}": float(x) for part, x in enumerate(mean)}
    by_part = [
        differences({n: _part(main["gap"][n], part) for n in names}, "gap_difference")
        for part in range(SEGMENTS)
    ]
    for key in by_part[0]:
        for part, found_here in enumerate(by_part, 1):
            difference = found_here[key]
            numbers |= {
                f"{key}.{part}": difference.mean,
                f"{key}.{part}.low": difference.low,
                f"{key}.{part}.high": difference.high,
            }
        tests |= corrected({f"{key}.{part}": each[key] for part, each in enumerate(by_part, 1)})
    return Result(
        panels=panels,
        columns=2,
        numbers=numbers,
        tests=tests,
        shows=_shows(numbers, names),
        not_shows=_not_shows(numbers, names),
        notes=(
            f"Ten equal parts of the {split} set by the {whose}'s entropy, the lowest first; "
            "95 % interval over seeds, p-values after Holm's correction over the ten parts.",
            *networks.notes,
        ),
        about=networks.about([r for n in names for r in runs.of(n)], split, teacher)
        | {"entropy_temperature": temperature},
    )


def _measure(
    found: Mapping[str, Mapping[int, Answers]], teacher: Answers, by: str, temperature: float
) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Value → method → seed → ``(10,)`` percent."""
    values: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    parts = segments(teacher.entropy(temperature)) if by == "teacher" else []
    for name, seeds in found.items():
        for seed, student in seeds.items():
            own = parts or segments(student.entropy(temperature))
            accuracy, reference, agreement = (
                np.array([100 * each[part].mean() for part in own])
                for each in (
                    student.correct,
                    teacher.correct,
                    student.predictions == teacher.predictions,
                )
            )
            one = {
                "gap": reference - accuracy,
                "accuracy": accuracy,
                "agreement": agreement,
                "teacher": reference,
            }
            for value, numbers in one.items():
                values.setdefault(value, {}).setdefault(name, {})[seed] = numbers
    return values


def _panel(values: Mapping[str, Any], value: str, label: str, by: str) -> Panel:
    series = [over_seeds(name, X, seeds) for name, seeds in values[value].items()]
    if value == "accuracy":
        every = [x for seeds in values["teacher"].values() for x in seeds.values()]
        series.append(Series("teacher", X, np.mean(every, axis=0), style="reference"))
    return Panel(x=f"tenth of the samples by {by}", y=label, series=tuple(series))


def _part(values: Mapping[int, np.ndarray], part: int) -> dict[int, float]:
    return {seed: float(x[part]) for seed, x in values.items()}


def _shows(numbers: Mapping[str, float], names: list[str]) -> str:
    texts = [
        f"{display(name)} {numbers[f'gap.{name}.1']:+.1f} → "
        f"{numbers[f'gap.{name}.{SEGMENTS}']:+.1f}"
        for name in names
    ]
    return (
        "Gap to the teacher from the tenth with the lowest to that with the highest entropy, in "
        f"percentage points: {', '.join(texts)}."
    )


def _not_shows(numbers: Mapping[str, float], names: list[str]) -> str:
    low, high = (
        np.mean([numbers[f"teacher.{name}.{part}"] for name in names]) for part in (1, SEGMENTS)
    )
    return (
        f"The teacher itself is right in {low:.1f} % of the first tenth and in {high:.1f} % of the "
        "last: a gap of five points does not mean the same in both."
    )
