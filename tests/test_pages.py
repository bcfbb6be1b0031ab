"""Every block of code in README and docs is run or composed, or says in its source why it is not.

The README's commands also run, shrunk to seconds, in ``test_readme.py``.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from pages import PAGES, ROOT, blocks

from eakd.composing import compose
from eakd.config import CONFIGS

# Pages whose Python blocks are run by a test of their own.
RUN_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/add-a-method.md": "tests/test_add_a_method.py",
    "docs/extend.md": "tests/test_extend.py",
}
SHELL, OUTPUT = ("bash", "console"), ("", "text")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PARSER = OverridesParser.create()

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def name_of(page):
    return str(page.relative_to(ROOT))


@each_page
def test_every_block_is_of_a_kind_that_is_checked(page):
    for block in blocks(page):
        assert block.language in (*SHELL, *OUTPUT, "python", "yaml") or (
            block.language.startswith("{")  # of the site's generator, which refuses wrong ones
        ), f"{block.place}: {block.language}"
        assert block.reason is None or block.language in (*SHELL, "python"), block.place
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block.place
        if block.language == "python" and block.reason is None:
            run_by = RUN_ELSEWHERE.get(name_of(page)) or name_of(page) in PREPARED
            assert run_by, f"{block.place}: neither run nor marked: <!-- not run: REASON -->"


# Commands


@pytest.mark.slow
@each_page
def test_every_command_is_one_that_works(page, own_configs, tmp_path, monkeypatch):
    offer_files_of(page, own_configs, tmp_path, monkeypatch)
    for block in blocks(page, *SHELL):
        for words in block.commands() if block.reason is None else ():
            try:
                check(words, tmp_path)
            except Exception as error:
                raise AssertionError(f"{block.place}: {' '.join(words)}: {error}") from error


def offer_files_of(page, own_configs, tmp_path, monkeypatch):
    """The configs that a page gives its reader, and the Python that they name, as if written."""
    files, python = {}, {}
    code = blocks(page, "python")
    for block in blocks(page, "yaml"):
        names = re.findall(r"`(?:mine|configs)/([\w/]+\.yaml)`", block.before)
        target = re.search(r"_target_: ([\w.]+)\.(\w+)", block.text)
        if names and target:
            defined = re.compile(rf"^(class|def) {target[2]}\b", re.M)
            module = f"page_{target[1].rpartition('.')[2]}"
            (python[module],) = (c.text for c in code if defined.search(c.text))
            files[names[-1]] = block.text.replace(target[0], f"_target_: {module}.{target[2]}")
        elif names:
            files[names[-1]] = block.text
    for module, text in python.items():
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    if files:
        monkeypatch.syspath_prepend(str(tmp_path))
        own_configs(files)


def check(words, tmp_path):
    """Compose a command of ours in every value that it sweeps, plan what it plans."""
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(words[1:]) <= set(targets), targets
    elif words[0] in ("pip", "pytest", "source"):
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)) if words[0] == "pip" else ():
            assert all(re.search(rf"^{name} = \[", PROJECT, re.M) for name in extra.split(","))
    else:
        check_program(words, tmp_path)


def check_program(words, tmp_path):
    if words[0] == "torchrun":
        words = ["python", *words[[w.startswith("scripts/") for w in words].index(True) :]]
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"no {words[1]}"
        name, words = Path(words[1]).stem, words[2:]
    else:
        assert re.search(rf"^{words[0]} = ", PROJECT, re.M), "no such command"
        name, words = words[0].removeprefix("eakd-").replace("-", "_"), words[1:]
    if "--cfg" in words:
        del words[words.index("--cfg") : words.index("--cfg") + 2]
    flags = ("-m", "--help", "--resolve")
    overrides = [w for w in words if w not in flags and not w.startswith("--config-dir=")]
    for combination in combinations(overrides):
        config = compose(combination, name)
        if name in ("reproduce", "figure"):
            plan(name, config, tmp_path)


def values(swept):
    """What a key is swept over; of a search's interval, its ends."""
    if swept.is_interval_sweep():
        return [str(swept.value().start), str(swept.value().end)]
    return list(swept.sweep_string_iterator())


def combinations(overrides):
    """The first values of a sweep, and others until each value of each key was there."""
    swept = {
        parsed.get_key_element(): values(parsed)
        for parsed in PARSER.parse_overrides(overrides)
        if parsed.is_sweep_override()
    }
    for number in range(max(map(len, swept.values()), default=1)):
        yield [
            f"{key}={swept[key][number % len(swept[key])]}" if key in swept else override
            for override in overrides
            for key in [override.partition("=")[0]]
        ]


PLANNED = set()  # by what was typed: pages name the same tables


def plan(name, config, tmp_path):
    """What a table or figure is made of; a glob of the reader's runs is taken as it is."""
    if name == "figure" and config.runs is not None:
        return
    config.output_root, config.checkpoint_root = f"{tmp_path}/outputs", f"{tmp_path}/checkpoints"
    config.mode, config.into, config.overrides = "plan", None, []
    known = str({key: config[key] for key in config if not key.endswith("_root")})
    if known not in PLANNED:
        from eakd.analysis.command import figure
        from eakd.reproduce.command import reproduce

        PLANNED.add(known)
        {"reproduce": reproduce, "figure": figure}[name](config)


HELPS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "footer:" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", HELPS, ids=lambda path: path.stem)
def test_the_examples_of_a_help_compose(path):
    footer = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["help"]["footer"]
    examples = re.findall(r"^  \$\{command:(\w+)\}(.*)$", footer, re.M)
    assert examples
    for name, words in examples:
        overrides = [word for word in shlex.split(words) if word != "-m"]
        for combination in combinations(overrides):
            compose(combination, name)


# Python: the names that a block takes for granted, and the files


def detector(tmp_path):
    from eakd.detection.detectors import frcnn_r18

    torch.manual_seed(0)
    ours = frcnn_r18(80, parts="torchvision", backbone_weights=None)
    return {"state": ours.state_dict(), "image": torch.rand(3, 32, 48)}


def finished_runs(tmp_path):
    from recorded import segments_of, write_run

    for seed in (0, 1):
        lines = {"lines": lambda epoch: {"clean": segments_of([1.0] * 10)}}
        write_run(tmp_path / "outputs", "kd", seed, **lines)
    return {}


def language_model(tmp_path):
    from language.tiny_models import gpt2, tokenizer, write_lines

    rows = [{"prompt": "What is 1, 2, 3?", "output": "4, 5"}] * 2
    write_lines(tmp_path / "dev.jsonl", rows)
    return {"model": gpt2(), "tokenizer": tokenizer()}


def two_language_models(tmp_path):
    from language.tiny_models import save, write_lines
    from transformers import TrainingArguments

    for seed, name in enumerate(("student", "teacher")):
        save(tmp_path / name, seed)
    write_lines(tmp_path / "MY.jsonl", [{"prompt": "1, 2, 3", "output": "4, 5"}] * 4)
    settings = {"max_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    return {"arguments": TrainingArguments(str(tmp_path / "out"), use_cpu=True, **settings)}


def digits_and_teacher(tmp_path):
    from eakd.data import Pipeline, digits
    from eakd.models import resnet8
    from eakd.models.weights import save_weights
    from eakd.training import Compute

    compute, few = Compute.create(device="cpu"), digits(train_per_class=2)
    settings = {"batch_size": 16, "device": compute.device, "mean": [0.3] * 3, "std": [0.3] * 3}
    teacher = compute.place(resnet8(num_classes=10))
    save_weights(teacher, tmp_path / "checkpoints/digits_pool/resnet20.safetensors")
    return {"data": Pipeline(few, **settings), "teacher": teacher, "compute": compute}


def timm_networks(tmp_path):
    import timm

    student, teacher = (timm.create_model("test_resnet", num_classes=10) for _ in range(2))
    loader = [(torch.rand(4, 3, 64, 64), torch.arange(4))] * 2
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    named = {"student": student, "teacher": teacher, "loader": loader, "optimizer": optimizer}
    return {**named, "epochs": 1}


PREPARED = {
    "docs/detection-methods.md": detector,
    "docs/figures.md": finished_runs,
    "docs/language-evaluation.md": language_model,
    "docs/language.md": two_language_models,
    "docs/teacher-table.md": digits_and_teacher,
    "docs/timm.md": timm_networks,
}


@pytest.mark.parametrize("name", PREPARED)
def test_python_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "analysis"))
    monkeypatch.chdir(tmp_path)
    names = PREPARED[name](tmp_path)
    for block in blocks(ROOT / name, "python"):
        if block.reason is None:
            exec(compile(block.text, block.place, "exec"), names)  # our own page


# The site


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """A page outside the navigation, a broken link and a broken anchor are warnings."""
    pytest.importorskip("sphinx")
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    cells = [{"cell_type": "markdown", "source": ["# My notes\n", "See `docs/records.md`."]}]
    cells += [{"cell_type": "code", "source": ["first = 1"], "outputs": []}]
    (docs / "notes.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    index = (docs / "index.md").read_text(encoding="utf-8")
    (docs / "index.md").write_text(index.replace("\nmigrate\n", "\nmigrate\nnotes\n"))

    def build():
        words = ["-m", "sphinx", "-q", "-W", "--keep-going", docs, tmp_path / "site"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
        )

    result = build()
    assert result.returncode == 0, result.stderr
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="teachers.html"' in home and "eakd.weighting" in (
        tmp_path / "site" / "api" / "weighting.html"
    ).read_text(encoding="utf-8")
    notes = (tmp_path / "site" / "notes.html").read_text(encoding="utf-8")
    assert "My notes" in notes and 'href="records.html"' in notes and "first" in notes
    for page in (tmp_path / "site").rglob("*.html"):  # nothing is loaded from elsewhere
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//', html)

    more = "[a](records.md#nothing), [b](nothing.md), `docs/none.md`\n"
    (docs / "records.md").write_text((docs / "records.md").read_text() + more)
    (docs / "lost.md").write_text("# Lost\n")
    result = build()
    assert result.returncode == 1
    for words in ("in doc 'records': 'nothing'", "'nothing.md'", "document: '/none'", "lost.md"):
        assert words in result.stderr, result.stderr
