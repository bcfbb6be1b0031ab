"""``scripts/figure.py``: plan, run, compute and draw figures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eakd.analysis.figures import (
    Figure,
    figure_names,
    lacking,
    load_figure,
    merged,
    moments_of,
)
from eakd.analysis.making import Made, Request, draw_all, insert, make, write_pages
from eakd.analysis.retraining import recording, retrained, retraining
from eakd.analysis.runs import Runs, as_run, glob_runs
from eakd.analysis.watching import draw_run
from eakd.config import plain
from eakd.errors import UserError, check_boolean, check_choice
from eakd.plotting import check_formats, has_matplotlib, width_of
from eakd.reproduce.comparison import read_runs
from eakd.reproduce.escaping import printable
from eakd.reproduce.execute import run_plan
from eakd.reproduce.plan import Composed, Plan, State, plan_as_typed
from eakd.reproduce.progress import describe_plan
from eakd.reproduce.states import read_states

log = logging.getLogger(__name__)

MODES = ("plan", "run", "status", "draw")

# Of scale=smoke, where nothing else is said: all figures from nothing within minutes.
SMOKE_SEEDS = [0]


def figure(config: DictConfig) -> str:
    """Do what ``configs/figure.yaml`` describes; print and return its text.

    Raises:
        UserError: a wrong value; or, after everything else was done, figures that could not be
            drawn, or runs that are not finished.
    """
    request = check(config)
    figures = chosen(config)
    if [each.name for each in figures] == ["run"]:
        return draw_run(figures[0], request, config.runs, config.watch)
    plans: dict[str, Plan] = {}
    states: dict[Path, State] = {}
    if config.runs is None and config.compute is not False:
        plans = plans_of(figures, config)
        whole = merged(plans.values())
        if config.mode == "run":
            run_plan(whole, config.retry)
        states = read_states(whole.jobs)
        if config.mode in ("plan", "status"):
            text = describe(figures, plans, whole, states, config, request)
            print(printable(text))
            return text
    made, failed = [], {}
    for each in figures:
        try:
            plan = plans.get(each.name)
            runs = runs_of(each, plan, states, config, request)
            made.append(make(each, _at_home(each, request, config), runs, plan))
        except UserError as error:
            if len(figures) == 1:
                raise
            failed[each.name] = str(error)
            log.warning("figure %s: %s", each.name, error)
    draw_all(made, request)
    return end(made, failed, states, config, request)


def _at_home(figure: Figure, request: Request, config: DictConfig) -> Request:
    """The request, where nothing was typed under the protocol that the figure's own file names."""
    own = figure.runs.get("protocol")
    if own is None or config.runs is not None or config.protocol is not None:
        return request
    label = str(config.label or f"{own}-{config.scale}")
    return replace(request, label=label, about={**request.about, "protocol": own})


def runs_of(
    figure: Figure,
    plan: Plan | None,
    states: dict[Path, State],
    config: DictConfig,
    request: Request,
) -> Runs | None:
    """Those of ``runs=GLOB``, or the finished ones of the plan; ``None`` if nothing is computed."""
    if config.compute is False:
        return None
    if plan is None:
        return glob_runs(config.runs, figure.by, figure.runs.get("methods", ()))
    runs = finished(plan, states)
    return again(figure, plan, runs, request, config) if config.retrain else runs


def check(config: DictConfig) -> Request:
    """What is wrong on the command line is told before anything is trained."""
    if OmegaConf.is_missing(config, "figure"):
        raise UserError("figure: found no value, give one: figure=…")
    check_choice("mode", config.mode, MODES)
    for key in ("control", "retrain", "draw"):
        check_boolean(key, config[key])
    check_choice("compute", config.compute, (None, True, False))
    formats = check_formats(plain(config.formats))
    width = None if config.width is None else width_of(config.width)
    if config.draw and config.mode in ("run", "draw") and not has_matplotlib():
        raise UserError(
            "figure: needs matplotlib: pip install 'eakd[plots]'; draw=false leaves the data"
        )
    protocol = config.protocol or "authors"
    standard = "runs" if config.runs is not None else f"{protocol}-{config.scale}"
    if config.retrain and config.runs is not None:
        raise UserError(
            "retrain: found true with runs=…, allowed is true without: only the runs of a figure's "
            "plan are known well enough to be trained again"
        )
    return Request(
        output_root=str(config.output_root),
        label=str(config.label or standard),
        compute=config.compute,
        draw=config.draw,
        formats=formats,
        width=width,
        groups=groups_of(config),
        about={} if config.runs is not None else {"protocol": protocol, "scale": config.scale},
        into=config.into,
    )


def groups_of(config: DictConfig) -> dict[str, dict[str, Any]]:
    """``{group: {setting: value or None}}``, see `Figure.settings_with`."""
    return {str(key): node for key in config if isinstance(node := plain(config[key]), dict)}


def chosen(config: DictConfig) -> list[Figure]:
    """The figures of ``figure=NAME``, ``figure=[NAME,…]`` or ``figure=all``, at their scale."""
    names = plain(config.figure)
    names = [str(each) for each in names] if isinstance(names, list) else [str(names)]
    if names == ["all"]:
        found = [load_figure(name) for name in figure_names()]
        found = [each for each in found if each.paper]
    else:
        found = [load_figure(name) for name in names]
    return [each.in_small() for each in found] if config.scale == "smoke" else found


def plans_of(figures: Sequence[Figure], config: DictConfig) -> dict[str, Plan]:
    """The plan of each figure; figures of the same runs share what takes time."""
    known: dict[str, Plan] = {}
    composed: Composed = {}
    plans = {}
    for each in figures:
        # What a run records is no part of it, and so added to the plan that figures share.
        key = repr((each.runs, each.control))
        if key not in known:
            known[key] = _plan_of_runs(each, config, composed)
        table = replace(known[key].table, name=f"figure {each.name}", title=each.title)
        plans[each.name] = _recorded(each, replace(known[key], table=table), config)
    return plans


def plan_of(figure: Figure, config: DictConfig) -> Plan:
    """The runs of one figure, which record what it needs.

    Raises:
        UserError: a figure of any runs, which must be named.
    """
    return _recorded(figure, _plan_of_runs(figure, config, None), config)


def _recorded(figure: Figure, plan: Plan, config: DictConfig) -> Plan:
    return recording(plan, figure.needs, moments_of(figure.settings_with(groups_of(config))))


def _plan_of_runs(figure: Figure, config: DictConfig, composed: Composed | None) -> Plan:
    if not figure.runs:
        raise UserError(f"runs: found no value, give one for figure={figure.name}: runs=DIRECTORY")
    pairs = plain(config.pairs)
    if pairs is None and config.scale == "smoke":
        pairs = figure.runs.get("smoke_pairs", ["resnet20-resnet8"])
    if isinstance(pairs, list) and len(pairs) != 1:
        raise UserError(f"pairs: found {len(pairs)} pairs, allowed is one pair for a figure")
    if config.seeds is None and config.scale == "smoke" and "seeds" not in figure.runs:
        config = OmegaConf.merge(config, {"seeds": SMOKE_SEEDS})
    return plan_as_typed(figure.table(pairs, config.control), config, composed)


def finished(plan: Plan, states: dict[Path, State]) -> Runs:
    """The finished runs of a plan, each with its variant."""
    done = {path for path, state in states.items() if state.name == "done"}
    variants = {job.directory: cell.variant for cell, job in plan.each()}
    runs = read_runs(path for path in variants if path in done)
    order = plan.table.methods
    return Runs((as_run(run, variants[run["directory"]]) for run in runs), order)


def unrecorded(figure: Figure, runs: Runs, request: Request) -> dict[Path, str]:
    """The finished runs that lack what a figure needs, and what it is."""
    settings = figure.settings_with(request.groups)
    return {run.directory: text for run in runs if (text := lacking(run, figure, settings))}


def again(figure: Figure, plan: Plan, runs: Runs, request: Request, config: DictConfig) -> Runs:
    """The runs, with those that lack something replaced by their second run (`retraining`)."""
    gone = unrecorded(figure, runs, request)
    if not gone:
        return runs
    second = retraining(plan, gone, config.output_root)
    if config.mode == "run":
        run_plan(second, config.retry)
    found = finished(second, read_states(second.jobs))
    places = {run.directory: run for run in found}
    new = {path: places.get(retrained(path, config.output_root)) for path in gone}
    return Runs((new.get(run.directory) or run for run in runs), runs.names)


def describe(
    figures: Sequence[Figure],
    plans: dict[str, Plan],
    whole: Plan,
    states: dict[Path, State],
    config: DictConfig,
    request: Request,
) -> str:
    """The plan as text: each figure's runs, then all of them once."""
    lines = []
    for each in figures:
        plan = plans[each.name]
        counts = Counter(states[job.directory].name for job in plan.students)
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        lines.append(f"figure {each.name}: {each.title}")
        lines.append(f"  {len(plan.students)} runs ({found}); needs {', '.join(each.needs)}")
        for directory, text in unrecorded(each, finished(plan, states), request).items():
            lines.append(f"  unrecorded  {directory}: {text}")
    every = config.verbose
    text = describe_plan(whole, states, config.output_root, every_run=every)
    return "\n".join([*lines, "", text.removeprefix("table ")])


def end(
    made: Sequence[Made],
    failed: dict[str, str],
    states: dict[Path, State],
    config: DictConfig,
    request: Request,
) -> str:
    """Write the page, print where everything is, and tell what is missing.

    Raises:
        UserError: a figure could not be drawn, or ``mode=run`` left runs unfinished.
    """
    index = write_pages(request, figure_names())
    if config.into and made:
        insert(made, request)
    text = "\n".join([*(each.text for each in made), f"all figures: {index}"])
    print(printable(text))
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        total = len(made) + len(failed)
        raise UserError(f"{len(failed)} of {total} figures could not be drawn: {reasons}")
    unfinished = Counter(state.name for state in states.values() if state.name != "done")
    if config.mode == "run" and unfinished:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(unfinished.items()))
        raise UserError(
            f"{unfinished.total()} of {len(states)} runs are not finished ({counts}), the figures "
            "show the others; mode=status names them, retry=true runs failed and stale ones again"
        )
    return text
