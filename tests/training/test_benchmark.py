"""The benchmark runs every loop for real and writes what it measured."""

import json

import pytest

from eakd.config import compose
from eakd.errors import UserError
from eakd.training.benchmark import benchmark

SMALL = ["teacher=resnet8", "student=resnet8", "batch_size=4", "image_size=16", "steps=10"]


def test_it_measures_four_loops(tmp_path):
    output = tmp_path / "speed.json"
    text = benchmark(compose([*SMALL, "rounds=2", f"output={output}"], "benchmark"))
    numbers = json.loads(output.read_text())
    assert set(numbers["samples_per_second"]) == {"ours", "ours, EA weighting", "limit", "plain"}
    assert all(len(blocks) == 2 for blocks in numbers["blocks_seconds"].values())
    assert all(value > 0 for value in numbers["samples_per_second"].values())
    assert f"ours / plain: {numbers['ours_over_plain']:.2f}" in text


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="steps: found 3, allowed is an integer >= 10"):
        benchmark(compose([*SMALL, "steps=3"], "benchmark"))
