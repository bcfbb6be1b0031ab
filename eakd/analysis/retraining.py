"""``retrain=true``: runs that lack a recording, once more, beside the finished ones.

Nothing finished is touched. A run that is trained again computes the same thing, on the same
machine the same bits, and lies under ``retrained/`` with its own record; figures take it from there
and say so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from eakd.reproduce.plan import Job, Plan
from eakd.training.hints import written

FOLDER = "retrained"


def retrained(directory: Path, output_root: str) -> Path:
    """Where the second run of a directory lies."""
    root = Path(output_root)
    return root / FOLDER / directory.relative_to(root)


def recording(plan: Plan, needs: Collection[str]) -> Plan:
    """The plan, whose students also record the values of single samples where they are needed.

    What a run records is no part of its identity: it stays the run that other figures share.
    """
    if "samples" not in needs:
        return plan
    cells = {
        cell: {seed: _recorded(job) for seed, job in jobs.items()}
        for cell, jobs in plan.cells.items()
    }
    return replace(plan, cells=cells)


def _recorded(job: Job) -> Job:
    if any(text.startswith("record.samples=") for text in job.overrides):  # as the user wants it
        return job
    return replace(job, overrides=(*job.overrides, "record.samples=all"))


def retraining(plan: Plan, directories: Collection[Path], output_root: str) -> Plan:
    """The plan of the second runs of some of a plan's directories."""
    cells = {
        cell: {
            seed: _again(job, output_root)
            for seed, job in jobs.items()
            if job.directory in directories
        }
        for cell, jobs in plan.cells.items()
    }
    return replace(plan, cells={cell: jobs for cell, jobs in cells.items() if jobs}, teachers=())


def _again(job: Job, output_root: str) -> Job:
    kept = [text for text in job.overrides if not text.startswith("output_root=")]
    root = written(str(Path(output_root) / FOLDER))
    more = (f"output_root={root}", "record.dynamics=true")
    return replace(
        job,
        directory=retrained(job.directory, output_root),
        overrides=(*kept, *more),
        saves=None,
    )
