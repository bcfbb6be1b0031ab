"""Putting a report into a document."""

from __future__ import annotations

from pathlib import Path

from eakd.errors import UserError
from eakd.files import write_text


def insert_block(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in a file.

    Raises:
        UserError: the file does not hold both markers, once and in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (old.count(begin), old.count(end)) != (1, 1) or old.index(begin) > old.index(end):
        raise UserError(
            f"{path}: found no block {name!r}, allowed is one line {begin} and, after it, {end}"
        )
    before, rest = old.split(begin)
    write_text(path, f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end)[1]}")
