"""The examples of docs/extend.md work, through the command line, from a folder of one's own."""

import json
import os
import re

import processes
import pytest

from eakd.config import ROOT

PAGE = ROOT / "docs" / "extend.md"


def section(title, language):
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)[0]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    for group, name, title in (("model", "tiny", "A model"), ("data", "stripes", "A data set")):
        (folder / "mine" / group).mkdir(parents=True)
        (folder / f"{name}.py").write_text(section(title, "python"))
        (folder / "mine" / group / f"{name}.yaml").write_text(section(title, "yaml"))
    (folder / "mine" / "tables").mkdir()
    table = section("A folder of your own", "yaml")
    (folder / "mine" / "tables" / "first.yaml").write_text(table)
    return folder


def python(mine, *words):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{mine}"}
    return processes.run(words, env=environment)


def train(mine, tmp_path, *words):
    result = python(
        mine,
        *("scripts/train.py", f"--config-dir={mine / 'mine'}", "recipe.epochs=3", "device=cpu"),
        *(f"output_root={tmp_path / 'outputs'}", f"checkpoint_root={tmp_path / 'checkpoints'}"),
        *words,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_model_data_set_and_figure(mine, tmp_path):
    train(mine, tmp_path, "data=stripes", "student=tiny", "distiller=none", "save_teacher=true")
    pair = ["data=stripes", "teacher=tiny", "student=tiny", "student.width=4"]
    for method in ("kd", "ea_kd", "ea_reviewkd"):  # logits, and the maps of all stages
        assert f"{method}: last" in train(mine, tmp_path, *pair, f"distiller={method}")
    runs = sorted((tmp_path / "outputs" / "stripes" / "tiny-tiny").glob("*kd/*"))
    assert len(runs) == 3
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert summary["top1_best"] > 80  # stripes are easy

    (tmp_path / "figure3.py").write_text(section("A figure", "python"))
    result = python(mine, tmp_path / "figure3.py", tmp_path / "figure.png", *runs)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_table(mine, tmp_path):
    (line,) = section("A folder of your own", "console").splitlines()
    words = line.replace("--config-dir=mine", f"--config-dir={mine / 'mine'}").split()[1:]
    result = python(mine, *words, f"output_root={tmp_path}", f"checkpoint_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    assert "table first (protocol default, scale paper): " in result.stdout


def test_the_table_of_lines_is_true():
    text = PAGE.read_text(encoding="utf-8")
    rows = {
        row.split("|")[1].strip(): [int(n) for n in re.findall(r"(\d+) lines?", row)]
        for row in text.splitlines()
        if row.startswith("| a ")
    }
    method = (ROOT / "docs" / "add-a-method.md").read_text(encoding="utf-8")
    python, yaml = (
        re.findall(rf"^```{name}\n(.*?)^```", method, re.M | re.S) for name in ("python", "yaml")
    )
    toys = ROOT / "tests" / "toys"

    def lines(*texts):
        return [len(text.splitlines()) for text in texts]

    def configs(*names):
        found = [path for name in names for path in (toys / "configs").rglob(f"{name}.yaml")]
        return sum(lines(*(path.read_text() for path in found)))

    assert rows == {
        "a method": lines(python[0], yaml[0]),
        "a weighting": lines(python[1]),
        "a weighting by predictions": lines(python[2]),
        "a weighting by logits": lines(python[3], yaml[1]),
        "a model": lines(section("A model", "python"), section("A model", "yaml")),
        "a data set": lines(section("A data set", "python"), section("A data set", "yaml")),
        "a data set of class folders": [],
        "a figure": lines(section("A figure", "python")),
        "a domain: language": [
            *lines((toys / "language.py").read_text()),
            configs("numbers", "words", "tiny_gpt"),
        ],
        "a domain: boxes": [
            *lines((toys / "boxes.py").read_text()),
            configs("scenes_toy", "regions", "region_head"),
        ],
    }
