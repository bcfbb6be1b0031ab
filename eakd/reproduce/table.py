"""A table of the paper as cells: what to run for each, and what the paper printed there."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import chain, product
from pathlib import Path
from typing import Any

import yaml

from eakd.composing import options
from eakd.config import base_method
from eakd.errors import UserError, check_choice, check_number, shortened
from eakd.places import config_folders, read_yaml

AXES = ("pair", "method", "variant", "metric")

# Of a table's file: what must be texts, what must be lists of them, and what may be left out.
TEXTS = (
    *("name", "title", "data", "rows", "columns", "quantity", "quantities", "unit", "group"),
    *("evaluation", "select"),
)
LISTS = ("metrics", "pairs", "methods")
DEFAULTS: Mapping[str, Any] = {
    "rows": "method",
    "columns": "pair",
    "quantity": "value",
    "quantities": "values",
    "unit": "",
    "group": "",
    "evaluation": "",
    "select": "last",
    "variants": {},
    "gains": [],
    "smoke_pairs": [],
    "protocol": "authors",
    "seeds": [0, 1, 2, 3, 4],
}
OF_ALL = ("data", "recipe", "seed")  # what no variant sets


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
    """A table, narrowed to what was asked for.

    Attributes:
        title: ``{data}`` in it stands for the data set, see `make_plan`.
        rows, columns: the axis (`AXES`) that is written down the side and along the top.
        metrics: names of those that the runs measure; higher is better.
        quantity, quantities: what sentences call a metric's value, and several: ``accuracy``.
        unit: of the metrics, ``%`` or a word; ``""`` for none.
        group: of ``distiller``, in which the table's methods are: ``language/``; mostly ``""``.
        gains: pairs ``(a, b)`` of methods or variants; the gain of ``a`` over ``b`` is reported.
        evaluation: of ``configs/evaluation``, by which finished runs are evaluated on test sets
            whose results are the metrics; ``""`` where training measures them.
        protocol, seeds, select: what is planned and shown where nothing else is said.
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
    evaluation: str
    select: str

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
    """Every ``table=``, those of a ``--config-dir`` included."""
    return sorted(_table_files())


def _table_files() -> dict[str, Path]:
    folders = reversed(config_folders())  # ours wins, as in every group
    return {path.stem: path for folder in folders for path in (folder / "tables").glob("*.yaml")}


def load_table(name: object) -> dict[str, Any]:
    """The file that defines a table, in ``configs/tables`` or in the same folder of one's own.

    Raises:
        UserError: no such table, with the ones there are; a key with a wrong value, or one missing.
    """
    check_choice("table", str(name), table_names())
    path = _table_files()[str(name)]
    definition = {"name": path.stem, "title": path.stem, **DEFAULTS, **read_yaml(path)}
    try:
        check_definition(definition, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return definition


def check_definition(definition: Mapping[str, Any], name: str) -> None:
    """Refuse a mapping that `make_table` could not use.

    Args:
        name: that it must have.

    Raises:
        UserError: a key with a wrong value, or one missing.
    """
    for key in definition:
        check_choice("key", key, dict.fromkeys((*TEXTS, *LISTS, *DEFAULTS)))
    for key in TEXTS:
        if not isinstance(definition.get(key), str):
            raise UserError(f"{key}: found {shortened(definition.get(key))}, allowed is a text")
    for key in LISTS:
        if not _texts(definition.get(key)) or not definition[key]:
            raise UserError(
                f"{key}: found {shortened(definition.get(key))}, allowed is a list of texts"
            )
    check_choice("name", definition["name"], [name])  # reports are called by it
    check_choice("select", definition["select"], ("last", "best"))
    check_choice("evaluation", definition["evaluation"], ("", *options("evaluation")))
    for key, other in (("rows", "columns"), ("columns", "rows")):
        check_choice(key, definition[key], [axis for axis in AXES if axis != definition[other]])
    for key in ("pairs", "smoke_pairs"):
        pairs = definition[key]
        for pair in pairs if isinstance(pairs, list) else [pairs]:
            if not isinstance(pair, str) or pair.count("-") != 1:
                raise UserError(f"{key}: found {shortened(pair)}, allowed is TEACHER-STUDENT")
    for seed in definition["seeds"] if isinstance(definition["seeds"], list) else [None]:
        check_number("seeds", seed, at_least=0, integer=True)
    variants, gains = definition["variants"], definition["gains"]
    if not isinstance(variants, dict) or not all(map(_texts, variants.values())):
        raise UserError(
            f"variants: found {shortened(variants)}, allowed are lines NAME: [KEY=VALUE, …]"
        )
    for text in chain(*variants.values()):
        key, equals, _ = text.partition("=")
        if not key or not equals or key.lstrip("+~") in OF_ALL:
            raise UserError(
                f"variants: found {shortened(text)}, allowed is KEY=VALUE, KEY being none of "
                f"{', '.join(OF_ALL)}, which all runs of a table share"
            )
    for gain in gains if isinstance(gains, list) else [gains]:
        among = [names for names in (definition["methods"], variants) if _all_in(gain, names)]
        if not among or len(gain) != 2:
            raise UserError(
                f"gains: found {shortened(gain)}, allowed is a list of pairs [A, B] of "
                f"{', '.join([*definition['methods'], *variants])}"
            )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _all_in(names: object, allowed: Container[str]) -> bool:
    return _texts(names) and all(name in allowed for name in names)


def make_table(
    definition: Mapping[str, Any],
    pairs: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
) -> Table:
    """A table from what `load_table` found, narrowed to some pairs, methods and variants.

    Args:
        pairs: any ``TEACHER-STUDENT`` of two models, also one that the paper does not have.
        methods: any of `method_overrides`, the same.

    Raises:
        UserError: an unknown name, with the valid ones.
    """
    settings: Mapping[str, Sequence[str]] = definition["variants"] or {"": []}
    group = f"{definition['group']}/" if definition["group"] else ""
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
        quantity=definition["quantity"],
        quantities=definition["quantities"],
        unit=definition["unit"],
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
        protocol=definition["protocol"],
        seeds=tuple(definition["seeds"]),
        evaluation=definition["evaluation"],
        select=definition["select"],
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
