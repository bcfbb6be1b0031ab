"""Language models: entropy, weight and divergence by a token's position, and by answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eakd.analysis.answers import SEGMENTS, segments
from eakd.analysis.comparing import differences
from eakd.analysis.marks import display
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Run, Runs
from eakd.analysis.seeds import BANDS, corrected, over_seeds
from eakd.analysis.texts import Texts, TokenValues, answer_weights, teacher_folder, token_weights
from eakd.errors import UserError, check_choice, check_number
from eakd.language.hub import directory_digest
from eakd.language.loss import Options

BINS = ("doubling", "tenths")
LABELS = {
    "position.entropy": "entropy of a token (nats)",
    "position.weight": "weight of a token",
    "position.kl": "KL from the teacher (nats a token)",
    "example.weight": "weight of an answer",
    "example.kl": "KL from the teacher (nats a token)",
    "example.accuracy": "foretold tokens (%)",
}
# What a panel's lines are of: {key of LABELS: {method: {seed: (bins,)}}}.
Curves = dict[str, dict[str, dict[int, np.ndarray]]]


def tokens(
    runs: Runs,
    *,
    output_root: str,
    select: str = "best",
    split: str = "test",
    bins: str = "doubling",
    temperature: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Entropies, EA's weight and the divergence of answer tokens, given all that is before them.

    By the token's position in its answer, and by answer, in ten equal parts by the mean of the
    teacher's entropy over its tokens.

    Args:
        select: whose weights: of the ``best`` epoch, or the ``last``.
        bins: of positions: ``doubling`` (1, 2-3, 4-7, …), or ``tenths`` of each answer.
        temperature: τ of the divergence, which is not multiplied by its square.

    Raises:
        UserError: a wrong setting, runs that are of no texts or have no teacher, runs of several
            teachers, data or τ′, or weights of which none can be opened.
    """
    check_choice("select", select, ("best", "last"))
    check_choice("bins", bins, BINS)
    check_number("temperature", temperature, above=0)
    options = Options("forward_kl", float(temperature), temperature_of(runs))
    texts = Texts(output_root, device, precision)
    check_alike(runs)
    teacher = texts.teacher_values(runs[0], split, options)
    place, ticks = positions(teacher, bins)
    parts = segments(teacher.means(teacher.student_entropy))
    curves: Curves = {key: {} for key in LABELS}
    totals: dict[str, dict[str, dict[int, float]]] = {"kl": {}, "kl_high": {}, "accuracy": {}}
    used: list[Run] = []
    for run in runs:
        values = texts.attempt(texts.values, run, split, select, options)
        if values is None:
            continue
        used.append(run)
        found = measured(run, values, place, parts)
        for key, each in found.items():
            curves[key].setdefault(run.method, {})[run.seed] = each
        for key, total in (
            ("kl", values.divergence.mean()),
            ("kl_high", found["example.kl"][-1]),
            ("accuracy", 100 * values.right.mean()),
        ):
            totals[key].setdefault(run.method, {})[run.seed] = float(total)
    if not used:
        raise UserError(texts.notes[0])
    references = {
        "position.entropy": binned(teacher.student_entropy, place),
        "example.accuracy": 100 * by_parts(teacher.means(teacher.right), parts),
    }
    numbers = {
        f"{key}.{name}.{number}": float(value)
        for key, by_name in curves.items()
        for name, seeds in by_name.items()
        for number, value in enumerate(np.mean([*seeds.values()], axis=0), 1)
    }
    for key, each in references.items():
        numbers |= {f"{key}.teacher.{number}": float(v) for number, v in enumerate(each, 1)}
    numbers |= {
        f"{key}.{name}": float(np.mean([*seeds.values()]))
        for key, by_name in totals.items()
        for name, seeds in by_name.items()
    }
    tests = {}
    for key, by_name in totals.items():
        tests |= differences(by_name, key)
    last = len(np.unique(teacher.row[place == place.max()]))
    count = len(teacher.lengths)
    kept = list(curves["example.kl"])
    return Result(
        panels={key: _panel(key, curves[key], ticks, bins, references.get(key)) for key in LABELS},
        columns=3,
        numbers=numbers,
        tests=corrected(tests),
        shows=_shows(numbers, kept),
        not_shows=f"All of it is of the written answers, not of what a student would write itself; "
        f"and positions are not of the same answers: the last tokens are of {last} of {count:,}.",
        notes=(
            _said(bins, temperature, select),
            f"{len(teacher.row):,} tokens of {count:,} answers; {BANDS}; p-values of paired tests "
            "after Holm's correction over all of them.",
            *texts.notes,
        ),
        about=texts.described(used, split, count)
        | {"entropy_temperature": options.entropy_temperature},
    )


def temperature_of(runs: Runs) -> float:
    """The one τ′ of all entropies: of the runs that weigh by it, if any do.

    Raises:
        UserError: they have several.
    """
    weighing = [run for run in runs if isinstance(run.config.get("weighting"), Mapping)]
    found = sorted({run.entropy_temperature for run in weighing or runs[:1]})
    if len(found) > 1:
        raise UserError(
            f"runs: found τ′ {' and '.join(f'{each:g}' for each in found)}, allowed is one; narrow "
            "runs"
        )
    return found[0]


def check_alike(runs: Runs) -> None:
    """Raise `UserError` unless all runs learned from one teacher, on the same rows."""
    teachers = {directory_digest(teacher_folder(run)) for run in runs}
    data = {run.summary.get("data_fingerprint") for run in runs}
    for what, found in (("teachers", teachers), ("sets of rows", data)):
        if len(found) > 1:
            raise UserError(f"runs: found {len(found)} {what}, allowed is one; narrow runs")


def positions(values: TokenValues, bins: str) -> tuple[np.ndarray, dict[float, str]]:
    """``(M,)`` int64, the bin of each token's position, from 0; and what bins are called.

    Returns:
        Names by the bins' places on the axis, from 1; bins that double are called by their first
        position.
    """
    if bins == "tenths":
        # In integers, so that no rounding moves a token: the j-th of n lies in tenth ⌊10 (j-1)/n⌋.
        place = SEGMENTS * (values.position - 1) // values.lengths[values.row]
        return place, {float(each): str(each) for each in range(1, SEGMENTS + 1)}
    place = np.frexp(values.position)[1].astype(np.int64) - 1  # ⌊log₂⌋ without rounding
    return place, {float(each + 1): str(2**each) for each in range(int(place.max()) + 1)}


def measured(
    run: Run, values: TokenValues, place: np.ndarray, parts: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """One run's curves, by the keys of `LABELS`."""
    return {
        "position.entropy": binned(values.student_entropy, place),
        "position.weight": binned(token_weights(run, values), place),
        "position.kl": binned(values.divergence, place),
        "example.weight": by_parts(answer_weights(run, values), parts),
        "example.kl": by_parts(values.means(values.divergence), parts),
        "example.accuracy": 100 * by_parts(values.means(values.right), parts),
    }


def binned(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Means of ``(M,)`` values over the tokens of each bin, NaN of an empty one."""
    count = np.bincount(place)
    with np.errstate(invalid="ignore"):
        return np.bincount(place, values) / count


def by_parts(values: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """Means of ``(N,)`` values over the answers of each part."""
    return np.array([values[part].mean() for part in parts])


def _panel(
    key: str,
    by_name: Mapping[str, Mapping[int, np.ndarray]],
    ticks: dict[float, str],
    bins: str,
    reference: np.ndarray | None,
) -> Panel:
    by_position = key.startswith("position")
    names = ticks if by_position else {float(x): str(x) for x in range(1, SEGMENTS + 1)}
    x = np.array([*names])
    series = [over_seeds(name, x, seeds) for name, seeds in by_name.items()]
    if reference is not None:
        series.append(Series("teacher", x, reference, style="reference"))
    position = {"doubling": "position in the answer, from", "tenths": "tenth of the answer"}[bins]
    return Panel(
        x=position if by_position else "tenth of the answers by teacher entropy",
        y=LABELS[key],
        series=tuple(series),
        x_ticks=names,
    )


def _said(bins: str, temperature: float, select: str) -> str:
    how = {
        "doubling": "Positions in bins that double (1, 2-3, 4-7, …), from the answer's first token",
        "tenths": "Positions in ten equal parts of each answer",
    }[bins]
    return (
        f"{how}, means over tokens; answers in ten equal parts by the mean of the teacher's "
        "entropy over their tokens, the lowest first, means over answers of the means over their "
        f"tokens. Weight: EA's where a method has none; of single tokens as if each had its own, "
        f"of answers as the run's distiller.level has it. KL(teacher ‖ student) at τ = "
        f"{temperature:g}; weights of the {select} epoch."
    )


def _shows(numbers: Mapping[str, float], names: list[str]) -> str:
    texts = [
        f"{display(name)} {numbers[f'example.weight.{name}.1']:.3g} → "
        f"{numbers[f'example.weight.{name}.{SEGMENTS}']:.3g} and "
        f"{numbers[f'example.kl.{name}.1']:.3g} → {numbers[f'example.kl.{name}.{SEGMENTS}']:.3g}"
        for name in names
    ]
    return (
        "Weight and KL (nats a token), from the tenth of the answers with the lowest teacher "
        f"entropy to that with the highest: {'; '.join(texts)}."
    )
