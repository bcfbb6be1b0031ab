"""Weights, names and interrupted runs of version 0.1, which later versions must not change.

``tests/golden/unchanged.json`` was written by version 0.1 (commit 31ecb12) with `outcome`, on two
kinds of processors, and
``interrupted_0.1`` is a run of its that SIGTERM stopped in the second of three epochs.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from unchanged_runs import METHODS, SEEDS, digest, kernels, make_teacher, outcome, overrides

from eakd.composing import compose
from eakd.config import ROOT, run_name
from eakd.training.run import run

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "golden"
STORED = json.loads((GOLDEN / "unchanged.json").read_text())


@pytest.fixture(scope="module")
def same_kernels():
    """Whether this machine computes the bits of the one that the digests come from."""
    if kernels() not in STORED:
        pytest.skip("another torch or processor than the digests come from: other rounding")
    return STORED[kernels()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_directories_have_their_names(method, seed, tmp_path):
    config = compose(overrides(method, seed, tmp_path))
    for runs in STORED.values():
        assert run_name(config) == runs[f"{method} {seed}"]["name"]


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_bit_identical(method, tmp_path, same_kernels):
    for seed in SEEDS:
        assert outcome(method, seed, tmp_path) == same_kernels[f"{method} {seed}"]


def test_an_interrupted_run_of_version_0_1_continues(tmp_path, caplog):
    make_teacher(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN / "interrupted_0.1", folder)
    before = (folder / "metrics.jsonl").read_text()
    caplog.set_level("INFO")
    summary = run(compose([*overrides("ea_ctkd", 0, tmp_path), f"run_dir={folder}"]))
    assert "continuing after epoch 1, step 4" in caplog.text
    lines = (folder / "metrics.jsonl").read_text()
    assert lines.startswith(before) and len(lines.splitlines()) == 3
    second = json.loads(lines.splitlines()[1])
    assert 0 < second["share_low_entropy"] < 1 and second["weight_mean"] > 0
    assert "train_target_probability" not in second  # half of the epoch never measured it
    dynamics = [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in dynamics] == [2, 3]
    assert summary["epochs"] == 3
    first = next(iter(STORED))  # the kind of processor that trained the first half
    if kernels() == first:
        found = digest(load_file(folder / "last.safetensors"))
        assert found == STORED[first]["ea_ctkd 0"]["student"]


def test_digests_see_every_bit():
    weights = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    flipped = {**weights, "a": weights["a"].clone()}
    flipped["a"].view(torch.int32)[2] ^= 1
    assert digest(weights) == digest(dict(reversed(weights.items()))) != digest(flipped)
