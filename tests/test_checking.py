"""What may stand in a config: keys that somebody reads, names that are true, targets that fit."""

import processes
import pytest

from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.targets import build, target_of


def train(*words, cwd):
    return processes.run([ROOT / "scripts" / "train.py", *words], cwd=cwd)


def refused(*words, cwd, status=2):
    """The one line of a command that leaves nothing where it ran."""
    before = sorted(cwd.rglob("*"))
    result = train(*words, cwd=cwd)
    assert result.returncode == status, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert sorted(cwd.rglob("*")) == before
    return line


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+epochs=3", "^epochs: found an unknown key, allowed is one of "),
        ("++sede=1", "^sede: .*nearest is seed$"),
        ("sede=1", "^sede: .*nearest is seed$"),
        ("+teachers.name=resnet8", "^teachers: .*nearest is teacher"),
        ("recipe.epoch=3", "^recipe.epoch: .*nearest is epochs"),
    ],
)
def test_keys_that_nothing_reads(word, message):
    with pytest.raises(UserError, match=message):
        compose([word])


@pytest.mark.parametrize("key", ["data.crop", "data.load.crop", "recipe.epoch", "student.depth"])
@pytest.mark.parametrize("more", [[], ["data.train_per_class=1"]])
def test_keys_below_a_node_are_refused_before_anything_is_written(key, more, tmp_path, monkeypatch):
    from eakd.training.run import run

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{key.replace('.load', '')}: found "):
        run(compose([f"+{key}=8", "distiller=none", *more]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("root", "word"),
    [
        ("reproduce", "+seed=1"),
        ("report", "+run=x"),
        ("evaluate", "+data.crop=8"),
        ("benchmark", "+data.flip=true"),
        ("quickstart", "+width=2"),
    ],
)
def test_every_command_knows_its_keys(root, word):
    from eakd.benchmark import benchmark
    from eakd.classification import evaluate_checkpoint

    with pytest.raises(UserError, match=r"found an unknown key|cannot compose|Could not"):
        config = compose([word], root)
        # These read `data` where composing does not know it.
        {"benchmark": benchmark, "evaluate": evaluate_checkpoint}[root](config)


def test_keys_that_others_refer_to_are_read(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "wide.yaml").write_text(
        "# @package _global_\nhow_long: 1\nrecipe:\n  epochs: ${how_long}\n"
    )
    words = ["--config-dir", str(tmp_path), "experiment=wide", "--cfg", "job"]
    assert "how_long: 1" in train(*words, cwd=tmp_path).stdout
    lost = tmp_path / "experiment" / "lost.yaml"
    lost.write_text("# @package _global_\nhow_lang: 1\n")
    assert "how_lang: found an unknown key" in refused(
        "--config-dir", str(tmp_path), "experiment=lost", cwd=tmp_path
    )


def test_a_preset_without_its_package_line(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("recipe:\n  epochs: 3\n")
    line = refused("--config-dir", str(tmp_path), "experiment=mine", cwd=tmp_path)
    assert line.startswith("error: experiment: ") and "# @package _global_" in line


@pytest.mark.parametrize(
    "words",
    [
        ["student.name=resnet20"],
        ["data.name=cifar100"],
        ["distiller.name=dkd"],
        ["teacher=timm", "teacher.architecture=resnet18"],
        ["student=vit_b", "student.architecture=resnet18"],
        ["distiller=ea_kd", "distiller.name=mld"],
    ],
)
def test_names_that_lie(words):
    with pytest.raises(UserError, match=r"the name of another|one name for both"):
        compose(words)


@pytest.mark.parametrize(
    "words",
    [
        ["student.name=my_resnet"],
        ["student=timm", "student.name=resnet18"],
        ["student.name=resnet8"],
        ["distiller=ea_kd", "distiller.name=kd"],
    ],
)
def test_names_that_do_not(words):
    assert compose(words)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hydra.run.dir=elsewhere", "allowed is run_dir=elsewhere"),
        ("hydra.sweep.dir=elsewhere", "allowed is output_root=elsewhere"),
        ("hydra.sweep.subdir=a", "allowed is what follows"),
        ("hydra.output_subdir=hydra", "allowed is null"),
        ("hydra.job.chdir=true", "allowed is false"),
    ],
)
def test_settings_of_hydra_that_follow_from_ours(word, message, tmp_path):
    assert message in refused(word, cwd=tmp_path)


@pytest.mark.parametrize("logging", ["default", "disabled", "none", "stdout"])
def test_other_logging(logging, tmp_path):
    words = ["data.train_per_class=1", "recipe.epochs=1", "distiller=none", "run_dir=here"]
    words += ["recipe.batch_size=10", f"hydra/job_logging={logging}"]
    if logging != "stdout":
        words.append(f"hydra/hydra_logging={logging}")
    result = train(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "here" / "summary.json").exists()


@pytest.mark.parametrize(
    "word",
    [
        "distiller._target_=torch.load",
        "distiller._target_=eakd.models.resnet8",
        "student._target_=torch.hub.load",
        "student._target_=eakd.training.Recipe",
        "recipe._target_=numpy.load",
        "record._target_=eakd.training.Recipe",
        "tracking._target_=joblib.load",
        "weighting._target_=torch.load",
        "data.load._target_=torch.load",
        "data.load._target_=builtins.exec",
        "data.task=os.system",
        "data.task=eakd.distillers.KD",
        "student._target_=subprocess.Popen",
    ],
)
def test_targets_that_do_not_fit_are_never_called(word, tmp_path, monkeypatch):
    from eakd.training.run import run

    monkeypatch.chdir(tmp_path)
    key = word.partition("=")[0].replace(".load", "")
    if key == "data.task":  # a method of another domain is told first
        key = "distiller"
    with pytest.raises(UserError, match=rf"^{key}: found .*, allowed "):
        run(compose(["distiller=none", "data.train_per_class=1", word]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.mine._target_=os.system"],
        ["+hydra.callbacks.mine._target_=torch.load"],
        ["+hydra.launcher.more._target_=torch.load"],
        ["hydra.launcher._target_=torch.load", "-m"],
        ["hydra.sweeper._target_=subprocess.Popen", "-m"],
        ["hydra.job_logging.handlers.console.class=torch.load"],
        ["hydra.job_logging.handlers.console.class=logging.config.listen"],
        ["hydra.job_logging.handlers.console.stream=ext://antigravity.fly"],
    ],
)
def test_hydra_calls_its_plugins_only(words, tmp_path):
    assert "found" in refused(*words, cwd=tmp_path)


def test_a_downloaded_config_is_checked_like_a_typed_one(tmp_path):
    proof = tmp_path / "proof"
    (tmp_path / "experiment").mkdir()
    (tmp_path / "distiller").mkdir()
    (tmp_path / "experiment" / "theirs.yaml").write_text(
        "# @package _global_\nhydra:\n  callbacks:\n    theirs:\n      _target_: os.mkdir\n"
        f"      path: {proof}\n"
    )
    (tmp_path / "distiller" / "theirs.yaml").write_text(
        f"name: theirs\nneeds_teacher: false\n_target_: os.mkdir\npath: {proof}\n"
    )
    for word in ("experiment=theirs", "distiller=theirs"):
        for more in ([], ["-m"], ["--cfg", "job"])[: 3 if word.startswith("exp") else 2]:
            result = train("--config-dir", str(tmp_path), word, *more, cwd=tmp_path)
            assert result.returncode == 2, result.stderr
            assert "found 'os.mkdir', allowed is" in result.stderr and not proof.exists()


def test_a_root_file_of_ones_own(tmp_path):
    """It may have keys of its own; what Hydra would call, and values, are checked all the same."""
    root = "defaults:\n  - train\n  - _self_\nlength: 1\nrecipe:\n  epochs: ${length}\n"
    (tmp_path / "mine.yaml").write_text(root)
    words = ["--config-dir", str(tmp_path), "--config-name=mine", "distiller=none"]
    words += ["data.train_per_class=1", "recipe.batch_size=10", "run_dir=here"]
    assert "seed: found 'x'" in refused(*words, "seed=x", cwd=tmp_path)
    launcher = "hydra.launcher._target_=torch.load"
    assert launcher[:23] in refused("-m", *words, launcher, cwd=tmp_path)
    result = train(*words, cwd=tmp_path)
    assert result.returncode == 0 and "epoch 1/1" in result.stdout, result.stderr


def test_a_rerun_that_would_unpickle(tmp_path):
    for option in ("--experimental-rerun", "--experimental-rerun=x", "--exp=x"):
        assert "loads a pickle" in refused(option, "x", cwd=tmp_path)


def test_a_sweep_is_checked_before_its_first_run(tmp_path):
    words = ["-m", "data.train_per_class=1", "recipe.epochs=1", "distiller=none", "seed=0,x"]
    assert "seed: found 'x'" in refused(*words, cwd=tmp_path)


@pytest.mark.parametrize("value", ["/a=b", "/a b=c", "/a,b=c", "[/a=b", "/a{b", 'say "x"=y'])
def test_a_value_that_needs_quotes_is_printed_with_them(value, tmp_path):
    import shlex

    with pytest.raises(UserError, match="such a text is quoted: ") as caught:
        compose([f"output_root={value}"])
    (word,) = shlex.split(str(caught.value).partition("is quoted: ")[2])
    if not value.startswith("/a"):  # relative ones would be made here
        word = word.replace('output_root="', f'output_root="{tmp_path}/')
    assert compose([word]).output_root.endswith(value.lstrip("/"))


@pytest.fixture
def own_module(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("module")
    (folder / "tests_of_targets.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from torch import nn\n"
        "if TYPE_CHECKING:\n    from torch.nn import Module\n"
        "def silent(): return nn.Identity()\n"
        "def other() -> int: return 1\n"
        "def told() -> nn.Linear: return nn.Linear(1, 1)\n"
        "def hidden() -> Module: return nn.Identity()\n"
        "class Own(nn.Identity): pass\n"
        "instance = Own()\n"
    )
    monkeypatch.syspath_prepend(folder)


def test_what_fits_a_place(own_module):
    from torch import nn

    for name in ("told", "hidden", "Own"):
        assert isinstance(
            build({"_target_": f"tests_of_targets.{name}"}, "x", nn.Module), nn.Module
        )
    for name in ("silent", "other", "instance", "nothing", "nn"):
        with pytest.raises(UserError, match=r"^x\._target_: found "):
            target_of({"_target_": f"tests_of_targets.{name}"}, "x", nn.Module)
    for node in (None, 5, "text", [1], {}, {"_target_": None}, {"_target_": 5}, {"_target_": ""}):
        with pytest.raises(UserError, match=r"^x"):
            target_of(node, "x", nn.Module)
