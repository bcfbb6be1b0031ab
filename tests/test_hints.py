"""Commands that messages print work when pasted, whatever the data, the network and the place."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
from omegaconf import OmegaConf
from PIL import Image

from eakd.classification import evaluate_checkpoint
from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.training.hints import teacher_command, written
from eakd.training.run import run

ODD = "odd, pa=th [1] {x} 'y' $HOME"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images whose name needs quotes, for Hydra and for the shell."""
    folder = tmp_path_factory.mktemp("images") / ODD
    rng = np.random.default_rng(0)
    for split, label, number in (
        (split, label, number)
        for split in ("train", "test")
        for label in ("a b", "c")
        for number in range(6)
    ):
        path = folder / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return folder


def refusal(overrides, config_name="train"):
    """What is said when there is no trained teacher."""
    config = compose(overrides, config_name)
    with pytest.raises(UserError, match="found no trained") as caught:
        evaluate_checkpoint(config) if config_name == "evaluate" else run(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def command_in(message):
    (command,) = re.findall(r"python \S*scripts/train\.py .*$", message)
    return command


def composed(command):
    """The config that a command asks for."""
    python, script, *words = shlex.split(command)
    assert python == "python" and Path(script).resolve() == ROOT / "scripts" / "train.py"
    return compose(words)


def raw(node):
    node = OmegaConf.to_container(node)
    for key in ("checkpoint", "table"):
        node.pop(key, None)
    return node


CASES = {
    "digits": [],
    "digits of another size": ["data.train_per_class=4", "data.mean=[0.1,0.2,0.3]"],
    "own images": ["data=image_folder", "data.name=mine", "{root}", "teacher=resnet8"],
    "images called as a known set": ["data=image_folder", "data.name=cifar100", "{root}"],
    "timm": ["teacher=timm", "teacher.name=resnet18.a1_in1k", "teacher.feature_indices=[1,2]"],
    "timm's name in the zoo": ["teacher=vit_b", "teacher.input_size=32", "teacher.pretrained=null"],
    "own class": ["teacher._target_=eakd.models.resnet8", "teacher.name='my net'"],
    "own places": ["checkpoint_root='{tmp}/a, b=[c]'", "output_root='{tmp}/out put'"],
    "added and removed": ["+teacher.published_bn_momentum=true", "~data.plan", "~data.task"],
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_that_trains_a_teacher_trains_that_teacher(name, images, tmp_path):
    default = [f"checkpoint_root={tmp_path}/checkpoints", f"output_root={tmp_path}/outputs"]
    root = f"data.root={written(str(images))}"
    overrides = default + [
        root if word == "{root}" else word.replace("{tmp}", str(tmp_path)) for word in CASES[name]
    ]
    config = compose(overrides)
    found = composed(command_in(refusal(overrides)))
    assert raw(found.data) == raw(config.data)
    assert raw(found.student) == raw(config.teacher)
    assert found.distiller.name == "none" and found.save_teacher
    assert found.checkpoint_root == config.checkpoint_root
    assert found.output_root == config.output_root
    assert list(tmp_path.rglob("*.json")) == []


def test_a_known_network_and_set_are_called_by_their_names(monkeypatch, tmp_path):
    words = "scripts/train.py data=digits student=resnet20 distiller=none save_teacher=true"
    monkeypatch.chdir(ROOT)
    assert teacher_command(compose()) == f"python {words}"
    monkeypatch.chdir(tmp_path)  # from where the script has another path
    assert teacher_command(compose()) == f"python {ROOT}/{words}"


def test_an_evaluation_names_the_same_command(tmp_path):
    message = refusal(["model=resnet56", f"checkpoint_root={tmp_path}"], "evaluate")
    found = composed(command_in(message))
    assert found.student.name == "resnet56" and found.checkpoint_root == str(tmp_path)


def test_the_command_runs_in_a_shell_and_then_the_students_does(images, tmp_path):
    small = ["recipe.epochs=1", "recipe.batch_size=4"]
    overrides = [
        *("data=image_folder", "data.name=mine", f"data.root={written(str(images))}"),
        *("teacher=resnet8", "student=resnet8", "data.crop_padding=1", *small),
        *(f"checkpoint_root={written(f'{tmp_path}/{ODD}')}", f"output_root={tmp_path}/outputs"),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        f"{command_in(refusal(overrides))} {shlex.join(small)}",
        shell=True,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ODD / "mine" / "resnet8.safetensors").is_file()
    assert run(compose(overrides))["teacher"] == "resnet8"


def test_the_command_names_the_directory_of_ones_own_configs(tmp_path):
    folder = tmp_path / "my configs"
    for name, text in {
        "data/mine.yaml": "defaults: [digits, _self_]\nname: called otherwise\n",
        "model/net.yaml": "name: net\n_target_: eakd.models.resnet8\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    words = ["scripts/train.py", f"--config-dir={folder}", "data=mine"]
    words += ["teacher=net", f"output_root={tmp_path}", f"checkpoint_root={tmp_path}"]
    refused = processes.run(words)
    rest = shlex.split(command_in(refused.stderr.strip()))[1:]
    assert {"data=mine", "student=net"} < set(rest) and len(rest) == 8
    shown = processes.run([*rest, "--cfg", "job", "--package", "student"])
    assert "eakd.models.resnet8" in shown.stdout, shown.stderr


def test_the_way_out_of_damaged_checkpoints(tiny, tmp_path):
    overrides = [*tiny, "distiller=none", f"run_dir={tmp_path}"]
    run(compose(overrides))
    (tmp_path / "summary.json").unlink()
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"set resume=false") as caught:
        run(compose(overrides))
    assert run(compose([*overrides, *re.findall(r"resume=\w+", str(caught.value))]))["epochs"] == 2


def test_a_missing_plugin_names_an_extra_that_exists():
    from eakd.composing import EXTRAS

    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in EXTRAS.values():
        assert re.search(rf"^{extra} = \[", project, re.M)


VALUES = ["a", "a b", " a", "", "true", "null", "1", "1e3", "nan", "a,b", "a=b", "[x]", "{x}"]
VALUES += ["x:y", "(b)", "~/x", "${.name}", '${oc.env:X,"a b"}', 'a"b', "a'b", "a\\", 'a\\"b', "é"]
VALUES += [None, True, 1.5, 1e-5, -2, float("inf"), [1, "a, b", None, [2.0]], [], {"a": ["b c"]}]


@pytest.mark.parametrize("value", VALUES)
def test_every_value_can_be_written(value):
    word = f"+teacher.key={written(value)}"
    found = OmegaConf.to_container(compose([word]))["teacher"]["key"]
    assert found == value and type(found) is type(value)
    assert shlex.split(shlex.join([word])) == [word]
