"""Our sweep for W&B, its command made and started by W&B's own agent."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from wandb.wandb_agent import Agent

from eakd.composing import compose
from eakd.config import CONFIGS

ROOT = Path(__file__).parents[2]
SWEEP = yaml.safe_load((CONFIGS / "sweeps" / "wandb.yaml").read_text(encoding="utf-8"))
# What its server may propose: the first, or the lowest, of each key.
PROPOSED = {
    key: node.get("value", node.get("min", *node.get("values", [])[:1]))
    for key, node in SWEEP["parameters"].items()
}


def test_the_metric_is_one_of_the_validation_split_and_each_value_composes():
    assert SWEEP["metric"] == {"name": "val_top1", "goal": "maximize"}
    assert PROPOSED["data.val_fraction"] > 0
    for method in SWEEP["parameters"]["distiller"]["values"]:
        given = PROPOSED | {"distiller": method}
        config = compose([f"{key}={value}" for key, value in given.items()])
        assert config.weighting.kind == "ea" and config.data.val_fraction > 0


@pytest.mark.slow
def test_an_agent_runs_it(tiny_with_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name, value in (("SWEEP_ID", "efgh5678"), ("RUN_ID", ""), ("SWEEP_PARAM_PATH", "")):
        monkeypatch.setenv(f"WANDB_{name}", value)  # the agent changes them
    small = dict(word.split("=", 1) for word in tiny_with_teacher)
    small |= {"data": "digits", "recipe.epochs": 1, "run_dir": f"{tmp_path}/run", "threads": 1}
    args = {key: {"value": value} for key, value in (PROPOSED | small).items()}
    agent = SimpleNamespace(
        _sweep_command=list(SWEEP["command"]), _function=None, _in_jupyter=False
    )
    agent._forward_signals, agent._run_processes = False, {}
    command = {"run_id": "abcd1234", "args": args, "program": SWEEP["program"]}
    Agent._command_run(agent, command)  # its server would send the command
    assert agent._run_processes["abcd1234"].wait() == 0

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["method"] == SWEEP["parameters"]["distiller"]["values"][0]
    assert summary["selection"] == "val"
    (log,) = tmp_path.glob("wandb/offline-run-*-abcd1234/*.wandb")
    assert SWEEP["metric"]["name"].encode() in log.read_bytes()
