"""The rooms of docs/architecture.md: imports point one way, and light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "eakd"
SCRIPTS = PACKAGE.parent / "scripts"

# What commands do.
DOERS = {
    *("training", "classification", "language", "detection"),
    *("benchmark", "reproduce", "teachers", "analysis", "hub", "migrate"),
}

# room -> the rooms it may import from; files directly under eakd/ count as rooms of their own.
CONFIG = ("places", "config", "targets", "checking", "composing")
ALLOWED = {
    "errors": set(),
    "files": set(),
    "factors": set(),
    "workers": {"errors"},
    "topk": {"errors"},
    "download": {"errors", "files"},
    "seen": {"errors"},
    "weighting": {"errors", "factors", "seen"},
    "plotting": {"errors", "files"},
    "places": {"errors"},
    "config": {"errors", "factors", "places"},
    "targets": {"errors", "config"},
    "checking": {"errors", "config", "targets"},
    "composing": {"errors", "config", "targets", "checking"},
    "command_line": {"errors", "places", "config", "checking", "composing", "workers"},
    # Their files as our commands, by composing alone.
    "migrate": {"errors", *CONFIG, "training"},
    "commands": {"config", "targets", "command_line", *DOERS},
    "models": {"errors", "files"},
    "data": {"errors", "files", "download", "workers"},
    "distillers": {"errors", "weighting", "data", "models"},
    # Knows no domain: neither images nor any task but by its name in a data set's file.
    "training": {"errors", "files", "download", "weighting", *CONFIG, "distillers"},
    "classification": {
        *("errors", "files", "weighting", "topk", *CONFIG),
        *("data", "models", "distillers", "training"),
    },
    "language": {
        *("errors", "files", "factors", "weighting", "workers", *CONFIG),
        *("data", "distillers", "training"),  # of data, only the streams of random numbers
    },
    "detection": {
        *("errors", "files", "weighting", "workers", *CONFIG),
        *("data", "models", "distillers", "training"),
    },
    "benchmark": {
        *("errors", "files", "weighting", *CONFIG),
        *("data", "models", "distillers", "training", "classification", "detection", "language"),
    },
    "reproduce": {
        *("errors", "files", "plotting", *CONFIG, "command_line"),
        *("training", "classification", "benchmark"),  # quickstart is of images
        "language",  # evaluations after training
    },
    "search": {"errors", "files", "places", "config", "training"},  # of training, only the lock
    "teachers": {
        *("errors", "files", "download", *CONFIG),
        *("models", "training", "classification", "reproduce"),
    },
    # Students that leave: as folders, and to the hub.
    "hub": {
        *("errors", "files", *CONFIG),
        *("data", "models", "training", "language"),
    },
    # Other projects' loops; nothing imports it.
    "adapters": {"errors", "factors", "weighting", "data", "models", "distillers"},
    # Looks at what the others leave; nothing but commands imports it.
    "analysis": {
        *("errors", "files", "factors", "weighting", "plotting", "workers", *CONFIG),
        *("data", "models", "distillers", "training", "classification", "reproduce"),
        "detection",  # the regions that a run weighs
        "language",  # what language models say of answers, token by token
    },
}

LIGHT = (
    *("eakd", "eakd.config", "eakd.errors", "eakd.commands", "eakd.reproduce.command"),
    *("eakd.plotting", "eakd.analysis.command", "eakd.analysis.draw", "eakd.analysis.segments"),
)


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


@pytest.mark.parametrize("module", LIGHT)
def test_the_command_line_answers_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_help_answers_without_torch(script):
    code = (
        "import runpy, sys; del sys.argv[0]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


def test_weighting_needs_torch_only():
    code = (
        "import sys; from eakd import ea_weight, entropy;"
        "sys.exit(any(m in sys.modules for m in ('hydra', 'wandb', 'timm', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_files_are_read_in_one_sitting(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 120, f"{path}: {node.name} has {length} lines"


def test_the_loop_is_small_and_asks_for_no_domain():
    path = PACKAGE / "training" / "loop.py"
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 260
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, node.name
        if isinstance(node, ast.If):  # no `if task is …`, no isinstance of a domain's class
            names = {each.id for each in ast.walk(node.test) if isinstance(each, ast.Name)}
            assert "task" not in names
    for word in ("top1", "image", "accuracy", "token"):
        assert word not in text.lower().replace("`", ""), word


def test_the_seam_stays_small():
    tree = ast.parse((PACKAGE / "training" / "task.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for name in ("Task", "Data"):
        members = [n for n in classes[name].body if isinstance(n, ast.FunctionDef | ast.AnnAssign)]
        assert len(members) <= 6, name
