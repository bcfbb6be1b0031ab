"""How faithful students are to their teacher, and how well they know what they know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import log_softmax

from eakd.analysis.answers import SEGMENTS, Answers, segments
from eakd.analysis.calibration import calibrated, expected_calibration_error, fit_temperature
from eakd.analysis.calibration import reliability as reliability_of
from eakd.analysis.comparing import differences, seeds_text
from eakd.analysis.marks import display
from eakd.analysis.networks import Networks, first_with_teacher
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import corrected, over_seeds
from eakd.data.split import stratified
from eakd.errors import UserError, check_numbers
from eakd.reproduce.comparison import Difference

X = np.arange(1, SEGMENTS + 1, dtype=float)
BINS = (15, 10)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``(N,)`` bool: where two networks' logits ``(N, C)`` choose the same class."""
    return first.argmax(axis=1) == second.argmax(axis=1)


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    """``(N,)`` nats, KL(teacher ‖ student) of logits ``(N, C)`` softened by ``temperature``."""
    p, q = (log_softmax(x.astype(np.float64) / temperature, axis=1) for x in (teacher, student))
    return (np.exp(p) * (p - q)).sum(axis=1)


def fidelity(
    runs: Runs,
    *,
    output_root: str,
    temperatures: Sequence[float] = (1.0, 4.0),
    splits: Sequence[str] = ("train", "test"),
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Agreement with the teacher and divergence from it, by tenth of the teacher's entropy.

    Source: Stanton et al. 2021, "Does knowledge distillation really work?".

    Args:
        temperatures: of the divergence, which is not multiplied by their squares.

    Raises:
        UserError: a wrong setting, no teacher, or weights of which none can be opened.
    """
    check_numbers("temperatures", temperatures, above=0)
    networks = Networks(output_root, device, precision)
    first = first_with_teacher(runs)
    panels: dict[str, Panel] = {}
    numbers: dict[str, float] = {}
    tests: dict[str, Difference] = {}
    for split in splits:
        teacher = networks.teacher_answers(first, split)
        parts = segments(teacher.entropy(first.entropy_temperature))
        students = _students(runs, networks, split)
        quantities: dict[str, tuple[str, Callable[[Answers], np.ndarray]]] = {
            "agreement": (
                "same answer as the teacher (%)",
                lambda a, t=teacher: 100.0 * agreement(t.logits, a.logits),
            )
        }
        for temperature in temperatures:
            quantities[f"kl{temperature:g}"] = (
                f"KL from the teacher at τ = {temperature:g} (nats)",
                lambda a, t=teacher, at=temperature: divergence(t.logits, a.logits, at),
            )
        for quantity, (label, of) in quantities.items():
            values = {n: {s: of(a) for s, a in seeds.items()} for n, seeds in students.items()}
            series = tuple(
                over_seeds(name, X, {seed: _by(v, parts) for seed, v in seeds.items()})
                for name, seeds in values.items()
            )
            by = "tenth of the samples by teacher entropy"
            panels[f"{quantity}.{split}"] = Panel(title=split, x=by, y=label, series=series)
            means = {n: {s: float(v.mean()) for s, v in x.items()} for n, x in values.items()}
            numbers |= {f"{quantity}.{split}.{n}": _mean(x) for n, x in means.items()}
            tests |= differences(means, f"{quantity}.{split}")
    agreed = [
        f"{display(name)} {numbers[f'agreement.{split}.{name}']:.1f} % ({split})"
        for split in splits
        for name in runs.names
        if f"agreement.{split}.{name}" in numbers
    ]
    return Result(
        panels=panels,
        columns=1 + len(temperatures),
        numbers=numbers,
        tests=corrected(tests),
        shows=f"Mean agreement with the teacher: {', '.join(agreed)}.",
        not_shows="It does not show that a student which agrees more is a better one; "
        f"{_counts(students)}.",
        notes=(
            "Images without augmentation; 95 % interval over seeds; p-values of paired tests after "
            "Holm's correction over all of them.",
            *networks.notes,
        ),
        about=networks.about(runs, " and ".join(splits), teacher)
        | {"entropy_temperature": first.entropy_temperature},
    )


def calibration(
    runs: Runs,
    *,
    output_root: str,
    bins: Sequence[int] = BINS,
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Confidence against accuracy, before and after one temperature for all samples.

    The temperature is fitted on the split ``val``; without one, on half of the test images, and
    everything is then measured on the other half.

    Args:
        bins: of the calibration error, one number each; the diagram shows the first.

    Raises:
        UserError: a wrong setting, no teacher, or weights of which none can be opened.
    """
    bins = check_numbers("bins", bins, at_least=1, integer=True)
    networks = Networks(output_root, device, precision)
    first = first_with_teacher(runs)
    held_out = networks.has_split(first, "val")

    def halves(ask: Callable[[Run, str], Answers], run: Run) -> tuple[Answers, ...]:
        """What the temperature is fitted on, and what is measured."""
        test = ask(run, "test")
        if held_out:
            return ask(run, "val"), test
        fitted, measured = stratified(test.labels, lambda count: count // 2, 0)
        return test.only(fitted), test.only(measured)

    pairs: dict[str, dict[int, tuple[Answers, ...]]] = {
        "teacher": {0: halves(networks.teacher_answers, first)}
    }
    for run in runs:
        found = networks.attempt(halves, networks.answers, run)
        if found is not None:
            pairs.setdefault(run.method, {})[run.seed] = found
    if len(pairs) == 1:
        raise UserError(networks.notes[0])
    numbers: dict[str, float] = {}
    series: dict[str, list[Series]] = {"before": [], "after": []}
    errors: dict[str, dict[str, dict[int, float]]] = {}
    for name, seeds in pairs.items():
        curves: dict[str, list[np.ndarray]] = {"before": [], "after": []}
        temperatures = []
        for seed, (fitted, measured) in seeds.items():
            temperature = fit_temperature(fitted.logits, fitted.labels)
            temperatures.append(temperature)
            for when, divisor in (("before", 1.0), ("after", temperature)):
                confidence, right = calibrated(measured.logits, measured.labels, divisor)
                curves[when].append(reliability_of(confidence, right, bins[0]))
                for count in bins:
                    error = expected_calibration_error(confidence, right, count)
                    errors.setdefault(f"ece{count}.{when}", {}).setdefault(name, {})[seed] = error
        numbers[f"temperature.{name}"] = float(np.mean(temperatures))
        for when, curve in curves.items():
            with np.errstate(invalid="ignore"):
                sums = np.sum(curve, axis=0)
                share, x, y = sums[0] > 0, sums[1] / sums[0], sums[2] / sums[0]
            style = "reference" if name == "teacher" else "line"
            series[when].append(Series(name, x[share], y[share], style=style))
    for key, values in errors.items():
        numbers |= {f"{key}.{name}": _mean(x) for name, x in values.items()}
    tests: dict[str, Difference] = {}
    for when in ("before", "after"):
        key = f"ece{bins[0]}.{when}"
        tests |= differences({n: x for n, x in errors[key].items() if n != "teacher"}, key)
    main = f"ece{bins[0]}"
    texts = [
        f"{display(name)} {numbers[f'{main}.before.{name}']:.3f} → "
        f"{numbers[f'{main}.after.{name}']:.3f} (T = {numbers[f'temperature.{name}']:.2f})"
        for name in pairs
    ]
    where = "the split val" if held_out else "one half of the test images, measured on the other"
    diagonal = Series("calibrated", np.array([0.0, 1.0]), np.array([0.0, 1.0]), style="reference")
    return Result(
        panels={
            when: Panel(
                title=f"{when} temperature scaling",
                x="confidence",
                y="accuracy",
                series=(*each, diagonal),
                equal=True,
            )
            for when, each in series.items()
        },
        columns=2,
        numbers=numbers,
        tests=corrected(tests),
        shows=f"Calibration error with {bins[0]} bins, before and after: {', '.join(texts)}.",
        not_shows="It does not show how well single classes are calibrated; the error depends on "
        f"the number of bins ({' and '.join(map(str, bins))} are in the numbers).",
        notes=(f"One temperature a network, fitted on {where}.", *networks.notes),
        about=networks.about(runs, "test", pairs["teacher"][0][1]),
    )


def _students(runs: Runs, networks: Networks, split: str) -> dict[str, dict[int, Answers]]:
    """Method → seed → answers.

    Raises:
        UserError: none can be opened.
    """
    found: dict[str, dict[int, Answers]] = {}
    for run in runs:
        answers = networks.attempt(networks.answers, run, split)
        if answers is not None:
            found.setdefault(run.method, {})[run.seed] = answers
    if not found:
        raise UserError(networks.notes[0])
    return found


def _by(values: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values[part].mean() for part in parts])


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean([*values.values()]))


def _counts(students: Mapping[str, Mapping[int, Answers]]) -> str:
    return seeds_text(min(map(len, students.values())))
