"""A table of the paper as cells: what to run for each, and what the paper printed there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

import yaml

from eakd.config import CONFIGS, base_method
from eakd.errors import UserError, check_choice
from eakd.training.hints import options

AXES = ("pair", "method", "variant", "metric")


@dataclass(frozen=True)
class Cell:
    """One place of a table; over seeds it holds several runs.

    Attributes:
        pair: ``TEACHER-STUDENT``.
        method: see `method_overrides`, or ``"teacher"``: the teacher itself, which is no run of its
            own (every distilled run of the pair records its metrics).
        variant: a setting of the table, ``""`` in a table without variants.
        overrides: the command line of the cell's runs, without data, protocol and seed.
        paper: what the paper printed, ``{metric: value}``; empty where it has no such cell.
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
        title: ``{data}`` in it stands for the data set, see `make_plan`.
        rows, columns: the axis (`AXES`) that is written down the side and along the top.
        metrics: names of those that the runs measure; higher is better.
        quantity, quantities: what sentences call a metric's value, and several: ``accuracy``.
        unit: of the metrics, ``%`` or a word; ``""`` for none.
        group: of ``distiller``, in which the table's methods are: ``language/``; mostly ``""``.
        gains: pairs ``(a, b)`` of methods or variants; the gain of ``a`` over ``b`` is reported.
        protocol, seeds: what is planned where nothing else is said.
        smoke_teacher: model keys of teachers that are too large for ``scale=smoke``.
    """

    name: str
    title: str
    data: str
    rows: str
    columns: str
    metrics: tuple[str, ...]
    quantity: str
    quantities: str
    unit: str
    group: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...]
    variants: tuple[str, ...]
    gains: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...]
    protocol: str
    seeds: tuple[int, ...]
    smoke_teacher: Mapping[str, Any]

    @property
    def in_paper(self) -> bool:
        """Whether the paper prints any of the cells."""
        return any(cell.paper for cell in self.cells)

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
    """What the paper prints in a cell, ``{metric: value}``; empty where it has no such cell."""
    numbers = paper_numbers()
    node: Any = numbers.get(table, {})
    for key in (pair, method, variant):
        if key:
            node = node.get(key, {}) if isinstance(node, dict) else {}
    return node if isinstance(node, dict) else {numbers["metric"]: node}


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
        methods: any of `method_overrides`, the same.

    Raises:
        UserError: an unknown name, with the valid ones.
    """
    settings: Mapping[str, Sequence[str]] = definition["variants"] or {"": []}
    group = f"{definition['group']}/" if definition.get("group") else ""
    wanted_pairs = _chosen("pairs", pairs, definition["pairs"], _further_pairs)
    wanted_methods = _chosen(
        "methods", methods, definition["methods"], lambda: _further_methods(group, settings)
    )
    wanted_variants = _chosen("variants", variants, list(settings))
    if "teacher" in definition["methods"] and "teacher" not in wanted_methods:
        wanted_methods = ["teacher", *wanted_methods]
    cells = []
    for pair, method, variant in product(wanted_pairs, wanted_methods, wanted_variants):
        overrides: tuple[str, ...] = ()
        if method != "teacher":
            words = pair_overrides(pair) + method_overrides(method, group)
            overrides = (*words, *settings[variant])
        paper = printed(definition["name"], pair, method, variant)
        cells.append(Cell(pair, method, variant, overrides, paper))
    added = [name for name in wanted_methods if name not in definition["methods"]]
    return Table(
        name=definition["name"],
        title=definition["title"],
        data=definition["data"],
        rows=definition["rows"],
        columns=definition["columns"],
        metrics=tuple(definition["metrics"]),
        quantity=definition.get("quantity", "value"),
        quantities=definition.get("quantities", "values"),
        unit=definition.get("unit", ""),
        group=group,
        pairs=tuple(wanted_pairs),
        methods=tuple(wanted_methods),
        variants=tuple(wanted_variants),
        gains=tuple(
            (a, b)
            for a, b in (*definition["gains"], *((name, base_method(name)) for name in added))
            if a != b
        ),
        cells=tuple(cells),
        protocol=definition.get("protocol", "authors"),
        seeds=tuple(definition.get("seeds", range(5))),
        smoke_teacher=definition.get("smoke_teacher") or {},
    )


def pair_overrides(pair: str) -> list[str]:
    """The overrides behind ``TEACHER-STUDENT``."""
    teacher, student = pair.split("-")
    return [f"teacher={teacher}", f"student={student}"]


def method_overrides(method: str, group: str = "") -> list[str]:
    """The overrides behind ``kd``, ``ea_kd`` or ``kd+matched``: a method under a weighting."""
    name, _, weighting = method.partition("+")
    return [f"distiller={group}{name}", *([f"weighting={weighting}"] if weighting else [])]


def _further_pairs() -> tuple[set[str], str]:
    models = options("student")
    return {f"{a}-{b}" for a, b in product(models, models)}, "or TEACHER-STUDENT of two models"


def _further_methods(group: str, variants: Mapping[str, Sequence[str]]) -> tuple[set[str], str]:
    names = options(f"distiller/{group}".rstrip("/"))
    if any(text.startswith("weighting=") for words in variants.values() for text in words):
        # A variant without a weighting means the uniform one, which no method may replace.
        names = [name for name in names if name == base_method(name)]
        return set(names), ", ".join(names)
    weighted = {"+".join(parts) for parts in product(names, options("weighting"))}
    return {*names, *weighted}, ", ".join([*names, "or METHOD+WEIGHTING such as kd+matched"])


def _chosen(
    key: str,
    wanted: Sequence[str] | str | None,
    known: Sequence[str],
    further: Callable[[], tuple[set[str], str]] = lambda: (set(), ""),
) -> list[str]:
    """``wanted`` in the order of ``known``, or all of ``known``; unknown names are refused.

    Args:
        further: names that are allowed too, and how a message calls them.
    """
    if wanted is None:
        return list(known)
    wanted = wanted if isinstance(wanted, list | tuple) else [wanted]
    wanted = list(dict.fromkeys(map(str, wanted)))
    if not wanted:
        raise UserError(f"{key}: found an empty list, allowed is null for {', '.join(known)}")
    for name in wanted:
        if name not in known:
            names, text = further()
            if name not in names:
                allowed = ", ".join(filter(None, [*known, text]))
                raise UserError(f"{key}: found {name!r}, allowed is one of {allowed}")
    return [n for n in known if n in wanted] + [n for n in wanted if n not in known]
