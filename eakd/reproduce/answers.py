"""Which tables of a teacher's answers a plan builds first, because its runs make them pay."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from eakd.reproduce.plan import Job, Plan, State


class Shared(NamedTuple):
    """A table that pays: its passes over the training set are fewer than its runs' epochs.

    Attributes:
        teacher: the file.
        views: passes of the teacher over the training set.
        size: bytes.
        jobs: the directories of the runs that take it.
        epochs: that remain for them.
        room: whether the disk has it.
    """

    teacher: Path
    views: int
    size: int
    jobs: frozenset[Path]
    epochs: int
    room: bool

    def __str__(self) -> str:
        what = (
            f"a table of {self.teacher.stem}'s answers ({self.views} views, {self.size / 1e9:.2f} "
            f"GB) pays: {len(self.jobs)} runs have {self.epochs} epochs"
        )
        return what if self.room else f"{what}, but the disk has no room for it"


def tables_that_pay(plan: Plan, states: dict[Path, State]) -> list[Shared]:
    """The tables that the first run which needs each builds, or would if there was room.

    A run that has begun keeps to what it began with on an accelerator, and is not counted.
    """
    sharing: dict[tuple[Path, tuple[int, int]], list[Job]] = defaultdict(list)
    for job in plan.students:
        if job.answers is not None and states[job.directory].name == "to do":
            sharing[job.teacher, job.answers].append(job)
    found, taken = [], 0
    for (teacher, (views, size)), jobs in sharing.items():
        epochs = sum(job.epochs for job in jobs)
        if epochs > views:
            room = 1.1 * (taken + size) < _free(teacher)
            taken += size if room else 0
            places = frozenset(job.directory for job in jobs)
            found.append(Shared(teacher, views, size, places, epochs, room))
    return found


def _free(path: Path) -> int:
    """Bytes on the disk where ``path`` is or will be."""
    place = next(each for each in path.absolute().parents if each.is_dir())
    return shutil.disk_usage(place).free
