"""Running what a plan still needs, through whichever launcher was chosen."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig

from eakd.reproduce.launch import launch
from eakd.reproduce.plan import Job, Plan
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
    absent = {job.saves for job in plan.teachers if not job.saves.is_file()}
    if absent:
        log.info("runs that need these teachers wait: %s", ", ".join(map(str, sorted(absent))))
    _launch([job for job in plan.students if job.teacher not in absent], wanted)


def _launch(jobs: Sequence[Job], wanted: Sequence[str]) -> None:
    states = read_states(jobs)
    todo = [job for job in jobs if states[job.directory].name in wanted]
    log.info("%d of %d runs to do", len(todo), len(jobs))
    # With the launcher that was chosen on the command line.
    chosen = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    again = {
        job.directory: ["resume=false"] for job in todo if states[job.directory].name == "stale"
    }
    launch([[*job.overrides, *again.get(job.directory, [])] for job in todo], list(chosen))
