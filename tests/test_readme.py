"""Every command of the README does what it says: run, shrunk to seconds."""

import os
import re
from pathlib import Path

import processes
import pytest
from pages import PAGES, ROOT, blocks

from eakd.models import resnet20
from eakd.models.weights import save_weights


def commands(page):
    """``python scripts/…`` lines of shell blocks."""
    for block in blocks(page, "bash"):
        yield from (words[1:] for words in block.commands() if words[0] == "python")


README = list(commands(ROOT / "README.md"))
TRAIN = [words for words in README if words[0] == "scripts/train.py" and "--help" not in words]


def run(words, **environment):
    return processes.run(words, env={**os.environ, **environment})


# What makes a run of a data set take seconds.
SMALL = {
    "scenes": ["recipe.steps_per_epoch=2", "data.train_images=16", "data.test_images=4"],
    "python_docs": ["recipe.steps_per_epoch=2", "recipe.warmup_epochs=0"],
    "digits_pool": ["data.train_per_class=4"],
}


def shrunk(words, tmp_path):
    """The same command on little data for one epoch, writing elsewhere; images are digits."""
    data = next((word[5:] for word in words if word.startswith("data=")), "digits_pool")
    data = data if data in SMALL else "digits_pool"
    small = [re.sub(r"^data=.*", f"data={data}", word) for word in words]
    small = [word for word in small if not word.startswith(("data.root", "recipe.epochs"))]
    return [
        *small,
        *("recipe.epochs=1", *SMALL[data]),
        *(f"output_root={tmp_path / 'outputs'}", f"checkpoint_root={tmp_path / 'checkpoints'}"),
    ]


@pytest.mark.slow
def test_every_training_command_of_the_readme_runs(tmp_path):
    assert len(TRAIN) >= 6
    for name in ("resnet20", "resnet32x4"):  # the teachers that the commands assume
        teacher = ["scripts/train.py", f"student={name}", "distiller=none", "save_teacher=true"]
        teacher.append("data=digits_pool")
        result = run(shrunk(teacher, tmp_path))
        assert result.returncode == 0, result.stderr
    for words in TRAIN:
        result = run(shrunk(words, tmp_path))
        assert result.returncode == 0, (words, result.stderr)
        assert "last" in result.stdout or "finished before" in result.stdout
    # The sweep again: nothing is left to do.
    sweep = next(words for words in TRAIN if "-m" in words)
    result = run(shrunk(sweep, tmp_path))
    assert result.returncode == 0 and "epoch 1/1" not in result.stdout
    assert result.stdout.count("finished before") == 18

    report = next(words for words in README if words[0] == "scripts/report.py")
    result = run([word.replace("runs=outputs", f"runs={tmp_path}/outputs") for word in report])
    assert result.returncode == 0, result.stderr
    assert "ea_kd, entropy_temperature=2 | 3 |" in result.stdout and "| kd | 3 |" in result.stdout
    result = run([report[0], f"runs={tmp_path}/outputs/digits_pool/resnet20-resnet8/**"])
    assert result.returncode == 2 and "weighting.entropy_temperature" in result.stderr
    export = next(words for words in README if words[0] == "scripts/export.py")
    places = {"run=outputs": f"run={tmp_path}/outputs", "to=": f"to={tmp_path}/"}
    for start, place in places.items():
        export = [re.sub(f"^{start}", place, word) for word in export]
    result = run(export)
    assert result.returncode == 0 and "top-1 % in the last epoch" in result.stdout, result.stderr
    evaluate = next(words for words in README if words[0] == "scripts/evaluate.py")
    result = run([*evaluate, f"checkpoint_root={tmp_path / 'checkpoints'}"])
    assert result.returncode == 0 and "top-1" in result.stdout, result.stderr


@pytest.mark.slow
def test_every_reproduce_command_of_the_readme_runs(tmp_path):
    tables = [words for words in README if words[0] == "scripts/reproduce.py"]
    assert len(tables) >= 5
    for words in tables:
        small = ["scale=smoke", "pairs=[resnet14-resnet8]", "seeds=[0]"]
        small += ["methods=[kd,ea_kd]" if "table=2" in words else "methods=[kd]"]
        small += ['overrides=["recipe.epochs=1"]', f"output_root={tmp_path / 'outputs'}"]
        small += [f"checkpoint_root={tmp_path}"]
        given = {word.partition("=")[0] for word in small}
        named = [word for word in words if word.partition("=")[0] not in given]
        result = run([*named, *small])
        assert result.returncode == 0, (words, result.stderr)
        if not any(word.startswith("mode=") for word in words):
            assert "runs are finished" in result.stdout


@pytest.mark.slow
def test_every_figure_command_of_the_readme_runs(tmp_path):
    figures = [words for words in README if words[0] == "scripts/figure.py"]
    assert len(figures) >= 3
    roots = [f"output_root={tmp_path / 'outputs'}", f"checkpoint_root={tmp_path / 'checkpoints'}"]
    small = ["scale=smoke", "pairs=[resnet14-resnet8]", 'overrides=["recipe.epochs=2"]', *roots]
    watched = next(words for words in figures if "figure=run" in words)
    for words in figures:
        if words is not watched:
            given = {word.partition("=")[0] for word in small}
            result = run([*(w for w in words if w.partition("=")[0] not in given), *small])
            assert result.returncode == 0, (words, result.stderr)
    for name in ("2a", "3", "5"):
        assert (tmp_path / "outputs" / "figures" / f"{name}-authors-smoke" / "figure.png").is_file()
    words = [
        re.sub(r"^runs=.*", f"runs={tmp_path}/outputs/digits_pool/**/kd/seed0-*", word)
        for word in watched
    ]
    result = run([*words, *roots])
    assert result.returncode == 0, result.stderr


def test_help_lists_groups_and_values():
    for script in (
        "train",
        "evaluate",
        "benchmark",
        "quickstart",
        "report",
        "reproduce",
        "teachers",
        "convert",
        "figure",
        "export",
        "migrate",
    ):
        result = run([f"scripts/{script}.py", "--help"])
        assert result.returncode == 0, result.stderr
        assert "eakd:" in result.stdout
    text = run(["scripts/train.py", "--help"]).stdout
    for words in (
        "teacher: ",
        "student: ",
        "distiller: ",
        "weighting: confidence",
        "data: cifar10",
    ):
        assert words in text
    text = run(["scripts/reproduce.py", "--help"]).stdout
    assert "distiller:" not in text  # it takes no group
    assert "mode: plan, run, status, report" in text and "reproduce.py table=2" in text


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = resnet20(num_classes=10)
    save_weights(teacher, Path("checkpoints/digits_pool/resnet20.safetensors"))
    first, notebook = (block.text for block in blocks(ROOT / "README.md", "python"))
    assert len(notebook.splitlines()) <= 16
    for block in (first, notebook):
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "outputs" / "mine" / "summary.json").is_file()


def test_links_to_files_exist():
    written_by_the_reader = re.compile(
        r"NAME|hint|\.safetensors$|\.pth$|^outputs/(quickstart|figures)"
    )
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        names = re.findall(
            r"`((?:docs|configs|eakd|scripts|checkpoints|outputs|tests)/[\w./-]+\.\w+)`", text
        )
        for name in names + re.findall(r"\]\((docs/[\w./-]+)\)", text):
            if not written_by_the_reader.search(name):
                assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scripts/train.py", "teacher=resnet99"], "teacher: found 'resnet99', allowed is one of"),
        (["scripts/train.py", "recipe.epoch=2"], "recipe.epoch: found an unknown key"),
        (["scripts/train.py", "recipe.epochs=-2"], "recipe.epochs: found -2"),
        (["scripts/evaluate.py", "checkpoint=nowhere.pth"], "found no file 'nowhere.pth'"),
        (["scripts/report.py"], "runs"),
        (["scripts/report.py", "runs=nowhere/*"], "found no finished run in 'nowhere/*'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words, expected, tmp_path):
    where = [f"output_root={tmp_path}"] if words[0] == "scripts/train.py" else []
    result = run([*words, *where])
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_goes_on_after_a_failure_and_says_so(tmp_path):
    overrides = ["distiller=none", "recipe.epochs=1", "recipe.lr=-1,0.1", "data.train_per_class=4"]
    result = run(["scripts/train.py", "-m", *overrides, f"output_root={tmp_path}"])
    assert result.returncode == 2
    assert "recipe.lr: found -1" in result.stderr
    assert len(list(tmp_path.glob("**/summary.json"))) == 1
