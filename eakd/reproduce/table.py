"""A table of the paper as cells: what to run for each, and what the paper printed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

import yaml

from eakd.config import CONFIGS
from eakd.errors import UserError, check_choice

AXES = ("pair", "method", "variant", "metric")


@dataclass(frozen=True)
class Cell:
    """One place of a table; over seeds it holds several runs.

    Attributes:
        pair: ``TEACHER-STUDENT``.
        method: a config of ``configs/distiller``, or ``"teacher"``: the teacher itself, which is no
            run of its own (every distilled run of the pair records its accuracy).
        variant: a setting of the table, ``""`` in a table without variants.
        overrides: the command line of the cell's runs, without data, protocol and seed.
        paper: what the paper printed, ``{metric: percent}``; empty where it has no such cell.
    """

    pair: str
    method: str
    variant: str
    overrides: tuple[str, ...] = field(compare=False)
    paper: Mapping[str, float] = field(compare=False, hash=False)

    @property
    def label(self) -> str:
        """``ea_kd τ′=2, resnet20-resnet8``."""
        return f"{self.method} {self.variant}".strip() + f", {self.pair}"


@dataclass(frozen=True)
class Table:
    """A table of ``configs/tables``, narrowed to what was asked for.

    Attributes:
        rows, columns: the axis (`AXES`) that is written down the side and along the top.
        metrics: of ``top1`` and ``top5``.
        gains: pairs ``(a, b)`` of methods or variants; the gain of ``a`` over ``b`` is reported.
        smoke_teacher: model keys of teachers that are too large for ``scale=smoke``.
    """

    name: str
    title: str
    data: str
    rows: str
    columns: str
    metrics: tuple[str, ...]
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    gains: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    smoke_teacher: Mapping[str, Any]

    def at(self, **where: str) -> list[Cell]:
        """The cells with these values of ``pair``, ``method``, ``variant``."""
        return [
            cell
            for cell in self.cells
            if all(getattr(cell, axis) == value for axis, value in where.items())
        ]

    def compared(self) -> list[tuple[Cell, Cell]]:
        """``(cell, the cell it is compared with)`` for each of `gains`, at the same other axes."""
        found = []
        for a, b in self.gains:
            axis = "variant" if a in self.variants else "method"
            for cell in self.at(**{axis: a}):
                rest = {k: getattr(cell, k) for k in ("pair", "method", "variant") if k != axis}
                found += [(cell, other) for other in self.at(**rest, **{axis: b})]
        return found


@cache
def paper_numbers() -> dict[str, Any]:
    """``paper.yaml``: every number that the paper's tables print."""
    text = files("eakd.reproduce").joinpath("paper.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def printed(table: str, pair: str, method: str, variant: str = "") -> dict[str, float]:
    """What the paper prints in a cell, ``{metric: percent}``; empty where it has no such cell."""
    node: Any = paper_numbers().get(table, {})
    for key in (pair, method, variant):
        if key:
            node = node.get(key, {}) if isinstance(node, dict) else {}
    return node if isinstance(node, dict) else {"top1": node}


def table_names() -> list[str]:
    """Every ``table=``."""
    return sorted(path.stem for path in (CONFIGS / "tables").glob("*.yaml"))


def load_table(name: object) -> dict[str, Any]:
    """The file of ``configs/tables`` that defines a table.

    Raises:
        UserError: no such table, with the ones there are.
    """
    check_choice("table", str(name), table_names())
    return yaml.safe_load((CONFIGS / "tables" / f"{name}.yaml").read_text(encoding="utf-8"))


def make_table(
    definition: Mapping[str, Any],
    pairs: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
) -> Table:
    """A table from a file of ``configs/tables``, narrowed to some pairs, methods and variants.

    Args:
        pairs: any ``TEACHER-STUDENT`` of two models, also one that the paper does not have.

    Raises:
        UserError: an unknown name, with the valid ones.
    """
    settings: Mapping[str, Sequence[str]] = definition["variants"] or {"": []}
    wanted_pairs = _chosen("pairs", pairs, definition["pairs"], or_else=_is_pair)
    wanted_methods = _chosen("methods", methods, definition["methods"])
    wanted_variants = _chosen("variants", variants, list(settings))
    if "teacher" in definition["methods"] and "teacher" not in wanted_methods:
        wanted_methods = ["teacher", *wanted_methods]
    cells = []
    for pair, method, variant in product(wanted_pairs, wanted_methods, wanted_variants):
        teacher, student = pair.split("-")
        overrides = [f"teacher={teacher}", f"student={student}", f"distiller={method}"]
        overrides += settings[variant]
        paper = printed(definition["name"], pair, method, variant)
        cells.append(
            Cell(pair, method, variant, () if method == "teacher" else tuple(overrides), paper)
        )
    return Table(
        name=definition["name"],
        title=definition["title"],
        data=definition["data"],
        rows=definition["rows"],
        columns=definition["columns"],
        metrics=tuple(definition["metrics"]),
        pairs=tuple(wanted_pairs),
        methods=tuple(wanted_methods),
        variants=tuple(wanted_variants),
        gains=tuple((a, b) for a, b in definition["gains"]),
        cells=tuple(cells),
        smoke_teacher=definition.get("smoke_teacher") or {},
    )


def model_names() -> list[str]:
    """Every ``teacher=`` and ``student=``."""
    return sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def _is_pair(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 2 and set(parts) <= set(model_names())


def _chosen(
    key: str,
    wanted: Sequence[str] | str | None,
    known: Sequence[str],
    or_else: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """``wanted`` in the order of ``known``, or all of ``known``; unknown names are refused."""
    if wanted is None:
        return list(known)
    wanted = list(dict.fromkeys([wanted] if isinstance(wanted, str) else map(str, wanted)))
    if not wanted:
        raise UserError(f"{key}: found an empty list, allowed is null for {', '.join(known)}")
    for name in wanted:
        if name not in known and not or_else(name):
            more = ", or TEACHER-STUDENT of two models" if key == "pairs" else ""
            raise UserError(f"{key}: found {name!r}, allowed is one of {', '.join(known)}{more}")
    return [n for n in known if n in wanted] + [n for n in wanted if n not in known]
