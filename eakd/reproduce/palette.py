"""How methods look in every chart: one colour for a method and its EA form, which is filled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eakd.config import EA, base_method

# Told apart with every common colour vision, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#7b4fa3")


class Look(NamedTuple):
    """A colour, ``#rrggbb``, and whether markers are filled with it."""

    colour: str
    filled: bool


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The look of each method or variant; a colour returns after eight."""
    plain = {name: _plain(name) for name in names}
    colours = list(dict.fromkeys(plain.values()))
    return {
        name: Look(
            colour=COLOURS[colours.index(plain[name]) % len(COLOURS)],
            filled=name != plain[name] or EA + name not in names,
        )
        for name in names
    }


def _plain(name: str) -> str:
    """What shares a colour. Of three forms of a method in one colour, two would look the same."""
    return name if "+" in name else base_method(name)
