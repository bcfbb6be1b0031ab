"""How every picture looks, and pictures as files: the same data, the same bytes.

matplotlib is optional (``pip install 'eakd[plots]'``) and imported only where something is drawn.
No setting of it is changed outside `style`, and none of the user's own is taken over.
"""

from __future__ import annotations

import html
import io
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eakd.errors import UserError, check_choice, check_number
from eakd.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
WIDTHS = {"single": 3.25, "double": 6.75}  # inches, of a column and of two
INK, SOFT, LINE = "#1a1a1a", "#666666", "#dddddd"

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "text.parse_math": False,  # names and messages are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titley": 1.0,  # else every drawing looks for ticks above the panel, of which we have none
    "axes.labelpad": 3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.8,
    "patch.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.borderaxespad": 0.2,
    "image.cmap": "viridis",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "eakd",
}
# What would make two files of one picture differ.
TIMELESS: dict[str, dict[str, None]] = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def has_matplotlib() -> bool:
    """Whether pictures can be drawn."""
    return find_spec("matplotlib") is not None


@contextmanager
def style() -> Iterator[None]:
    """Everything inside is drawn in our style, whatever the user's own settings are.

    Raises:
        UserError: matplotlib is missing.
    """
    if not has_matplotlib():
        raise UserError("needs matplotlib: pip install 'eakd[plots]'")
    import matplotlib.style

    fonts = logging.getLogger("fontTools")  # tells of every glyph that it puts into a PDF
    level = fonts.level
    fonts.setLevel(logging.WARNING)
    try:
        with matplotlib.style.context(["default", STYLE]):
            yield
    finally:
        fonts.setLevel(level)


def new_figure(width: float, height: float) -> Figure:
    """An empty picture, in inches; it belongs to no window and no backend."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def lay_out(figure: Figure) -> None:
    """Place everything, once: otherwise each format does it again, with other widths of letters."""
    import matplotlib
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # "none" keeps a stand-in that costs one more drawing
    # The layout's solver adds in an order that changes from call to call: its last digits do too.
    for axes in figure.axes:
        ends = axes.get_position(original=True).extents.round(6)
        axes.set_position(Bbox.from_extents(*ends), which="original")


def width_of(value: object) -> float:
    """Inches of ``width=single|double|NUMBER``.

    Raises:
        UserError: something else.
    """
    if isinstance(value, str):
        if value not in WIDTHS:
            allowed = f"{', '.join(WIDTHS)} or a number of inches"
            raise UserError(f"width: found {value!r}, allowed is {allowed}")
        return WIDTHS[value]
    return check_number("width", value, at_least=1, at_most=40)


def check_formats(value: object) -> tuple[str, ...]:
    """``formats=[pdf,svg,png]``, or one of them.

    Raises:
        UserError: another format.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise UserError(f"formats: found {value!r}, allowed is a list of {', '.join(FORMATS)}")
    for name in names:
        check_choice("formats", name, FORMATS)
    return tuple(dict.fromkeys(names))


def image(figure: Figure, kind: str, title: str = "", subject: str = "", dpi: int = 300) -> bytes:
    """A picture as the content of a file; to be called inside `style`.

    Args:
        kind: one of `FORMATS`, or whatever else matplotlib can write.
        subject: what the picture was made from, for the file's properties.
    """
    metadata: dict[str, Any] = dict(TIMELESS.get(kind, {}))
    if kind == "pdf":
        metadata |= {"Title": title, "Subject": subject}
    elif kind in ("svg", "png"):
        metadata |= {"Title": title, "Description": subject}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata or None)
    return buffer.getvalue()


def save(
    figure: Figure, stem: Path, formats: Iterable[str], title: str = "", subject: str = ""
) -> None:
    """Write ``STEM.FORMAT`` for each format, each file whole or not at all.

    Raises:
        OSError: naming the file.
    """
    for kind in formats:
        content = image(figure, kind, title, subject)
        write_atomically(
            stem.with_name(f"{stem.name}.{kind}"),
            lambda path, content=content: path.write_bytes(content),
        )


def inline_svg(content: bytes, label: str) -> str:
    """An SVG for an HTML page, or on its own; screen readers call it ``label``."""
    text = content.decode("utf-8")
    text = text[text.index("<svg") :]
    name = html.escape(label)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
