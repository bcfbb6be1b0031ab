"""``scripts/reproduce.py``: plan, run, continue and report one table."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eakd.config import plain
from eakd.errors import UserError, check_choice
from eakd.reproduce.comparison import read_runs
from eakd.reproduce.launch import launch
from eakd.reproduce.plan import Job, Plan, State, describe_plan, make_plan, state_of
from eakd.reproduce.table import load_table, make_table, table_names

log = logging.getLogger(__name__)

POLL = 10.0  # seconds between two looks at another process's run
MODES = ("plan", "run", "status", "report")


def reproduce(config: DictConfig) -> str:
    """Do what ``configs/reproduce.yaml`` describes; print and return its text.

    Raises:
        UserError: a wrong value; or, after everything else ran, runs that failed.
    """
    check_choice("mode", config.mode, MODES)
    check_choice("select", config.select, ("last", "best"))
    name = "nothing" if OmegaConf.is_missing(config, "table") else config.table
    check_choice("table", str(name), table_names())
    table = make_table(
        load_table(name), *(plain(config[key]) for key in ("pairs", "methods", "variants"))
    )
    plan = make_plan(
        table,
        seeds=plain(config.seeds),
        protocol=config.protocol,
        scale=config.scale,
        overrides=plain(config.overrides),
        output_root=config.output_root,
        checkpoint_root=config.checkpoint_root,
    )
    if config.mode == "run":
        _run(plan, config.retry, _launch_settings())
    states = read_states(plan.jobs)
    if config.mode in ("plan", "status"):
        text = describe_plan(plan, states, every_run=config.mode == "plan")
    else:
        text = _report(plan, states, config)
    print(text)
    failed = [job for job in plan.jobs if states[job.directory].name == "failed"]
    if config.mode == "run" and failed:
        raise UserError(
            f"{len(failed)} of {len(plan.jobs)} runs failed, the others went on; "
            "mode=status names them, retry=true runs them again"
        )
    return text


def read_states(jobs: Sequence[Job]) -> dict[Path, State]:
    """Where every run stands now."""
    return {job.directory: state_of(job) for job in jobs}


def _launch_settings() -> list[str]:
    """The launcher that was chosen on the command line."""
    return list(HydraConfig.get().overrides.hydra) if HydraConfig.initialized() else []


def _run(plan: Plan, retry: bool, settings: list[str]) -> None:
    """Train what is missing: teachers first, then the students whose teachers are there."""
    wanted = ("to do", "interrupted", *(["failed"] if retry else []))
    # A finished teacher whose file is gone is not trained, only saved again.
    _launch(plan.teachers, (*wanted, "done"), settings)
    while any(state.name == "running" for state in read_states(plan.teachers).values()):
        log.info("waiting for a teacher that another process trains")
        time.sleep(POLL)
    absent = {job.saves for job in plan.teachers if not job.saves.is_file()}
    if absent:
        log.info("runs that need these teachers wait: %s", ", ".join(map(str, sorted(absent))))
    _launch([job for job in plan.students if job.teacher not in absent], wanted, settings)


def _launch(jobs: Sequence[Job], wanted: Sequence[str], settings: list[str]) -> None:
    states = read_states(jobs)
    todo = [job for job in jobs if states[job.directory].name in wanted]
    log.info("%d runs to do, %d not", len(todo), len(jobs) - len(todo))
    launch([job.overrides for job in todo], settings)
