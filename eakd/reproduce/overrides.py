"""The overrides that all runs of a table get: what they may set, and what teachers keep of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from eakd.errors import UserError
from eakd.reproduce.table import Table

# What decides a run's cell, seed or place → the key of reproduce that does.
INSTEAD = {
    **dict.fromkeys(("distiller", "distiller.name", "distiller._target_"), "methods=[…]"),
    **dict.fromkeys(("teacher", "teacher.name", "teacher._target_"), "pairs=[TEACHER-STUDENT]"),
    **dict.fromkeys(("student", "student.name", "student._target_"), "pairs=[TEACHER-STUDENT]"),
    **dict.fromkeys(
        ("weighting", "weighting.kind", "weighting._target_"),
        "variants=[…], or methods=[ea_…] in a table without variants",
    ),
    "seed": "seeds=[…]",
    "data": "another table=, a file of configs/tables",
    "recipe": "protocol=…",
    "experiment": "table=…, with pairs=[…] and methods=[…]",
    "run_dir": "output_root=… of reproduce itself",
    "output_root": "output_root=… of reproduce itself",
    "checkpoint_root": "checkpoint_root=… of reproduce itself",
}


def check_overrides(overrides: Any, table: Table) -> list[str]:
    """``overrides`` as a list.

    Raises:
        UserError: no list of texts ``KEY=VALUE`` with one value each, or a key that the table's
            cells, its data set or another key of ``configs/reproduce.yaml`` decides.
    """
    of_cells = {read(text).key_or_group for cell in table.cells for text in cell.overrides}
    return check_each(overrides, dict.fromkeys(of_cells, "variants=[…]") | INSTEAD)


def check_each(overrides: Any, instead: Mapping[str, str]) -> list[str]:
    """``overrides`` as a list; ``instead`` has the keys that are set elsewhere, and where.

    Raises:
        UserError: no list of texts ``KEY=VALUE`` with one value each, or one of those keys.
    """
    if not isinstance(overrides, list | tuple):
        raise UserError(
            f"overrides: found {overrides!r}, allowed is a list: 'overrides=[\"KEY=VALUE\"]'"
        )
    for text in overrides:
        if not isinstance(text, str):
            raise UserError(f'overrides: found {text!r}, allowed is a quoted text: "KEY=VALUE"')
        override = read(text)
        if override.is_sweep_override():
            raise UserError(
                f"overrides: found several values in {text!r}, allowed is one, for all runs alike"
            )
        key = override.key_or_group
        if key in instead:
            raise UserError(
                f"overrides: found {text!r}, but these runs get {key} from elsewhere, allowed is "
                f"{instead[key]}"
            )
    return list(overrides)


def of_teacher(overrides: Sequence[str]) -> Iterator[str]:
    """What remains for the run that trains a teacher: it is the student there, without a method."""
    for text in overrides:
        role, _, key = read(text).key_or_group.partition(".")
        if role == "teacher":
            if key not in ("checkpoint", "table"):
                yield text.replace("teacher.", "student.", 1)
        elif role not in ("student", "distiller", "weighting"):
            yield text


def read(text: str) -> Override:
    """The key, without prefix and package, and the value of one override.

    Raises:
        UserError: it is none.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"overrides: found {text!r}, allowed is KEY=VALUE ({reason})") from error
