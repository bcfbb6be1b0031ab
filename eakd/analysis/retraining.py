"""``retrain=true``: runs that lack a recording, once more, beside the finished ones.

Nothing finished is touched. A run that is trained again computes the same thing, on the same
machine the same bits, and lies under ``retrained/`` with its own record; figures take it from there
and say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eakd.reproduce.overrides import read
from eakd.reproduce.plan import Job, Plan
from eakd.training.hints import written

FOLDER = "retrained"
SNAPSHOT_KEY = "record.snapshots="
USUAL = (0.1667, 0.5)  # what every run keeps, by configs/train.yaml


def retrained(directory: Path, output_root: str) -> Path:
    """Where the second run of a directory lies."""
    root = Path(output_root)
    return root / FOLDER / directory.relative_to(root)


def recording(plan: Plan, needs: Collection[str], moments: Sequence[float] = ()) -> Plan:
    """The plan, whose students also record what a figure needs beyond what every run records.

    What a run records is no part of its identity: it stays the run that other figures share.

    Args:
        needs: of the figure.
        moments: epochs, or fractions of a run, whose snapshots it needs.
    """
    more = []
    if "samples" in needs:
        more.append("record.samples=all")
    if "snapshots" in needs and not set(moments) <= {*USUAL, 1}:
        more.append(_snapshots({*USUAL, *moments} - {1}))
    if not more:
        return plan
    cells = {
        cell: {seed: _with(job, more) for seed, job in jobs.items()}
        for cell, jobs in plan.cells.items()
    }
    return replace(plan, cells=cells)


def both(one: Job, other: Job) -> Job:
    """The same run of two figures' plans, which records what either needs."""
    added = [text for text in other.overrides if text.startswith("record.")]
    mine, theirs = (_moments(job.overrides) for job in (one, other))
    if mine and theirs:
        kept = tuple(text for text in one.overrides if not text.startswith(SNAPSHOT_KEY))
        one = replace(one, overrides=(*kept, _snapshots(mine | theirs)))
    return _with(one, added)


def _snapshots(moments: Iterable[float]) -> str:
    return f"{SNAPSHOT_KEY}[{','.join(f'{each:g}' for each in sorted(moments))}]"


def _moments(overrides: Iterable[str]) -> set[float]:
    """Those of ``record.snapshots=[…]``, as `_snapshots` or a user wrote it."""
    texts = [text for text in overrides if text.startswith(SNAPSHOT_KEY)]
    return {float(each) for text in texts for each in read(text).value()}


def _with(job: Job, more: Iterable[str]) -> Job:
    """The job with further words; one that has a word for the same key keeps it."""
    known = {text.partition("=")[0] for text in job.overrides}
    added = [text for text in more if text.partition("=")[0] not in known]
    return replace(job, overrides=(*job.overrides, *added))


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
    kept = [text for text in kept if not text.startswith("record.dynamics=")]
    more = (f"output_root={root}", "record.dynamics=true")
    return replace(
        job,
        directory=retrained(job.directory, output_root),
        overrides=(*kept, *more),
        saves=None,
    )
