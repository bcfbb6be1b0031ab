"""The benchmark runs its loops with detectors, for real."""

import json

import pytest
import torch
from torch.utils._pytree import tree_leaves

from eakd.benchmark import benchmark
from eakd.benchmark.detection import build_method
from eakd.composing import compose
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.training.run import build_compute
from eakd.weighting import Weighting

pytest.importorskip("eakd.detection.distillers")
SMALL = [
    *("data=scenes", "data.image_size=64", "data.train_images=4", "data.test_images=1"),
    *("teacher=frcnn_tiny", "student=frcnn_tiny", "batch_size=1", "steps=10", "rounds=1"),
    *("device=cpu", "threads=1"),
]


@pytest.mark.slow
def test_it_measures_five_loops(tmp_path):
    output = tmp_path / "speed.json"
    words = [*SMALL, "distiller=detection/kd", f"output={output}"]
    text = benchmark(compose(words, "benchmark"))
    numbers = json.loads(output.read_text())
    loops = {"ours", "ours, float32", "ours, EA weighting", "limit", "plain"}
    assert set(numbers["samples_per_second"]) == set(numbers["step_seconds"]) == loops
    assert all(value > 0 for value in numbers["samples_per_second"].values())
    assert all(f"| {name} | " in text for name in loops)
    assert f"ours in float32 / plain: {numbers['float32_over_plain']:.2f}" in text
    assert "EA step / uniform step: " in text


@pytest.mark.parametrize("method", ["kd", "dkd", "none"])
def test_passes_are_those_of_the_step(method):
    """Every trained weight gets a gradient from them, and regions are the step's own."""
    config = compose([*SMALL, f"distiller=detection/{method}", "precision=float32"], "benchmark")
    distiller, data, _, _ = build_method(config, build_compute(config), Weighting("uniform"))
    batch, now = next(data.epoch(1)), Progress(0, 1, 0)
    made = tree_leaves(distiller.passes(batch, now))
    terms = distiller(batch, now)
    assert torch.equal(made[0], terms.student_logits)
    torch.testing.assert_close(made[2], terms["rpn_class"])
    assert (method == "none") == (len(made) == 4)
    sum(x.sum() for x in made if x.requires_grad).backward()
    assert all(p.grad is not None for p in distiller.trainable_parameters())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["+data.flop=1"], "data.flop: found an unknown key"),
        (["distiller=kd"], "distiller: found kd, a method for"),
        (["student=resnet8"], "student: found resnet8, a network for"),
        (["methods=[kd]"], "methods: found "),
        (["table=true"], "table: found True"),
        (["batch_size=0"], "batch_size: found 0"),
    ],
)
def test_what_detectors_do_not_have_is_one_line(words, line):
    with pytest.raises(UserError, match=f"^{line}"):
        benchmark(compose([*SMALL, "distiller=detection/kd", *words], "benchmark"))


def test_sets_of_other_domains_are_refused():
    with pytest.raises(
        UserError,
        match=r"^data: found cifar100, allowed is a set of boxes, such as scenes, or of texts",
    ):
        benchmark(compose(["data=cifar100"], "benchmark"))
