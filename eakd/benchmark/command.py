"""``scripts/benchmark.py``: one method beside a plain loop, or a table of methods."""

from __future__ import annotations

import itertools
import logging
import statistics
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from eakd.benchmark import loops as images
from eakd.benchmark.loops import (
    FLOAT32,
    LIMIT,
    OURS,
    PLAIN,
    STUDENT,
    TABLE,
    Loop,
    our_loop,
    plain_process,
    random_images,
)
from eakd.benchmark.timing import (
    Round,
    all_steps,
    alternate,
    compare,
    compare_table,
    peak_memory,
)
from eakd.checking import check_keys
from eakd.composing import compose
from eakd.config import check_domain
from eakd.errors import UserError, check_boolean, check_number
from eakd.files import write_json
from eakd.training.device import Compute
from eakd.training.run import build_compute
from eakd.weighting import Weighting

WARMUP_STEPS = 10

# Of a set's task → the loops that are timed on its batches; without a set, images.
DOMAINS = {
    "eakd.detection.Detection": "eakd.benchmark.detection",
    "eakd.language.Language": "eakd.benchmark.language",
}

log = logging.getLogger(__name__)


def benchmark(config: DictConfig) -> str:
    """Measure and return a Markdown table; also writes JSON to ``config.output``.

    One method beside the plain loop, or every method of ``config.methods`` without it.

    Raises:
        UserError: a wrong value, or a method that cannot be benchmarked; nothing has been timed or
            written then.
    """
    check_boolean("table", config.table)
    if config.table and config.methods is not None:
        raise UserError("table: found true, allowed with a list of methods is false")
    domain = domain_of(config)
    check_number("steps", config.steps, at_least=domain.LEAST_STEPS, integer=True)
    check_number("rounds", config.rounds, at_least=1, integer=True)
    compute = build_compute(config)
    measure = measure_method if config.methods is None else measure_methods
    numbers, lines = measure(config, compute, domain)
    if config.output:
        write_json(Path(config.output), numbers)
    title = (
        f"{config.teacher.name} → {config.student.name}, batch {config.batch_size}, "
        f"{compute.device.type}, ours in {compute.precision}"
    )
    if config.methods is None:
        title = f"{config.distiller.name}, {title}"
    return "\n".join([title, "", *lines])


def seconds_per_step(config: DictConfig, steps: int) -> float:
    """Median of ``steps`` steps of our loop, after as many to warm up, for plans.

    Raises:
        UserError: a wrong value, named.
    """
    check_number("steps", steps, at_least=1, integer=True)
    compute = build_compute(config)
    data = random_images(config, steps=4)
    loops = {OURS: our_loop(config, data, compute, Weighting("uniform"))}
    alternate(loops, steps, compute.device)
    return statistics.median(alternate(loops, steps, compute.device)[OURS].wall)


def measure_method(
    config: DictConfig, compute: Compute, domain: ModuleType
) -> tuple[dict[str, Any], list[str]]:
    """Samples per second of our loop, the plain one and the limit.

    Returns:
        What goes into the JSON, and the lines of the table.
    """
    data = domain.load_data(config)
    rehearse(config, data, compute, domain)
    with plain_process(config, compute, domain.plain_loop) as plain:
        plain()  # warm-up: compilation, worker start, allocator
        rounds, table_rounds, plain_seconds = [], [], []
        for turn in range(config.rounds):
            rounds.append(
                one_round(
                    domain.build_loops(config, data, compute), config.steps, turn, compute.device
                )
            )
            if config.table:
                tables = domain.build_table_loops(config, data, compute)
                table_rounds.append(one_round(tables, config.steps, turn, compute.device))
            plain_seconds.append(plain() / config.steps)
    seconds = {name: all_steps(rounds, name).wall for name in rounds[0]}
    seconds[PLAIN] = plain_seconds
    for name in (TABLE, STUDENT) if config.table else ():
        seconds[name] = all_steps(table_rounds, name).wall
    speeds = {
        name: config.batch_size / statistics.median(values) for name, values in seconds.items()
    }
    numbers = {
        **describe(config, compute),
        **compare(rounds),
        **(compare_table(table_rounds) if config.table else {}),
        "samples_per_second": speeds,
        "ours_over_plain": speeds[OURS] / speeds[PLAIN],
        "peak_memory_bytes": compute.peak_memory(),
        "step_seconds": seconds,
    }
    lines = [
        "| loop | samples/s |",
        "|---|---|",
        *(f"| {name} | {speed:.{0 if speed >= 100 else 1}f} |" for name, speed in speeds.items()),
        "",
        f"ours / plain: {numbers['ours_over_plain']:.2f}",
        f"ours / limit: {1 / numbers['step_over_limit'].median:.3f}",
        f"EA step / uniform step: {numbers['ea_over_uniform_time']}",
    ]
    if config.table:
        lines.append(f"step with a table / step: {numbers['table_over_step']}")
        lines.append(f"step with a table / student alone: {numbers['table_over_student']}")
        ratio = numbers["table_over_plain"] = speeds[TABLE] / speeds[PLAIN]
        lines.append(f"ours with a table / plain: {ratio:.2f}")
    if FLOAT32 in speeds:
        ratio = numbers["float32_over_plain"] = speeds[FLOAT32] / speeds[PLAIN]
        lines.append(f"ours in float32 / plain: {ratio:.2f}")
    if domain is not images:
        found, more = domain.measure_more(config, data, compute)
        numbers, lines = numbers | found, lines + more
    return numbers, lines


def domain_of(config: DictConfig) -> ModuleType:
    """The loops that are timed: of classifiers on noise, or of networks on a set of their own.

    Raises:
        UserError: a set of images, or an option that the set's domain does not have.
    """
    name = config.data.get("name")
    if name is None:
        check_keys(OmegaConf.to_container(config), {"mean": None, "std": None}, at="data")
        return images
    if config.data.get("task") not in DOMAINS:
        raise UserError(
            f"data: found {name}, allowed is a set of boxes, such as scenes, or of texts, such as "
            "python_docs, or none: images are noise of image_size pixels"
        )
    domain = import_module(DOMAINS[config.data.task])
    for key in domain.LACKS:
        if config[key]:
            raise UserError(f"{key}: found {config[key]}, allowed with data={name} is none")
    check_domain(config)
    return domain


def measure_methods(
    config: DictConfig, compute: Compute, domain: ModuleType
) -> tuple[dict[str, Any], list[str]]:
    """Each method against its limit, and its EA form against it; returns as `measure_method`."""
    data = domain.load_data(config)
    configs = each_method(config)
    for name, one in configs:
        try:
            rehearse(one, data, compute, domain)
        except UserError as error:
            raise UserError(f"methods: {name}: {error}") from error
    numbers = {**describe(config, compute), "methods": {}}
    lines = [
        "| method | step ms | CPU ms | limit ms | step / limit | CPU / limit CPU | EA step / step "
        "| EA CPU / CPU | EA memory / memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in configs:
        rounds = [
            one_round(domain.build_loops(one, data, compute), config.steps, turn, compute.device)
            for turn in range(config.rounds)
        ]
        plain, ea = (
            peak_memory(our_loop(one, data, compute, Weighting(kind)), compute)
            for kind in ("uniform", "ea")
        )
        found = compare(rounds)
        medians = {
            "step_ms": 1000 * statistics.median(all_steps(rounds, OURS).wall),
            "cpu_ms": 1000 * statistics.median(all_steps(rounds, OURS).cpu),
            "limit_ms": 1000 * statistics.median(all_steps(rounds, LIMIT).wall),
        }
        memory = {"step_memory_bytes": plain, "ea_step_memory_bytes": ea}
        numbers["methods"][name] = {**medians, **found, **memory}
        cells = [
            *(f"{value:.2f}" for value in medians.values()),
            *(str(ratio) for ratio in found.values()),
            f"{ea / plain:.4f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        log.info(lines[-1])
    return numbers, lines


def each_method(config: DictConfig) -> list[tuple[str, DictConfig]]:
    """Every name of ``config.methods`` and the config that benchmarks this method.

    Raises:
        UserError: no list, or a name that no method has.
    """
    names = config.methods
    if not OmegaConf.is_list(names) or not names:
        raise UserError(f"methods: found {names!r}, allowed is a list of methods, such as [kd,dkd]")
    configs = []
    for name in names:
        one = config.copy()
        try:
            one.distiller = compose([f"distiller={name}"], "benchmark").distiller
        except UserError as error:
            raise UserError(f"methods: {name}: {error}") from error
        configs.append((name, one))
    return configs


def rehearse(config: DictConfig, data: Any, compute: Compute, domain: ModuleType) -> None:
    """One step of each loop, so that what cannot be measured is told before hours of the rest.

    Raises:
        UserError: a wrong value, or a method without ``passes``; it is named.
    """
    builders = [domain.build_loops, *([domain.build_table_loops] if config.table else [])]
    for build in builders:
        for loop in build(config, data, compute).values():
            next(loop)


def one_round(loops: dict[str, Loop], steps: int, turn: int, device: torch.device) -> Round:
    """Build fresh loops, in an order of that turn, and time ``steps`` steps of each."""
    orders = list(itertools.permutations(loops))
    loops = {name: loops[name] for name in orders[turn % len(orders)]}
    alternate(loops, min(WARMUP_STEPS, steps), device)
    return alternate(loops, steps, device)


def describe(config: DictConfig, compute: Compute) -> dict[str, Any]:
    """What was measured, on what."""
    return {
        "method": config.distiller.name if config.methods is None else None,
        "teacher": config.teacher.name,
        "student": config.student.name,
        "batch_size": config.batch_size,
        "device": str(compute.device),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
    }
