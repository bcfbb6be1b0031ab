"""The benchmark runs every loop for real and writes what it measured."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eakd.benchmark import benchmark, seconds_per_step
from eakd.benchmark.loops import build_method, limit_loop, our_loop, random_images
from eakd.benchmark.timing import paired_ratio, peak_memory
from eakd.composing import compose
from eakd.data import Pipeline
from eakd.errors import UserError
from eakd.training import RunRecord, fit
from eakd.training.meters import Meters
from eakd.training.run import build_compute
from eakd.weighting import Weighting

ROOT = Path(__file__).parents[2]
SMALL = ["teacher=resnet8", "student=resnet8", "batch_size=4", "image_size=16", "steps=10"]
METHODS = ["kd", "ctkd", "dkd", "kd_ls", "dkd_ls", "mld", "mld_ls", "reviewkd", "fcfd"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_table_adds_two_loops(tmp_path):
    output = tmp_path / "speed.json"
    words = [*SMALL, "num_classes=10", "rounds=1", "table=true", f"output={output}"]
    text = benchmark(compose([*words, "distiller=mld"], "benchmark"))
    numbers = json.loads(output.read_text())
    for name in ("ours, teacher's table", "student alone"):
        assert len(numbers["step_seconds"][name]) == 10 and f"| {name} | " in text
    for line in ("step with a table / step: ", "step with a table / student alone: "):
        assert line in text
    assert numbers["table_over_step"][0] > 0 and numbers["table_over_student"][0] > 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["distiller=fcfd"], "table: found true, allowed is false: FCFD asks the teacher for more"),
        (["methods=[kd]"], "table: found true, allowed with a list of methods is false"),
    ],
)
def test_a_table_that_cannot_answer_is_refused(words, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}"):
        benchmark(compose([*SMALL, "table=true", *words], "benchmark"))


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="steps: found 3, allowed is an integer >= 10"):
        benchmark(compose([*SMALL, "steps=3"], "benchmark"))


@pytest.mark.parametrize("key", ["batch_size", "image_size", "num_classes"])
def test_a_size_out_of_range_is_refused(key):
    with pytest.raises(UserError, match=f"^{key}: found -1, allowed is an integer >= 1$"):
        benchmark(compose([*SMALL, f"{key}=-1"], "benchmark"))


@pytest.mark.slow
def test_the_table_has_each_method_once(tmp_path):
    output = tmp_path / "methods.json"
    overrides = [*SMALL, "rounds=1", f"methods=[{','.join(METHODS)}]", f"output={output}"]
    lines = benchmark(compose(overrides, "benchmark")).splitlines()
    header, _, *rows = [line for line in lines if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == [f"| {method}" for method in METHODS]
    assert all(row.count("|") == header.count("|") for row in rows)
    assert list(json.loads(output.read_text())["methods"]) == METHODS


# A method as a user first writes it: no word about which part of its work are network passes.
METHOD = """
import torch.nn.functional as F
from eakd.distillers.base import Distiller, Terms
from eakd.distillers.kd import kd_loss


class Agreement(Distiller):
    def __init__(self, student, teacher, weighting=None, temperature=4.0):
        super().__init__(student, teacher, weighting)
        self.temperature = temperature

    def forward(self, batch, progress):
        taught, logits = self.teach(batch.images).logits, self.student(batch.images).logits
        losses = {
            "ce": F.cross_entropy(logits, batch.targets),
            "kd": kd_loss(logits, taught, self.temperature),
        }
        return Terms(losses, logits, taught)
"""
NODE = """
name: agreement
_target_: agreement_of_the_test.Agreement
temperature: 4.0
"""


@pytest.fixture
def without_passes(tmp_path, monkeypatch):
    """A folder with that method's module and its config, ``configs/distiller/agreement.yaml``."""
    (tmp_path / "agreement_of_the_test.py").write_text(METHOD)
    folder = tmp_path / "configs" / "distiller"
    folder.mkdir(parents=True)
    (folder / "agreement.yaml").write_text(NODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("agreement_of_the_test", None)


NO_PASSES = (
    "distiller: found Agreement, which has no `passes`, allowed in the benchmark is a method that "
    "tells its network passes from its losses"
)


@pytest.mark.parametrize(
    "words, line",
    [
        (["distiller=agreement"], NO_PASSES),
        (["distiller=ea_agreement"], NO_PASSES),
        (["methods=[kd,agreement]"], f"methods: agreement: {NO_PASSES}"),
        (["methods=[kd,kdd]"], "methods: kdd: distiller: found 'kdd', allowed is one of agreement"),
        (["methods=kd"], "methods: found 'kd', allowed is a list of methods, such as [kd,dkd]"),
        (["methods=[]"], "methods: found [], allowed is a list of methods, such as [kd,dkd]"),
    ],
    ids=["method", "ea_form", "in_a_table", "unknown", "no_list", "empty"],
)
def test_what_cannot_be_benchmarked_is_one_line(without_passes, words, line):
    output = without_passes / "speed.json"
    before = {path for path in without_passes.rglob("*") if "__pycache__" not in path.parts}
    where = ["--config-dir", without_passes / "configs"]
    result = processes.run(
        [ROOT / "scripts" / "benchmark.py", *where, *SMALL, *words, f"output={output}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(without_passes)))},
        cwd=without_passes,
    )
    assert result.returncode == 2, result.stderr
    # No row of the method before it either: nothing has been timed.
    assert result.stdout == "" and result.stderr.startswith(f"error: {line}")
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
    left = {path for path in without_passes.rglob("*") if "__pycache__" not in path.parts}
    assert left == before


def test_a_plan_can_time_a_method_without_passes(without_passes):
    """Only the limit needs them."""
    config = compose(SMALL, "benchmark")
    config.distiller = {"name": "agreement", "_target_": "agreement_of_the_test.Agreement"}
    assert seconds_per_step(config, 1) > 0
    with pytest.raises(UserError, match="Agreement, which has no `passes`"):
        next(limit_loop(config, build_compute(config)))


@pytest.mark.parametrize("weighting", ["uniform", "ea"])
def test_our_loop_records_what_fit_records(weighting, tmp_path, monkeypatch):
    """The same samples in the same order, with the same losses, entropies and weights."""
    made = []

    class Kept(Meters):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("eakd.benchmark.loops.Meters", Kept)
    monkeypatch.setattr("eakd.training.state.Meters", Kept)
    config = compose([*SMALL, "device=cpu", "seed=3"], "benchmark")
    compute, data = build_compute(config), random_images(config, config.steps)
    loop = our_loop(config, data, compute, Weighting(weighting))
    for _ in range(config.steps):
        next(loop)
    (ours,) = made
    distiller, recipe, _ = build_method(config, compute, Weighting(weighting))
    pipeline = Pipeline(
        data, batch_size=4, seed=3, mean=list(config.data.mean), std=list(config.data.std)
    )
    with RunRecord(tmp_path, {}) as record:
        fit(distiller, pipeline, recipe, compute, record, progress=False)
    fits = made[1]
    assert ours.seen == fits.seen == 40 and ours.samples.shape == fits.samples.shape
    assert ours.names == fits.names and ours.rows == fits.rows
    for name in ("sums", "index", "samples"):
        found, wanted = getattr(ours, name), getattr(fits, name)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert len(made) == 3  # fit began no other epoch, and neither did our loop
    next(loop)
    assert len(made) == 4 and made[-1].seen == 4


def test_the_limit_samples_by_the_seed_and_the_step(monkeypatch):
    """As our loop does, whose epochs have as many steps as a block."""
    config = compose([*SMALL, "seed=5"], "benchmark")
    compute, made, seen = build_compute(config), [], {}

    def keep(*args):
        made.append(build_method(*args))
        distiller, _, _ = made[-1]
        passes, places = distiller.passes, seen.setdefault(len(made), [])

        def noted(batch, progress):
            places.append(tuple(progress))
            return passes(batch, progress)

        distiller.passes = noted
        return made[-1]

    monkeypatch.setattr("eakd.benchmark.loops.build_method", keep)
    data = random_images(config, config.steps)
    for loop in (
        our_loop(config, data, compute, Weighting("uniform")),
        limit_loop(config, compute),
    ):
        for _ in range(12):
            next(loop)
    assert seen[1] == seen[2]
    assert seen[2][0] == (5, 1, 0) and seen[2][9:] == [(5, 1, 9), (5, 2, 0), (5, 2, 1)]


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

    monkeypatch.setattr("eakd.benchmark.loops.build_method", keep)
    data = random_images(config, 20)
    loops = our_loop(config, data, compute, Weighting("uniform")), limit_loop(config, compute)
    counts, changed = [], []
    for loop in loops:
        next(loop)
        distiller, _, optimizer = made[-1]
        layers = [
            module
            for network in (distiller, distiller.teacher)
            for module in network.modules()
            if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm)
        ]
        counts.append(calls(loop, layers))
        changed.append(
            {
                name
                for name, parameter in distiller.named_parameters()
                if optimizer.state[parameter]["momentum_buffer"].any()
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
