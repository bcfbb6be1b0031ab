"""What people type composes, and what they mistype is answered in one line."""

from pathlib import Path

import pytest

from eakd.composing import compose
from eakd.config import CONFIGS, config_hash, identity, method_files, method_label, run_name
from eakd.errors import UserError

MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
METHODS = list(method_files())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_teacher_and_student(name):
    config = compose([f"teacher={name}", f"student={name}"])
    assert config.teacher._target_ == config.student._target_
    assert config.teacher.checkpoint == "auto"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_ea_form(name):
    domain, slash, label = name.rpartition("/")
    plain, ea = (compose([f"distiller={word}"]) for word in (name, f"{domain}{slash}ea_{label}"))
    assert (method_label(plain), plain.weighting.kind) == (label, "uniform")
    assert (method_label(ea), ea.weighting.kind) == (f"ea_{label}", "ea")
    assert plain.distiller._target_ == ea.distiller._target_


@pytest.mark.parametrize("group", ["data", "weighting", "recipe", "tracking", "experiment"])
def test_every_option_composes(group):
    for path in (CONFIGS / group).glob("*.yaml"):
        compose([f"{group}={path.stem}"])


def test_command_line_wins_over_what_a_method_brings():
    config = compose(["distiller=ea_kd", "weighting=matched", "weighting.entropy_temperature=2"])
    assert (config.weighting.kind, config.weighting.entropy_temperature) == ("matched", 2)


def test_one_computation_has_one_directory():
    def name(*overrides):
        return run_name(compose(list(overrides)))

    assert name("distiller=ea_kd") == name("distiller=kd", "weighting=ea")
    assert name("distiller=kd") == name("distiller=kd", "weighting.entropy_temperature=2")
    assert name("device=cpu", "compile=true", "output_root=elsewhere") == name()
    cifar = name("data=cifar100")
    assert name("data=cifar100", "data.root=elsewhere", "data.download=false") == cifar
    assert name("distiller=none", "teacher=resnet56") == name("distiller=none")
    different = {
        name(),
        name("seed=1"),
        name("recipe.epochs=7"),
        name("distiller.temperature=2"),
        name("weighting=teacher"),
        name("weighting=ea"),
        name("weighting=ea", "weighting.entropy_temperature=2"),
        name("weighting=ea", "weighting.max_entropy=100"),
        name("precision=float32"),
        name("teacher=resnet56"),
        name("teacher.checkpoint=other.pth"),
        name("data.val_fraction=0.1"),
    }
    assert len(different) == 12


def test_run_names_can_be_read():
    config = compose(
        ["data=cifar100", "teacher=resnet32x4", "student=resnet8x4", "distiller=ea_kd", "seed=3"]
    )
    digits = config_hash(identity(config))
    assert run_name(config) == f"cifar100/resnet32x4-resnet8x4/ea_kd/seed3-{digits}"
    assert Path(config.run_dir) == Path("outputs") / run_name(config)
    assert identity(config)["seed"] == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher=resnet99", ["teacher: found 'resnet99'", "resnet32x4"]),
        ("student=resnet99", ["student: found 'resnet99'", "resnet8x4"]),
        ("data=imagenet22k", ["data: found 'imagenet22k'", "cifar100"]),
        ("distiller=xkd", ["distiller: found 'xkd'", "ea_kd"]),
        ("weighting=entropic", ["weighting: found 'entropic'", "matched"]),
        ("recipe=long", ["recipe: found 'long'", "cifar"]),
        ("tracking=mlflow", ["tracking: found 'mlflow'", "wandb"]),
        ("recipe.epoch=2", ["recipe.epoch: found an unknown key", "epochs"]),
        ("sede=2", ["sede: found an unknown key", "seed"]),
        ("recipe.epochs=[", ["recipe.epochs=["]),
    ],
)
def test_wrong_names_list_the_right_ones(override, words):
    with pytest.raises(UserError) as caught:
        compose([override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_smoke_experiment_takes_the_teacher_of_the_quickstart():
    config = compose(["experiment=smoke", "distiller=ea_dkd"])
    assert (config.data.name, config.recipe.epochs) == ("digits_pool", 2)
