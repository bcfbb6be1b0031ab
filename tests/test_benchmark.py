"""The benchmark runs every loop for real and writes what it measured."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eakd.config import compose
from eakd.errors import UserError
from eakd.training.benchmark import (
    benchmark,
    build_method,
    limit_loop,
    our_loop,
    paired_ratio,
    peak_memory,
    random_images,
)
from eakd.training.run import build_compute
from eakd.weighting import Weighting

SMALL = ["teacher=resnet8", "student=resnet8", "batch_size=4", "image_size=16", "steps=10"]
METHODS = ["kd", "ctkd", "dkd", "kd_ls", "dkd_ls", "mld", "mld_ls", "reviewkd", "fcfd"]


def test_it_measures_four_loops(tmp_path):
    output = tmp_path / "speed.json"
    text = benchmark(compose([*SMALL, "rounds=2", f"output={output}"], "benchmark"))
    numbers = json.loads(output.read_text())
    loops = {"ours", "ours, EA weighting", "limit", "plain"}
    assert set(numbers["samples_per_second"]) == set(numbers["step_seconds"]) == loops
    # The plain loop is timed in whole blocks, the others step by step.
    assert len(numbers["step_seconds"].pop("plain")) == 2
    assert all(len(steps) == 20 for steps in numbers["step_seconds"].values())
    assert all(value > 0 for value in numbers["samples_per_second"].values())
    assert f"ours / plain: {numbers['ours_over_plain']:.2f}" in text
    median, low, high = numbers["ea_over_uniform_time"]
    assert low <= median <= high
    assert f"EA step / uniform step: {median:.4f} ({low:.4f} to {high:.4f})" in text


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="steps: found 3, allowed is an integer >= 10"):
        benchmark(compose([*SMALL, "steps=3"], "benchmark"))


def test_the_table_has_each_method_once(tmp_path):
    output = tmp_path / "methods.json"
    overrides = [*SMALL, "rounds=1", f"methods=[{','.join(METHODS)}]", f"output={output}"]
    lines = benchmark(compose(overrides, "benchmark")).splitlines()
    header, _, *rows = [line for line in lines if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == [f"| {method}" for method in METHODS]
    assert all(row.count("|") == header.count("|") for row in rows)
    assert list(json.loads(output.read_text())["methods"]) == METHODS


def calls(loop, modules):
    """How often one step of ``loop`` runs each of the modules."""
    counts = dict.fromkeys(modules, 0)

    def count(module, *_):
        counts[module] += 1

    handles = [module.register_forward_hook(count) for module in modules]
    next(loop)
    for handle in handles:
        handle.remove()
    return list(counts.values())


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_runs_the_same_passes_as_our_loop(method, monkeypatch):
    """Every convolution, norm and linear layer as often, and the same parameters change."""
    config = compose([*SMALL, f"distiller={method}"], "benchmark")
    compute = build_compute(config)
    made = []

    def keep(*args):
        made.append(build_method(*args))
        return made[-1]

    monkeypatch.setattr("eakd.training.benchmark.build_method", keep)
    data = random_images(80, 16, 100, 0)
    loops = our_loop(config, data, compute, Weighting("uniform")), limit_loop(config, compute)
    counts, changed = [], []
    for loop in loops:
        next(loop)
        distiller = made[-1][0]
        layers = [
            module
            for network in (distiller, distiller.teacher)
            for module in network.modules()
            if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm)
        ]
        counts.append(calls(loop, layers))
        momentum = made[-1][2].state
        changed.append(
            {
                name
                for name, parameter in distiller.named_parameters()
                if momentum[parameter]["momentum_buffer"].any()
            }
        )
    assert counts[0] == counts[1] and sum(counts[0]) > 20
    # CTKD's temperature belongs to the loss; no pass needs it.
    assert changed[0] - {"theta"} == changed[1] and changed[1]


def test_a_loop_against_itself_has_a_ratio_of_one():
    times = [1.0, 3.0, 2.0]
    assert paired_ratio([(times, times)] * 3) == (1.0, 1.0, 1.0)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        rounds = []
        for _ in range(10):
            drift = rng.lognormal(0, 1, 20)  # slows both of a pair alike
            build = rng.lognormal(0, 0.02, (2, 1))  # one of them is faster all round long
            rounds.append(drift * build * rng.lognormal(0, 0.1, (2, 20)))
        ratio = paired_ratio(rounds)
        assert ratio.low <= ratio.median <= ratio.high
        covered += ratio.low <= 1 <= ratio.high
    assert covered >= 180


def test_peak_memory_is_that_of_the_worst_moment_and_repeatable():
    compute = build_compute(compose([*SMALL, "device=cpu"], "benchmark"))

    def loop():
        kept = torch.ones(1 << 20)
        while True:
            a = torch.ones(1 << 18)
            b = torch.ones(1 << 18)
            del a, b
            c = torch.ones(1 << 18)
            del c
            yield kept

    peaks = [peak_memory(loop(), compute) for _ in range(2)]
    assert peaks == 2 * [4 * (1 << 20) + 2 * 4 * (1 << 18)]
