"""Measuring loops side by side: seconds, ratios with an interval, and memory."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from eakd.benchmark.loops import EA, LIMIT, OURS, STUDENT, TABLE, Loop
from eakd.training.device import Compute


class Times(NamedTuple):
    """Seconds of one step, in turn: ``wall`` on the clock, ``cpu`` of all threads of the process.

    CPU time suffers less from other programs. On an accelerator it is the time to launch the work.
    """

    wall: list[float]
    cpu: list[float]


Round = dict[str, Times]  # the loops of one round, by name; equally many steps of each


class Ratio(NamedTuple):
    """The median of several measurements of a ratio, and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} to {self.high:.4f})"


def paired_ratio(rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """The ratio of two loops' step times, from the (numerators, denominators) of each round.

    A round gives the median of ``numerators[i] / denominators[i]``, and the rounds give the result:
    two equal loops differ by up to a percent all through a round, but not in the next one, when
    they are built afresh. The interval lies between two order statistics of the rounds, as the sign
    test puts it; it assumes only that they are independent. Below six rounds it is their whole
    range, which is less than 95 %.
    """
    ratios = sorted(
        statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))
        for numerators, denominators in rounds
    )
    # The binomial distribution's 2.5 % quantile, by the normal one.
    rank = max(int((len(ratios) - 1.96 * len(ratios) ** 0.5) / 2), 0)
    return Ratio(median=statistics.median(ratios), low=ratios[rank], high=ratios[-1 - rank])


def alternate(loops: dict[str, Loop], steps: int, device: torch.device) -> Round:
    """Time ``steps`` steps of each loop, all loops in turn, in all orders in turn.

    Returns:
        Seconds a step. On an accelerator each value is the mean of ten steps.
    """
    times = {name: Times(wall=[], cpu=[]) for name in loops}
    # An accelerator works through a queue; waiting after each step would leave it idle.
    stretch = 1 if device.type == "cpu" else 10
    orders = itertools.cycle(itertools.permutations(loops))
    for order in itertools.islice(orders, -(-steps // stretch)):
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(stretch):
                next(loops[name])
            torch.zeros((), device=device).item()  # wait for the device
            times[name].wall.append((time.perf_counter() - wall) / stretch)
            times[name].cpu.append((time.process_time() - cpu) / stretch)
    return times


def all_steps(rounds: Sequence[Round], name: str) -> Times:
    """The times of one loop in all rounds, one after the other."""
    return Times(
        wall=[seconds for each in rounds for seconds in each[name].wall],
        cpu=[seconds for each in rounds for seconds in each[name].cpu],
    )


def compare(rounds: Sequence[Round]) -> dict[str, Ratio]:
    """Our loop over the limit and EA over ours, each by the clock and by CPU time."""

    def wall(top: str, bottom: str) -> Ratio:
        return paired_ratio([(each[top].wall, each[bottom].wall) for each in rounds])

    def cpu(top: str, bottom: str) -> Ratio:
        return paired_ratio([(each[top].cpu, each[bottom].cpu) for each in rounds])

    return {
        "step_over_limit": wall(OURS, LIMIT),
        "step_over_limit_cpu": cpu(OURS, LIMIT),
        "ea_over_uniform_time": wall(EA, OURS),
        "ea_over_uniform_cpu": cpu(EA, OURS),
    }


def compare_table(rounds: Sequence[Round]) -> dict[str, Ratio]:
    """Our loop with a table over the same with the teacher, and over the student alone."""
    return {
        name: paired_ratio([(each[TABLE].wall, each[bottom].wall) for each in rounds])
        for name, bottom in (("table_over_step", OURS), ("table_over_student", STUDENT))
    }


def peak_memory(loop: Loop, compute: Compute, steps: int = 4) -> int:
    """Bytes of tensors at the worst moment of a fresh loop's first steps, weights included."""
    gc.collect()  # what earlier loops left must not be freed meanwhile
    if compute.device.type == "cuda":
        before = torch.cuda.memory_allocated(compute.device)
        torch.cuda.reset_peak_memory_stats(compute.device)
        for _ in range(steps):
            next(loop)
        return torch.cuda.max_memory_allocated(compute.device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        for _ in range(steps):
            next(loop)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))
