"""The paper's words beside our numbers.

A statement is one line of a figure's file:

    {text: …, paper: 0.31, ours: variance.dkd}          two numbers side by side
    {text: …, smaller: [variance.ea_dkd, variance.dkd], test: bootstrap.ea_dkd}
    {text: …, larger: [slope.kd, slope.ea_kd], test: slope.ea_kd}
    {text: …, positive: slope.kd}

Names are keys of `Result.numbers`, ``test`` is one of `Result.tests`. No expressions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eakd.analysis.result import Result

COMPARED = {"smaller": "<", "larger": ">"}


class Line(NamedTuple):
    """A row of the table, as text: what the paper says and prints, ours, whether it holds."""

    text: str
    paper: str
    ours: str
    holds: str


def lines(statements: Sequence[Mapping[str, Any]], result: Result) -> list[Line]:
    """A row for each statement; what the result does not have is ``–``."""
    return [_line(each, result) for each in statements]


def _line(statement: Mapping[str, Any], result: Result) -> Line:
    paper = statement.get("paper")
    printed = "" if paper is None else str(paper)
    for relation, sign in COMPARED.items():
        if relation in statement:
            values = [result.numbers.get(name, math.nan) for name in statement[relation]]
            ours = f" {sign} ".join(map(_text, values))
            true = values[0] < values[1] if sign == "<" else values[0] > values[1]
            return Line(statement["text"], printed, ours, _holds(true, values, statement, result))
    if "positive" in statement:
        value = result.numbers.get(statement["positive"], math.nan)
        held = _holds(value > 0, [value], statement, result)
        return Line(statement["text"], printed, _text(value), held)
    value = result.numbers.get(statement.get("ours", ""), math.nan)
    return Line(statement["text"], printed, _text(value), _magnitude(paper, value))


def _holds(
    true: bool, values: Sequence[float], statement: Mapping[str, Any], result: Result
) -> str:
    """``yes``, ``no`` or ``–``, with the p of a test, which may say that it is noise."""
    if not all(map(math.isfinite, values)):
        return "–"
    p = result.tests.get(statement.get("test", ""))
    text = "yes" if true else "no"
    if p is None:
        return f"{text} (not tested)" if "test" in statement else text
    return f"{text} (p = {p:.2g})" if p < 0.05 else f"{text}, but within noise (p = {p:.2g})"


def _magnitude(paper: Any, value: float) -> str:
    """What two numbers have in common that were not made in exactly the same way."""
    if not isinstance(paper, int | float) or not math.isfinite(value):
        return "–"
    if paper == 0 or value == 0 or (paper > 0) != (value > 0):
        return "same" if paper == value else "other"
    return "same order" if abs(math.log10(value / paper)) <= 0.5 else "other"


def _text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"
