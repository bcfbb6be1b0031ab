"""Running what a plan still needs, through whichever launcher was chosen."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from eakd.reproduce.answers import tables_that_pay
from eakd.reproduce.launch import launch
from eakd.reproduce.plan import Job, Plan, is_model
from eakd.reproduce.states import read_states

log = logging.getLogger(__name__)

POLL = 10.0  # seconds between two looks at another process's run


def run_plan(plan: Plan, retry: bool = False) -> None:
    """Train what is missing: teachers first, then the students whose teachers are there.

    Args:
        retry: also continue what failed, and begin again what is stale.
    """
    # What is damaged, a run repairs from its checkpoint, or refuses in one line.
    wanted = ("to do", "interrupted", "damaged", *(["failed", "stale"] if retry else []))
    # A finished teacher whose file is gone is not trained, only saved again.
    _launch(plan.teachers, (*wanted, "done"))
    while any(state.name == "running" for state in read_states(plan.teachers).values()):
        log.info("waiting for a teacher that another process trains")
        time.sleep(POLL)
    absent = {job.saves for job in plan.teachers if not is_model(job.saves)}
    if absent:
        log.info("runs that need these teachers wait: %s", ", ".join(map(str, sorted(absent))))
    tables = tables_that_pay(plan, read_states(plan.students))
    for table in tables:
        log.info("%s", table)
    using = frozenset().union(*(table.jobs for table in tables if table.room))
    _launch([job for job in plan.students if job.teacher not in absent], wanted, using)


def _launch(
    jobs: Sequence[Job], wanted: Sequence[str], using: Container[Path] = frozenset()
) -> None:
    """Run the jobs in a wanted state; those in ``using`` with a table of the teacher's answers."""
    states = read_states(jobs)
    todo = [job for job in jobs if states[job.directory].name in wanted]
    log.info("%d of %d runs to do", len(todo), len(jobs))
    # With the launcher that was chosen on the command line.
    chosen = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    again = {
        job.directory: ["resume=false"] for job in todo if states[job.directory].name == "stale"
    }
    tables = {job.directory: ["teacher.table=true"] for job in todo if job.directory in using}
    more = [[*again.get(job.directory, []), *tables.get(job.directory, [])] for job in todo]
    words = [[*job.overrides, *each] for job, each in zip(todo, more, strict=True)]
    launch(words, list(chosen))
