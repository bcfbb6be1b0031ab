"""The example of docs/add-a-method.md is a whole method: it trains, is weighted, and resumes."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from eakd.config import compose
from eakd.training.run import run

PAGE = Path(__file__).parents[1] / "docs" / "add-a-method.md"


@pytest.fixture
def hint(tmp_path, monkeypatch):
    """The page's Python and YAML, importable as a user's own module."""
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    node = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)[0])
    assert len(code.splitlines()) < 40
    (tmp_path / "hint_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    node["_target_"] = "hint_of_the_docs.Hint"
    yield [f"+distiller.{key}={value}" for key, value in node.items() if key not in ("name",)]
    sys.modules.pop("hint_of_the_docs", None)


def test_the_example_runs(hint, tiny_with_teacher, tmp_path):
    overrides = ["distiller=none", "++distiller.name=hint"]
    overrides += [word.replace("+distiller", "++distiller") for word in hint]
    weights = {}
    for kind in ("uniform", "ea"):
        folder = tmp_path / kind
        summary = run(
            compose([*tiny_with_teacher, *overrides, f"weighting={kind}", f"run_dir={folder}"])
        )
        assert summary["method"] == ("hint" if kind == "uniform" else "ea_hint")
        state = torch.load(folder / "last.pt", weights_only=True)["distiller"]
        assert "projection.weight" in state
        weights[kind] = load_file(folder / "last.safetensors")["conv1.weight"]
    assert not torch.equal(weights["uniform"], weights["ea"])
