"""Texts of others, such as names and error messages, made harmless for each format."""

from __future__ import annotations

import html
import re
from typing import Any


def printable(text: object) -> str:
    """Control characters, ANSI escapes and marks that turn the direction of a text, spelt out.

    Line breaks stay. Whatever a terminal would obey, and XML refuses, becomes ``\\x1b`` and alike.
    """
    return "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def one_line(text: object) -> str:
    """`printable`, without the line breaks that an error message or a name may hold."""
    return printable(" ".join(str(text).split()))


def markdown_text(text: str) -> str:
    """Escaped so that it shows as it is, also within a table; ``ea_kd`` needs nothing."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    # Brackets make something only before what follows them in links, notes and definitions.
    special = r"[\\`*|~$]|\](?=[(\[:])|\[(?=\^)|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, r"\\\g<0>", text).replace("\n", "<br>")


def markdown_item(text: str) -> str:
    """`markdown_text` as an item of a list, where more than that means something at the start."""
    text = re.sub(r"^[#>+=-]|^\[(?=[ xX]\])", r"\\\g<0>", markdown_text(text))
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


def html_text(text: object) -> str:
    """Escaped for HTML and SVG, within quotes too."""
    return html.escape(printable(text))


def csv_cell(value: Any) -> Any:
    """A text that a spreadsheet would compute gets an apostrophe; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    dangerous = re.match(r"[=+\-@\t\r\n＝＋－＠]", value)
    return printable(f"'{value}" if dangerous else value)
