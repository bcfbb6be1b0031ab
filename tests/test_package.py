"""What an installed package is: the code, its configs and commands, without the checkout."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import eakd
from eakd.config import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
COMMANDS = dict(re.findall(r'^eakd-([\w-]+) = "eakd\.commands:(\w+)"$', PROJECT, re.M))
SHORT = ("recipe.epochs=1", "data.train_per_class=4", "threads=1", "device=cpu")


def test_every_script_is_a_command_too():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"check_slurm"}
    assert scripts == set(COMMANDS.values())
    assert all(name.replace("-", "_") == function for name, function in COMMANDS.items())
    assert scripts <= {path.stem for path in (ROOT / "configs").glob("*.yaml")}


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.M) == [eakd.__version__]


def test_what_the_package_offers_is_listed():
    for name in ("Weighting", "ea_weight", "entropy", "kd_loss", "__version__"):
        assert name in dir(eakd) and hasattr(eakd, name)
    with pytest.raises(AttributeError, match="no attribute 'ea_wait'"):
        _ = eakd.ea_wait


def run(*words, **settings):
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, **settings
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the sdist, the wheel from the checkout, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    environment = dict(os.environ)
    if not importlib.util.find_spec("hatchling"):
        (backend,) = re.findall(r'^requires = \["(.*)"\]$', PROJECT, re.M)
        result = run(*PIP, "install", "--quiet", "--target", folder / "backend", backend)
        if result.returncode != 0:
            pytest.skip(f"no build backend: {result.stderr.strip()[-300:]}")
        environment["PYTHONPATH"] = str(folder / "backend")
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d"]
    wheel = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    result = run(*hatchling, folder, "-t", "sdist", cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    (sdist,) = folder.glob("*.tar.gz")
    for source, place in ((ROOT, "checkout"), (sdist, "sdist")):
        result = run(*wheel, folder / place, source, env=environment)
        assert result.returncode == 0, result.stderr
    return folder


def wheel_of(folder):
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_both_wheels_carry_everything(built):
    names = []
    for place in ("checkout", "sdist"):
        with zipfile.ZipFile(wheel_of(built / place)) as wheel:
            names.append(set(wheel.namelist()))
    assert names[0] == names[1]
    for folder, inside in (("eakd", "eakd"), ("configs", "eakd/configs")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".typed"):
                assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names[0]
    assert "eakd/checkpoints/manifest.yaml" in names[0]
    assert any(name.endswith("/LICENSE") for name in names[0])
    assert {name.partition("/")[0] for name in names[0]} == {
        "eakd",
        f"eakd-{eakd.__version__}.dist-info",
    }
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/golden/kd.npz", "scripts/train.py", "docs/extend.md", "Makefile"} <= sources


@pytest.fixture(scope="module")
def installed(built):
    """The programs of an environment with the wheel, and with all that it needs from this one."""
    place = built / "environment"
    assert run(sys.executable, "-m", "venv", "--without-pip", place).returncode == 0
    python = place / "bin" / "python"
    words = ("install", "--quiet", "--no-deps", "--no-index", wheel_of(built / "sdist"))
    result = run(*PIP, "--python", python, *words)
    assert result.returncode == 0, result.stderr
    (packages,) = place.glob("lib/python*/site-packages")
    # Comes after the wheel, and its own .pth files, such as an editable eakd's, are not read.
    others = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "others.pth").write_text("\n".join(others))
    return place / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture
def start(installed, elsewhere):
    """Start an installed program in a folder of its own, which knows nothing of the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def start(name, *words):
        return run(installed / name, *words, cwd=elsewhere, env=environment)

    return start


@pytest.mark.slow
def test_nothing_comes_from_the_checkout(start, installed):
    code = "import eakd; from eakd.places import CONFIGS, MANIFEST; "
    code += "print(eakd.__file__, CONFIGS, MANIFEST, eakd.__version__, sep='\\n')"
    *places, version = start("python", "-c", code).stdout.split()
    assert len(places) == 3 and version == eakd.__version__
    for place in map(Path, places):
        assert place.is_relative_to(installed.parent) and place.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command(start, name):
    result = start(f"eakd-{name}", "--help")
    assert result.returncode == 0, result.stderr
    assert "eakd:" in result.stdout and "scripts/" not in result.stdout
    assert name not in ("train", "evaluate") or f"  eakd-{name} data=cifar100 " in result.stdout


@pytest.mark.slow
def test_a_run_its_teacher_a_report_and_a_plan(start, elsewhere):
    refused = start("eakd-train", *SHORT)
    assert refused.returncode == 2
    (command,) = re.findall(r"train it with: (eakd-train .*)$", refused.stderr.strip())
    result = start(*command.split(), *SHORT)
    assert result.returncode == 0, result.stderr
    assert (elsewhere / "checkpoints" / "digits" / "resnet20.safetensors").is_file()

    launched = ("-m", "hydra/launcher=workers", "hydra.launcher.n_jobs=2", "seed=0,1")
    if not importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
        launched = ("-m", "seed=0,1")
    result = start("eakd-train", *launched, *SHORT)
    assert result.returncode == 0, result.stderr
    assert len(list(elsewhere.glob("outputs/digits/resnet20-resnet8/kd/*/summary.json"))) == 2

    result = start("eakd-report", "runs=outputs/digits/resnet20-resnet8/**")
    assert result.returncode == 0 and "| kd | 2 |" in result.stdout, result.stderr
    result = start("eakd-evaluate")
    assert result.returncode == 0 and "top-1" in result.stdout, result.stderr
    result = start("eakd-reproduce", "table=2", "mode=plan")
    assert result.returncode == 0 and "525 runs" in result.stdout, result.stderr
    result = start("eakd-reproduce", "table=2", "mode=report", "pairs=[vgg13-vgg8]")
    assert "- Command: eakd-reproduce table=2 'pairs=[vgg13-vgg8]'" in result.stdout, result.stderr
    assert {path.name for path in elsewhere.iterdir()} == {"outputs", "checkpoints"}


@pytest.mark.slow
def test_a_worker_shows_commands_as_they_were_typed(start, elsewhere):
    words = ("hydra/launcher=workers", "hydra.launcher.n_jobs=2", "teacher=resnet14", "seed=0,1")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    result = start("eakd-train", "-m", *words, *SHORT)
    assert result.returncode == 2
    assert len(re.findall(r"^error: .* train it with: eakd-train ", result.stderr, re.M)) == 2
