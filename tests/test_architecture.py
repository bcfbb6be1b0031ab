"""The rooms of docs/architecture.md: imports point one way, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eakd"

# room -> the rooms it may import from; files directly under eakd/ count as rooms of their own.
ALLOWED = {
    "errors": set(),
    "files": set(),
    "download": {"errors", "files"},
    "weighting": {"errors"},
    "workers": set(),
    "config": {"errors", "workers"},
    "models": {"errors", "files"},
    "data": {"errors", "files", "download"},
    "distillers": {"errors", "weighting", "data", "models"},
    "training": {
        *("errors", "files", "download", "weighting", "config"),
        *("data", "models", "distillers"),
    },
    "reproduce": {"errors", "files", "config", "data", "models", "distillers", "training"},
}


def imports_of(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_arrows_point_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in imports_of(path):
        parts = name.split(".")
        assert parts[0] not in ("scripts", "tests")
        if parts[0] == "eakd" and len(parts) > 1 and parts[1] != room:
            assert parts[1] in ALLOWED[room], f"{path} imports {name}"


@pytest.mark.parametrize("module", ["eakd", "eakd.config", "eakd.errors", "eakd.reproduce.command"])
def test_the_command_line_answers_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weighting_needs_torch_only():
    code = (
        "import sys; from eakd import ea_weight, entropy;"
        "sys.exit(any(m in sys.modules for m in ('hydra', 'wandb', 'timm', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
