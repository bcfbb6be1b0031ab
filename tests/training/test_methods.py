"""Every method trains for real, through the whole run, and continues exactly."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.config import method_files
from eakd.training.run import run

IMAGES = [name for name in method_files() if "/" not in name]  # others lie in their domain's folder
METHODS = ["none", *IMAGES, *(f"ea_{name}" for name in IMAGES)]


@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_on_digits(method, tiny_with_teacher, tmp_path):
    summary = run(compose([*tiny_with_teacher, f"distiller={method}", f"run_dir={tmp_path}"]))
    assert summary["method"] == method
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))
        if method != "none":
            assert line["weight_std"] >= 0 and 0 <= line["share_high_entropy"] <= 1
            assert (line["weight_mean"] == 1) == (not method.startswith("ea_"))
    if method in ("ctkd", "ea_ctkd"):
        assert 1 <= lines[-1]["temperature"] <= 21


@pytest.mark.parametrize("method", ["ea_ctkd", "ea_mld_ls", "ea_reviewkd", "ea_fcfd"])
def test_methods_with_more_state_continue_exactly(method, tiny_with_teacher, tmp_path, monkeypatch):
    """Stop after the second of four epochs, as a kill would leave it, and go on."""
    job = [*tiny_with_teacher, f"distiller={method}", "recipe.epochs=4", "threads=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(compose([*job, f"run_dir={whole}"]))

    import eakd.training.state as state_module

    class Killed(Exception):
        pass

    save = state_module.save_checkpoint

    def save_then_die(directory, state):
        save(directory, state)
        if state["epoch"] == 2:
            raise Killed

    monkeypatch.setattr(state_module, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        run(compose([*job, f"run_dir={parts}"]))
    monkeypatch.setattr(state_module, "save_checkpoint", save)
    run(compose([*job, f"run_dir={parts}"]))
    expected, found = (load_file(folder / "last.safetensors") for folder in (whole, parts))
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    states = [torch.load(f / "last.pt", weights_only=True)["distiller"] for f in (whole, parts)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
