"""The demonstration on text: a teacher that the package brings with it, and what is said of it."""

import json
import re
from pathlib import Path

import processes
import pytest

import eakd
from eakd.composing import compose
from eakd.config import ROOT
from eakd.language.build import build_run, find_teacher
from eakd.language.evaluation import evaluate
from eakd.reproduce.quickstart import plan

SHIPPED = Path(eakd.__file__).parent / "language" / "data" / "tiny_gpt_t"
PAIR = ["data=python_docs", "teacher=tiny_gpt_t", "student=tiny_gpt_s", "distiller=language/kd"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    steps = '"recipe.steps_per_epoch=8","recipe.warmup_epochs=0"'
    short = [f'overrides=["recipe.epochs=1",{steps},"teacher.table=false","threads=1"]']
    short += ["seeds=[0,1]", "methods=[sft,kd,ea_kd]"]
    return folder, processes.run(
        [ROOT / "scripts" / "quickstart.py", "data=python_docs", *short], cwd=folder
    )


@pytest.mark.slow
def test_it_trains_students_alone_and_compares_losses_too(done):
    folder, result = done
    assert result.returncode == 0, result.stderr
    assert "Made: 6 runs below outputs/python_docs" in result.stdout  # no teacher among them
    assert not (folder / "checkpoints" / "python_docs").exists()
    for method in ("sft", "kd", "ea_kd"):
        assert f"\n| {method} | 2 | " in result.stdout
    stated = json.loads((SHIPPED / "eakd.json").read_text())
    (taught,) = re.findall(r"The teacher reaches (.*) tokens %\.", result.stdout)
    assert float(taught) == pytest.approx(float(stated["test_token_accuracy"]), abs=0.3)  # bf16
    assert result.stdout.partition("# ")[2].startswith(
        "tiny_gpt_s on python_docs, teacher tiny_gpt_t"
    )
    assert "\nTest loss in nats a token, less is better, last epoch: sft " in result.stdout
    assert "\nkd − sft: " in result.stdout and "\nea_kd − kd: " in result.stdout


@pytest.mark.slow
def test_what_it_says_to_type_next_is_a_run(done):
    words = done[1].stdout.splitlines()[-1].split("train.py ")[1].split()
    config = compose(words)
    assert (config.distiller.name, config.weighting.kind) == ("rkld", "ea")
    assert find_teacher(config) == SHIPPED


def test_the_teacher_is_as_good_as_its_file_says(tmp_path):
    from eakd.targets import build
    from eakd.training.run import build_compute
    from eakd.training.schedule import Recipe

    words = [*PAIR, "device=cpu", "precision=float32", f"checkpoint_root={tmp_path}"]
    config = compose(words)
    compute = build_compute(config)
    built, tokenizer = build_run(config, build(config.recipe, "recipe", Recipe), compute)
    found = evaluate(built.distiller.teacher, built.data, "test", compute, len(tokenizer))
    stated = json.loads((SHIPPED / "eakd.json").read_text())
    for name, value in found.items():
        assert value == pytest.approx(float(stated[f"test_{name}"]), rel=1e-3)


def test_a_teacher_of_ones_own_comes_first(tmp_path):
    config = compose([*PAIR, f"checkpoint_root={tmp_path}"])
    assert find_teacher(config) == SHIPPED
    own = tmp_path / "python_docs" / "tiny_gpt_t"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert find_teacher(config) == own


def test_another_teacher_is_trained_first():
    first, *_ = plan(compose(["data=python_docs", "teacher=tiny_gpt_s", "seeds=[0]"], "quickstart"))
    assert first.save_teacher
    assert (first.student.name, first.recipe.name) == ("tiny_gpt_s", "python_docs_teacher")
