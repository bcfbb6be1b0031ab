"""``figure=run``: pages of single runs, again and again while they train."""

from __future__ import annotations

import glob
import time
from pathlib import Path
from typing import Any

from eakd.analysis.draw import draw
from eakd.analysis.figures import Figure, figure_names
from eakd.analysis.making import Made, Request, draw_all, make, write_pages
from eakd.analysis.one_run import page
from eakd.analysis.runs import Run, Runs, open_run
from eakd.errors import UserError, check_number, check_text
from eakd.plotting import has_matplotlib, image, style
from eakd.reproduce.escaping import one_line, printable
from eakd.training.lock import read_owner


def draw_run(figure: Figure, request: Request, pattern: Any, watch: float) -> str:
    """Draw the page of each run that a glob finds; print and return where they are.

    Args:
        watch: seconds until the next look, while one of them is still training; 0 for one look.

    Raises:
        UserError: there is no run, or none has an epoch yet.
    """
    if pattern is None:
        raise UserError("runs: found no value, give one for figure=run: runs=DIRECTORY")
    check_text("runs", pattern)
    check_number("watch", watch, at_least=0)
    while True:
        made, text = _once(figure, request, pattern)
        print(printable(text), flush=True)
        if not watch or not any(map(is_training, made)):
            return text
        time.sleep(watch)


def _once(figure: Figure, request: Request, pattern: str) -> tuple[list[Run], str]:
    places = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    runs = [run for place in places if place.is_dir() and (run := open_run(place))]
    begun = [run for run in runs if run.metrics]
    if not begun:
        found = f"{len(runs)} runs without a finished epoch" if runs else "no run"
        raise UserError(f"runs: found {found} in {one_line(pattern)!r}, allowed is a glob of runs")
    made: list[Made] = []
    for run in begun:
        name = f"run-{run.method}-{run.directory.name}"
        made.append(make(figure, request, Runs([run]), name=name))
    draw_all(made, request)
    index = write_pages(request, figure_names())
    return runs, "\n".join([*(each.text for each in made), f"all figures: {index}"])


def is_training(run: Run) -> bool:
    """Whether a process still writes there: a killed or failed run never gets a summary."""
    owner = None if run.summary else read_owner(run.directory)
    return owner is not None and owner["alive"]


def pictures(directory: Path) -> dict[str, bytes]:
    """The page of a run as a PNG, for trackers; ``{}`` without matplotlib."""
    run = open_run(directory)
    if run is None or not run.metrics or not has_matplotlib():
        return {}
    with style():
        return {"figure": image(draw(page(Runs([run]))), "png", dpi=150)}
