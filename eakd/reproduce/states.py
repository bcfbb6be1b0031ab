"""Where the runs of a plan stand: read from their directories, which nothing here changes."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eakd.errors import UserError
from eakd.reproduce.agreement import outdated, stale_text
from eakd.reproduce.comparison import read_run, read_runs
from eakd.reproduce.escaping import one_line
from eakd.reproduce.plan import Job, State
from eakd.training.find_teacher import weights_digest
from eakd.training.lock import describe, read_owner
from eakd.training.reading import differences, read_metrics, read_object


def state_of(job: Job) -> State:
    """Read a run's directory; nothing in it is changed.

    A finished run may yet be ``stale``, which only other runs and files tell: see `read_states`.
    """
    try:
        return _state_of(job)
    except UserError as error:
        return State("damaged", one_line(error), 0)
    except OSError as error:
        return State("damaged", one_line(f"{error.filename}: {error.strerror}"), 0)


def _state_of(job: Job) -> State:
    directory = job.directory
    found = read_object(directory / "config.json")
    if found is not None and found != job.identified:
        changed = one_line(", ".join(differences(found, job.identified)[:3]))
        return State("failed", f"{directory} holds another config: {changed}", 0)
    if read_run(directory) is not None:
        return State("done", "", job.epochs)
    owner = read_owner(directory)
    running = owner is not None and owner["alive"]
    try:
        epochs = max((line["epoch"] for line in read_metrics(directory)), default=0)
        status = read_object(directory / "status.json") or {}
    except UserError:
        if not running:
            raise
        epochs, status = 0, {}  # the process that writes there will tell
    progress = f"epoch {epochs} of {job.epochs}"
    if running:
        return State("running", f"{progress}, {one_line(describe(owner))}", epochs)
    if status.get("state") in ("failed", "diverged"):
        return State("failed", one_line(status.get("error", status["state"])), epochs)
    return State("interrupted", progress, epochs) if status else State("to do", "", 0)


def read_states(jobs: Sequence[Job]) -> dict[Path, State]:
    """Where every run stands now.

    A finished run is ``stale`` if it was made from another teacher than the file that lies there
    now, or from other data than the run of the plan that finished last (the data set itself is not
    read for this). Runs of earlier versions that did not record their teacher count as done.
    """
    states = {job.directory: state_of(job) for job in jobs}
    done = [job for job in jobs if states[job.directory].name == "done"]
    runs = {run["directory"]: run for run in read_runs(job.directory for job in done)}
    by_data: dict[str, dict[Path, Any]] = defaultdict(dict)
    by_teacher: dict[Path, dict[Path, Any]] = defaultdict(dict)
    for job in done:
        run = runs.get(job.directory)
        if run is not None:
            # Variants of a table may differ in their data.
            by_data[str(job.identified["data"])][job.directory] = run
            if job.teacher is not None:
                by_teacher[job.teacher][job.directory] = run
    for alike in by_data.values():
        for place, values in outdated(alike, "data_fingerprint").items():
            text = stale_text("data_fingerprint", *values)
            states[place] = State("stale", text, states[place].epochs)
    for file, alike in by_teacher.items():
        known = any(run.get("teacher_digest") is not None for run in alike.values())
        current = _digest_now(file) if known else None
        for place, values in outdated(alike, "teacher_digest", current).items():
            text = stale_text("teacher_digest", *values, file if current else "the newest run")
            states[place] = State("stale", text, states[place].epochs)
    return states


def _digest_now(path: Path) -> str | None:
    """The `weights_digest` of a file, ``None`` without one that can be read."""
    try:
        found = path.stat()
        return _digest(path, found.st_size, found.st_mtime_ns) if path.is_file() else None
    except OSError:
        return None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    """Taken again only when a file's size or time has changed."""
    return weights_digest(path)
