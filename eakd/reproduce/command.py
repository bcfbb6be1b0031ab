"""``scripts/reproduce.py``: plan, run, continue and report one table."""

from __future__ import annotations

import errno
import logging
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eakd.config import plain
from eakd.errors import UserError, check_choice
from eakd.places import command_words
from eakd.reproduce.comparison import read_runs
from eakd.reproduce.escaping import printable
from eakd.reproduce.evaluations import (
    Evaluation,
    about_evaluation,
    add_metrics,
    describe,
    evaluate,
    evaluations,
)
from eakd.reproduce.execute import run_plan
from eakd.reproduce.plan import Plan, State, plan_as_typed
from eakd.reproduce.progress import describe_plan
from eakd.reproduce.speed import measurable, measure
from eakd.reproduce.states import read_states
from eakd.reproduce.table import load_table, make_table
from eakd.reproduce.table_report import markdown, summarise, write_report
from eakd.reproduce.table_report.provenance import full_length
from eakd.reproduce.writing import insert_block
from eakd.training.hints import config_dir_words

log = logging.getLogger(__name__)

MODES = ("plan", "run", "status", "report")
ELSEWHERE = ("mode", "into", "retry", "verbose")  # keys that change no number of a report


def reproduce(config: DictConfig) -> str:
    """Do what ``configs/reproduce.yaml`` describes; print and return its text.

    Raises:
        UserError: a wrong value; or, after everything else ran, runs that failed or that another
            process works on.
    """
    check_choice("mode", config.mode, MODES)
    name = "nothing" if OmegaConf.is_missing(config, "table") else config.table
    definition, pairs = load_table(name), plain(config.pairs)
    if pairs is None and config.scale == "smoke":
        pairs = definition["smoke_pairs"] or None
    table = make_table(
        definition,
        pairs=None if pairs == "all" else pairs,
        methods=plain(config.methods),
        variants=plain(config.variants),
    )
    plan = plan_as_typed(table, config)
    select = table.select if config.select is None else config.select
    check_choice("select", select, ("last", "best"))
    measured = evaluations(plan, select)
    if config.mode == "run":
        run_plan(plan, config.retry)
        evaluate(plan, measured.values())
    states = read_states(plan.jobs)
    if config.mode == "plan" and config.measure:
        measure(plan, states, config.measure, config.output_root)
    if config.mode in ("plan", "status"):
        every, grid = config.verbose, config.mode == "plan"
        text = describe_plan(
            *(plan, states, config.output_root),
            every_run=every,
            grid=grid,
            measurable=grid and measurable(plan),
        )
        text += f"\n{describe(measured)}" if measured else ""
    else:
        text = _report(plan, states, config, select, measured)
    print(printable(text.partition("\n## Environment")[0]))  # the files hold the rest
    unfinished = Counter(state.name for state in states.values() if state.name != "done")
    if config.mode == "run" and unfinished:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(unfinished.items()))
        raise UserError(
            f"{unfinished.total()} of {len(states)} runs are not finished ({counts}), the others "
            "went on; mode=status names them, retry=true runs failed and stale ones again"
        )
    lacking = [each.label for each in measured.values() if each.result is None]
    if config.mode == "run" and lacking:
        raise UserError(
            f"{len(lacking)} of {len(measured)} evaluations are not there, the first is of "
            f"{lacking[0]}; the same command runs what is missing"
        )
    return text


def _report(
    plan: Plan,
    states: dict[Path, State],
    config: DictConfig,
    select: str,
    measured: Mapping[Path, Evaluation],
) -> str:
    """Write the report from whatever is finished; ``into`` gets its Markdown too."""
    finished = {
        run["directory"]: run
        for run in read_runs(path for path, state in states.items() if state.name == "done")
    }
    for job in plan.students if measured else ():
        if job.directory in finished:
            run = finished[job.directory]
            finished[job.directory] = add_metrics(run, job, measured, select)
    results, others = {}, {}
    for cell, jobs in plan.cells.items():
        places = {seed: job.directory for seed, job in jobs.items()}
        results[cell] = {s: finished[path] for s, path in places.items() if path in finished}
        others[cell] = {
            s: f"{states[path].name}: {states[path].text}".rstrip(": ")
            for s, path in places.items()
            if path not in finished
        }
    name = f"table{plan.table.name}-{plan.protocol}-{plan.scale}"
    folder = Path(config.output_root) / "reports" / name
    report = summarise(
        replace(plan.table, title=title(plan)),
        results,
        folder,
        select=select,
        wanted_seeds=plan.seeds,
        states=others,
        about={
            "Command": _command(config),
            "Protocol": plan.protocol,
            "Scale": plan.about_scale,
            **({"Evaluation": about_evaluation(plan.table, select)} if measured else {}),
        },
    )
    try:
        text = write_report(report, folder)
    except OSError as error:
        # What lies on a disk that may only be read can be read.
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.warning("the report is not written: %s: %s", folder, error.strerror)
        text = markdown(report)
    if config.into:  # without the links, which hold in the report's folder only
        insert_block(Path(config.into), name, markdown(report, level=2, runs=False))
    return text


def title(plan: Plan) -> str:
    """The table's title with what was run: data set, and scale and epochs if not the paper's."""
    changes = [] if plan.scale == "paper" else [f"scale={plan.scale}"]
    if not all(full_length(plan.table, cell, job.epochs) for cell, job in plan.each()):
        lengths = sorted({job.epochs for job in plan.students})
        changes.append(f"{', '.join(map(str, lengths))} epochs")
    text = f"{plan.about_data} ({', '.join(changes)})" if changes else plan.about_data
    return plan.table.title.replace("{data}", text)


def _command(config: DictConfig) -> str:
    """What was typed, without what only decides where the report goes."""
    typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    kept = [text for text in typed if text.partition("=")[0] not in ELSEWHERE]
    return shlex.join([*command_words("reproduce"), *config_dir_words(), *kept])
