"""The examples of docs/add-a-method.md work: on every family, with their EA form, benchmarked."""

import os
import re
import sys

import processes
import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.config import ROOT, method_label
from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.errors import UserError
from eakd.factors import FACTORS, RULES
from eakd.weighting import Weighting

PAGE = ROOT / "docs" / "add-a-method.md"
FAMILIES = [
    "resnet8",
    "resnet8x4",
    "resnet18",
    "wrn_16_1",
    "vgg8",
    "mobilenetv2",
    "mobilenetv2_tiny",
    "shufflenetv1",
    "shufflenetv2",
    "timm",
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's own folder: the page's files, and the words that make every command see them."""
    folder = tmp_path_factory.mktemp("mine")
    hint, line, rule, doubt = blocks("python")
    assert len(hint.splitlines()) < 45
    assert len(line.splitlines()) == len(rule.splitlines()) == 1
    hint_yaml, doubt_yaml = blocks("yaml")
    for name in ("distiller", "weighting"):
        (folder / "mine" / name).mkdir(parents=True)
    (folder / "hint_of_the_docs.py").write_text(hint)
    (folder / "doubt.py").write_text(doubt)
    text = hint_yaml.replace("eakd.distillers.hint", "hint_of_the_docs")
    (folder / "mine" / "distiller" / "hint.yaml").write_text(text)
    (folder / "mine" / "weighting" / "doubt.yaml").write_text(doubt_yaml)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("hint_of_the_docs", "doubt"):
        sys.modules.pop(name, None)


def script(mine, name, *words):
    return processes.run(
        [f"scripts/{name}.py", f"--config-dir={mine / 'mine'}", *words],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{mine}"},
    )


def test_the_method_and_its_ea_form_train(mine, tiny_with_teacher, tmp_path):
    weights = {}
    for name in ("hint", "ea_hint"):
        place = f"run_dir={tmp_path / name}"
        result = script(mine, "train", *tiny_with_teacher, f"distiller={name}", place)
        assert result.returncode == 0, result.stderr
        assert f"{name}: last" in result.stdout
        state = torch.load(tmp_path / name / "last.pt", weights_only=True)["distiller"]
        assert "projection.weight" in state
        weights[name] = load_file(tmp_path / name / "last.safetensors")["conv1.weight"]
    assert not torch.equal(weights["hint"], weights["ea_hint"])


@pytest.mark.parametrize("teacher", ["resnet8x4", "vgg8"])
@pytest.mark.parametrize("student", FAMILIES)
def test_the_method_runs_on_every_family(mine, teacher, student):
    from hint_of_the_docs import Hint

    from eakd.classification.build import build_model

    config = compose([f"teacher={teacher}", f"student={student}", "data=cifar100"])
    if student == "timm":
        config.student.architecture = "mobilenetv3_small_050"  # whose classifier is wider
    networks = {role: build_model(config[role], role, 100) for role in ("student", "teacher")}
    method = Hint(**networks, weighting=Weighting("ea")).train()
    images, targets = torch.randn(2, 3, 32, 32), torch.tensor([3, 97])
    batch = Batch(images, targets, torch.arange(2))
    total = method.total(method(batch, Progress(0, 1, 0)))
    total.loss.backward()
    assert total.loss.isfinite() and method.projection.weight.grad.abs().sum() > 0


def test_the_method_is_benchmarked(mine):
    small = ["methods=[kd,hint]", "steps=10", "rounds=1", "batch_size=4", "threads=1"]
    result = script(mine, "benchmark", *small, "teacher=resnet8")
    assert result.returncode == 0, result.stderr
    assert "| hint |" in result.stdout


def table_line(number):
    """Name and function of the line that a block of the page adds to a table."""
    (line,) = blocks("python")[number].splitlines()
    return eval("{" + line + "}").popitem()  # our own page


def test_a_factor_is_one_line(monkeypatch):
    name, function = table_line(1)
    monkeypatch.setitem(FACTORS, name, function)
    student, teacher = torch.randn(2, 6, 10)
    weighting = Weighting(name)
    weight = weighting(student, teacher)
    seen = weighting.entropies(student, teacher)
    torch.testing.assert_close(weight, (seen.teacher - seen.student).abs() / seen.bound)


def test_a_rule_is_one_line(monkeypatch):
    name, function = table_line(2)
    monkeypatch.setitem(RULES, name, function)
    student, teacher = torch.randn(2, 6, 10)
    labels = torch.arange(6)
    terms = Terms({"kd": torch.ones(6)}, student, teacher, targets=labels)
    found = Distiller(torch.nn.Identity(), weighting=Weighting(name)).total(terms)
    expected = 1 - torch.softmax(teacher, dim=-1)[labels, labels]
    torch.testing.assert_close(found.weight, expected)


def test_a_weighting_of_ones_own_trains(mine, tiny_with_teacher, tmp_path):
    place = f"run_dir={tmp_path / 'run'}"
    result = script(mine, "train", *tiny_with_teacher, "weighting=doubt", place)
    assert result.returncode == 0, result.stderr
    assert "kd+Doubt: last" in result.stdout
    first = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    assert '"weight_mean"' in first and (tmp_path / "run" / "dynamics.jsonl").exists()
    other = script(mine, "train", *tiny_with_teacher, "weighting=doubt", "weighting.power=1", place)
    assert other.returncode == 2 and "weighting.power" in other.stderr  # another run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("+weighting.strength=2", "error: weighting.strength: found a key that doubt.Doubt does"),
        ("weighting._target_=doubt.Nothing", "error: weighting._target_: found 'doubt.Nothing'"),
        ("weighting._target_=eakd.training.Recipe", "error: weighting._target_: found 'eakd.tr"),
        ("weighting._target_=pathlib.PurePath", "error: weighting._target_: found 'pathlib.Pu"),
    ],
)
def test_wrong_keys_of_ones_own_class_are_one_line(
    mine, tiny_with_teacher, tmp_path, words, message
):
    place = f"run_dir={tmp_path / 'run'}"
    result = script(mine, "train", *tiny_with_teacher, "weighting=doubt", words, place)
    assert result.returncode == 2
    (found,) = result.stderr.strip().splitlines()
    assert found.startswith(message), found
    assert not (tmp_path / "run").exists()


def test_a_weighting_by_logits_is_refused_where_only_entropies_are_known():
    from toys.language import SequenceKD, Text, TinyGPT, number_lines

    method = SequenceKD(TinyGPT(), TinyGPT(), Weighting("ea"))
    entropies = method.weighting.entropies
    method.weighting = lambda student_logits, teacher_logits: student_logits[..., 0]
    method.weighting.entropies = entropies
    batch = next(Text(number_lines()).epoch(1))[0]
    with pytest.raises(UserError, match="whose terms tell no logits"):
        method.total(method(batch, Progress(0, 1, 0)))


def test_an_old_ea_file_of_ones_own_keeps_its_name():
    """Before EA forms were generated, the guide told users to write them."""
    config = compose(["distiller=kd", "weighting=ea"])
    config.distiller.name = "ea_hint"
    assert method_label(config) == "ea_hint"
