"""From opened runs to the files of one figure: what is current is not computed again."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from eakd import __version__
from eakd.analysis.figures import Figure, lacking
from eakd.analysis.marks import display
from eakd.analysis.page import Shown, block, caption, shown, write_index
from eakd.analysis.result import Result
from eakd.analysis.retraining import FOLDER
from eakd.analysis.runs import DETECTION, Run, Runs
from eakd.analysis.statements import lines
from eakd.analysis.write import is_current, read_result, write_page, write_result
from eakd.errors import UserError
from eakd.files import write_atomically, write_text
from eakd.plotting import FORMATS
from eakd.reproduce.plan import Plan
from eakd.reproduce.writing import insert_block
from eakd.training.environment import git_state
from eakd.training.protocol import device_of
from eakd.training.reading import checksum
from eakd.workers import in_processes

log = logging.getLogger(__name__)

SMALL = 60_000  # bytes of a picture in a document, as far as it stays legible
COLOURS = 64  # fewer, and the marks of two classes have one colour
SMALLER = (110, 100, 90, 80)  # dots an inch, the first that are small enough


@dataclass(frozen=True)
class Request:
    """What the command line says of every figure.

    Attributes:
        label: the end of folders' names.
        compute: ``None`` where something changed, ``True`` always, ``False`` never.
        width: inches, or ``None``.
        groups: ``{group: {setting: value or None}}``.
        about: protocol and scale, as far as they are known.
        into: a Markdown file, or ``None``.
    """

    output_root: str = "outputs"
    label: str = "runs"
    compute: bool | None = None
    draw: bool = True
    formats: tuple[str, ...] = FORMATS
    width: float | None = None
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    into: str | None = None

    @property
    def folder(self) -> Path:
        return Path(self.output_root) / "figures"


class Made(NamedTuple):
    """A figure whose files are written."""

    folder: Path
    result: Result
    page: Shown

    @property
    def text(self) -> str:
        """For a terminal."""
        parts = [f"figure {self.page.name}: {self.folder}", f"  {self.page.shows}"]
        for line in self.page.lines:
            paper = f", paper {line.paper}" if line.paper else ""
            parts.append(f"  {line.text}: {line.ours}{paper}: {line.holds}")
        return "\n".join(parts)


def make(
    figure: Figure, request: Request, runs: Runs | None, plan: Plan | None = None, name: str = ""
) -> Made:
    """Compute what is not current, and write all files of a figure but its pictures.

    Args:
        runs: ``None`` with ``compute=False``, which opens none.
        plan: that they are of, to tell which are missing.
        name: of the folder, instead of figure and label.

    Raises:
        UserError: it cannot be computed from these runs.
        OSError: a file cannot be written; it is named.
    """
    folder = request.folder / (name or f"{figure.name}-{request.label}")
    if request.compute is False:
        result, _ = read_result(folder)
    else:
        assert runs is not None
        result = _result(figure, request, runs, plan, folder)
    page = shown(figure.name, figure.title, result, lines(figure.statements, result))
    write_page(folder, page._asdict())
    write_text(folder / "caption.md", caption(page))
    return Made(folder, result, page)


def _result(
    figure: Figure, request: Request, runs: Runs, plan: Plan | None, folder: Path
) -> Result:
    settings = figure.settings_with(request.groups)
    usable, notes = usable_runs(figure, runs, settings)
    notes += runs.left_out
    if plan is not None:
        notes += missing_seeds(usable, plan)
    second = Path(request.output_root) / FOLDER
    again = sum(second in run.directory.parents for run in usable)
    if again:
        notes.append(f"{again} of {len(usable)} runs were trained again for what they record.")
    made_from = {
        "kind": figure.kind,
        "code": figure.code,
        "settings": settings,
        "notes": notes,
        "runs": {str(run.directory): _digest(run) for run in usable},
    }
    if request.compute is None and is_current(folder, made_from):
        log.info("figure %s: nothing changed", figure.name)
        return read_result(folder)[0]
    result = figure.compute(usable, settings, request.output_root)
    about = {**provenance(usable), **request.about, **result.about}
    result = replace(result, notes=(*result.notes, *notes), about=about)
    page = shown(figure.name, figure.title, result, lines(figure.statements, result))
    write_result(folder, result, made_from, page._asdict())
    return result


def _digest(run: Run) -> str:
    """Of a finished run's summary, and of how far another one is."""
    if run.summary:
        return str(run.summary.get("checksum") or checksum(dict(run.summary)))
    return f"epoch {len(run.metrics)}"


def usable_runs(figure: Figure, runs: Runs, settings: Mapping[str, Any]) -> tuple[Runs, list[str]]:
    """The runs that have what a figure needs, and what is to be said of the others.

    Raises:
        UserError: there are none, or a method has none; runs without a teacher, or of another
            domain.
    """
    if not runs:
        raise UserError(
            f"figure {figure.name}: found no finished run of its plan; mode=run trains them, "
            "mode=status tells where they stand"
        )
    if "regions" in figure.needs:
        for run in runs:
            if run.task != DETECTION:
                raise UserError(
                    f"runs: found a run of {run.task} in {run.directory}, allowed for figure "
                    f"{figure.name} are runs of detectors"
                )
    if "teacher" in figure.needs:
        for run in runs:
            if not run.teacher:
                raise UserError(
                    f"runs: found method {run.method}, allowed for figure {figure.name} is a "
                    "method with a teacher"
                )
    gone = {run.directory: text for run in runs if (text := lacking(run, figure, settings))}
    if not gone:
        return runs, []
    kept = Runs((run for run in runs if run.directory not in gone), runs.names)
    text = f"{len(gone)} of {len(runs)} runs have {next(iter(gone.values()))}"
    if set(kept.names) != set(runs.names):
        raise UserError(f"figure {figure.name}: {text}; retrain=true trains them again")
    return kept, [f"Left out: {text}."]


def missing_seeds(runs: Runs, plan: Plan) -> list[str]:
    """``KD: 3 of 5 seeds.`` of each method that has not all of its runs."""
    wanted = {job.directory: cell.method for cell, job in plan.each()}
    there = Counter(run.method for run in runs)
    total = Counter(wanted.values())
    return [
        f"{display(name)}: {there[name]} of {count} runs are there."
        for name, count in total.items()
        if there[name] < count
    ]


def provenance(runs: Runs) -> dict[str, Any]:
    """What the runs are of, what they were computed on, and the code that looks at them."""
    import numpy

    state = git_state()
    commit = state["commit"] and state["commit"][:8] + " (modified)" * bool(state["modified"])
    devices = {device_of(e) for run in runs if (e := run.summary.get("environment"))}
    return {
        "pair": runs.pair.replace("-", " → "),
        "data": str(runs[0].config["data"]["name"]),
        "device": " and ".join(sorted(devices)),
        "commit": commit,
        "versions": {"eakd": __version__, "numpy": numpy.__version__},
    }


def draw_all(made: Sequence[Made], request: Request) -> None:
    """Write the pictures of figures, several at once: drawing takes longer than reading the data.

    Raises:
        OSError: a file cannot be written; it is named.
    """
    if request.draw:
        in_processes(partial(_draw, request=request), made)


def _draw(made: Made, request: Request) -> None:
    from eakd.analysis.draw import draw
    from eakd.plotting import save, style

    with style():
        about = made.result.about
        commit = f"commit {about['commit']}" if about.get("commit") else ""
        picture = draw(made.result, request.width)
        save(picture, made.folder / "figure", request.formats, made.page.heading, commit)


def write_pages(request: Request, order: Sequence[str]) -> Path:
    """``index.html`` of all figures in the folder."""
    return write_index(request.folder, order)


def insert(made: Sequence[Made], request: Request) -> None:
    """Put pictures and captions into the file ``into``, between its markers.

    The block is called as the figure's folder, or ``figures`` for several; pictures go to
    ``figures/`` beside the file.

    Raises:
        UserError: the file has no such block.
    """
    document = Path(request.into or "")
    name = made[0].folder.name if len(made) == 1 else "figures"
    blocks = []
    for each in made:
        picture = Path("figures") / f"{each.folder.name}.png"
        blocks.append(block(each.page, picture.as_posix()))
    insert_block(document, name, "\n".join(blocks))
    for each in made:
        content = small_png(each.result, request.width)
        target = document.parent / "figures" / f"{each.folder.name}.png"
        write_atomically(target, lambda path, content=content: path.write_bytes(content))


def small_png(result: Result, width: float | None = None) -> bytes:
    """A picture for documents, in few colours: `SMALL` if it can be."""
    from PIL import Image

    from eakd.analysis.draw import draw
    from eakd.plotting import image, style

    with style():
        figure = draw(result, width)
        for dots in SMALLER:
            picture = Image.open(io.BytesIO(image(figure, "png", dpi=dots))).convert("RGB")
            buffer = io.BytesIO()
            picture.quantize(COLOURS).save(buffer, format="png", optimize=True)
            if buffer.tell() <= SMALL:
                break
    return buffer.getvalue()
