"""A YAML file of mdistiller or of a fork becomes the command that trains the same."""

import shlex

import processes
import pytest
import torch

from eakd.composing import compose
from eakd.errors import UserError
from eakd.migrate import migrate
from eakd.models import resnet8, resnet20
from eakd.models.weights import load_weights

SOLVER = """
SOLVER:
  BATCH_SIZE: 64
  EPOCHS: 240
  LR: 0.05
  LR_DECAY_STAGES: [150, 180, 210]
  LR_DECAY_RATE: 0.1
  WEIGHT_DECAY: 0.0005
  MOMENTUM: 0.9
  TYPE: "SGD"
"""


def pair(kind, teacher="resnet32x4", student="resnet8x4", more="", solver=SOLVER):
    names = f'  TYPE: "{kind}"\n  TEACHER: "{teacher}"\n  STUDENT: "{student}"\n'
    return f"DISTILLER:\n{names}{more}{solver}"


@pytest.fixture
def converted(tmp_path, capsys):
    """Convert a text: the words after the program's name, and the comments above."""

    def convert(text, *overrides):
        path = tmp_path / "theirs.yaml"
        path.write_text(text, encoding="utf-8")
        migrate(compose([f"from='{path}'", *overrides], "migrate"))
        *comments, command = capsys.readouterr().out.splitlines()
        program, script, *words = shlex.split(command)
        assert (program, script) == ("python", "scripts/train.py")
        assert all(line.startswith("# ") for line in comments)
        return words, comments

    return convert


BASE = ["data=cifar100", "teacher=resnet32x4", "student=resnet8x4"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # What equals our defaults is not said: the published protocols are the same.
        (pair("KD"), [*BASE, "distiller=kd"]),
        (pair("DKD"), [*BASE, "distiller=dkd"]),
        (pair("REVIEWKD") + "REVIEWKD: {REVIEWKD_WEIGHT: 5.0}", [*BASE, "distiller=reviewkd"]),
        (pair("NONE"), ["data=cifar100", "student=resnet8x4", "distiller=none"]),
        # What a file leaves out has the default of their code, not ours.
        (pair("REVIEWKD"), [*BASE, "distiller=reviewkd", "distiller.review_weight=1"]),
        (pair("KD", solver=""), [*BASE, "distiller=kd", "recipe.weight_decay=0.0001"]),
        (
            pair("DKD", "vgg13", "MobileNetV2"),
            [
                *("data=cifar100", "teacher=vgg13", "student=mobilenetv2", "distiller=dkd"),
                *("recipe.lr=0.05", "distiller.beta=8"),
            ],
        ),
        (
            pair("KD") + "KD: {TEMPERATURE: 2, LOSS: {CE_WEIGHT: 1e-1, KD_WEIGHT: '9'}}",
            [*BASE, "distiller=kd", "distiller.temperature=2", "distiller.kd_weight=9"],
        ),
        (
            pair("KD", solver="SOLVER: {LR: 5e-3, EPOCHS: 30, LR_DECAY_STAGES: [10, 20]}"),
            [
                *(*BASE, "distiller=kd", "recipe.epochs=30", "recipe.lr=0.005"),
                *("recipe.milestones=[10,20]", "recipe.weight_decay=0.0001"),
            ],
        ),
        # The fork of logit standardisation: other defaults of KD, and of MLD, which has KD's keys.
        (
            "EXPERIMENT: {LOGIT_STAND: true}\n" + pair("KD"),
            [*BASE, "distiller=kd_ls"],
        ),
        (
            "EXPERIMENT: {LOGIT_STAND: false}\n" + pair("KD"),
            [*BASE, "distiller=kd", "distiller.temperature=2", "distiller.kd_weight=9"],
        ),
        # There the weight stays 1 where the key is in the file, the flag multiplies by it.
        (
            "EXPERIMENT: {LOGIT_STAND: true}\n" + pair("DKD") + "DKD: {T: 2}",
            [*BASE, "distiller=dkd_ls", "distiller.kd_weight=1"],
        ),
        # The released code of EA-KD: the bound of KD and DKD is 100, τ′ of DKD cannot be set.
        (
            pair("KD", more="  EA: 1\n  t: 2.0\n"),
            [
                *(*BASE, "distiller=ea_kd", "weighting.max_entropy=100"),
                "weighting.entropy_temperature=2",
            ],
        ),
        (
            pair("DKD", more="  EA: 1\n  t: 2.0\n  LS: True\n") + "KD: {LOSS: {KD_WEIGHT: 2}}",
            [
                *(*BASE, "distiller=ea_dkd_ls", "distiller.temperature=4"),
                *("distiller.kd_weight=2", "weighting.max_entropy=100"),
            ],
        ),
        (
            pair("KD_ours", more="  EA: 1\n", solver="SOLVER: {EPOCHS: 480, LR: 0.025}"),
            [*BASE, "distiller=ea_mld", "recipe.weight_decay=0.0001"],
        ),
    ],
)
def test_the_command_of_a_file(converted, text, words):
    found, _ = converted(text)
    assert found == words


def test_the_flags_of_logit_standardisation(converted):
    for kind, name in (("KD", "kd_ls"), ("DKD", "dkd_ls")):
        words, comments = converted(pair(kind), "logit_stand=true", "base_temp=3", "kd_weight=12")
        values = ["distiller.temperature=3", "distiller.kd_weight=12"]
        assert words[:4] == [*BASE, f"distiller={name}"] and set(values) == set(words[4:])
        assert comments[0].endswith("code=logit_standardization")


def test_tiny_imagenet(converted):
    text = pair("KD", "ResNet18", "MobileNetV2", solver="SOLVER: {BATCH_SIZE: 256, EPOCHS: 200}")
    words, _ = converted("DATASET: {TYPE: tiny_imagenet}\n" + text, "opts=[SOLVER.LR,0.2]")
    assert words[:3] == ["data=tiny_imagenet", "teacher=resnet18", "student=mobilenetv2_tiny"]
    assert words[3:] == [
        "distiller=kd", "recipe.milestones=[150,180,210]", "recipe.weight_decay=0.0001",
    ]  # fmt: skip


def test_every_other_key_is_named_with_its_reason(converted):
    text = 'EXPERIMENT: {TAG: "a"}\nLOG: {WANDB: false}\nFOO: {BAR: 1}\nAT: {P: 2}\n'
    text += pair("KD", more="", solver='SOLVER: {WEIGHT_DECAY: 5e-4, TRAINER: "dot"}\n')
    words, comments = converted(text + "DKD: {T: 2}\n")
    assert words == [*BASE, "distiller=kd"]
    named = [line for line in comments if line.startswith("# not converted: ")]
    keys = [line.split(": ")[1] for line in named]
    assert keys == ["EXPERIMENT.TAG", "LOG.WANDB", "FOO.BAR", "AT.P", "SOLVER.TRAINER", "DKD.T"]
    assert "no key of" in named[2] and "no trainer 'dot'" in named[4] and "method" in named[5]
    # Files of a fork may look the same: what its defaults would be is said.
    assert any("KD.TEMPERATURE is not in the file: 4 in mdistiller, 2 in" in c for c in comments)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (pair("CRD"), (), "DISTILLER.TYPE: found 'CRD', allowed is one of NONE, KD"),
        (pair("KD", "vgg99"), (), "DISTILLER.TEACHER: found 'vgg99', allowed is one of"),
        ("DATASET: {TYPE: imagenet}", (), "DATASET.TYPE: found 'imagenet', allowed is one of ci"),
        (pair("KD", solver="SOLVER: {LR: fast}"), (), "SOLVER.LR: found 'fast', allowed is a n"),
        (pair("KD", solver="SOLVER: {LR_DECAY_STAGES: 3}"), (), "SOLVER.LR_DECAY_STAGES: found 3"),
        (pair("KD", more="  EA: maybe\n"), (), "DISTILLER.EA: found 'maybe', allowed is one of"),
        (pair("KD", solver="SOLVER: {EPOCHS: 0}"), (), "epochs: found 0, allowed is an integer"),
        (pair("KD", solver="SOLVER: {TYPE: Adam}"), (), "SOLVER.TYPE: found 'Adam', allowed is"),
        ("- a list", (), "from: found no mapping in "),
        ("a: [", (), "from: found "),
        (pair("KD"), ("opts=[SOLVER.LR]",), "opts: found "),
        (pair("KD"), ("code=mine",), "code: found 'mine', allowed is one of auto, mdistiller"),
        (pair("REVIEWKD"), ("logit_stand=true",), "logit_stand: found true with reviewkd"),
    ],
)
def test_what_cannot_be_converted_is_one_line(converted, text, overrides, message):
    with pytest.raises(UserError) as error:
        converted(text, *overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_command_line(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text(pair("DKD"), encoding="utf-8")
    result = processes.run(["scripts/migrate.py", f"from={path}"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("student=resnet8x4 distiller=dkd")
    result = processes.run(["scripts/migrate.py", "from=nowhere.yaml"])
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


def test_their_checkpoints_load(tmp_path):
    """A student's file as their loops leave it, and the state of a whole run."""
    torch.manual_seed(0)
    student, teacher = resnet8(num_classes=10), resnet20(num_classes=10)
    plain = student.state_dict()
    both = {f"module.student.{key}": value for key, value in plain.items()}
    both |= {f"module.teacher.{key}": value for key, value in teacher.state_dict().items()}
    torch.save({"model": plain}, tmp_path / "student_best")
    torch.save({"epoch": 240, "model": both, "best_acc": torch.tensor(70.0)}, tmp_path / "best")
    fresh = resnet8(num_classes=10)
    load_weights(fresh, tmp_path / "student_best")
    assert all(torch.equal(value, plain[key]) for key, value in fresh.state_dict().items())
    with pytest.raises(UserError, match="not the weights of this ResNet: missing"):
        load_weights(fresh, tmp_path / "best")  # student_best lies beside it
