"""``scripts/quickstart.py`` as a new user meets it."""

import re

import processes
import pytest

from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.reproduce.quickstart import plan

SHORT = ["seeds=[0,1]", "methods=[none,kd,ea_kd,kd+matched]", 'overrides=["recipe.epochs=1"]']


def quickstart(folder, *words):
    return processes.run([ROOT / "scripts" / "quickstart.py", *words], cwd=folder)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick start")
    return folder, quickstart(folder, *SHORT)


def test_a_teacher_students_a_table_a_picture_and_what_is_next(done):
    folder, result = done
    assert result.returncode == 0, result.stderr
    for method in ("none", "kd", "ea_kd", "kd+matched"):
        assert f"\n| {method} | 2 | " in result.stdout
    assert "(ea_kd against kd+matched, " in result.stdout
    assert "learned from 100 images a class, the students from 10 of them" in result.stdout
    table = (folder / "outputs/quickstart/comparison.md").read_text()
    assert table in result.stdout
    assert (folder / "outputs/quickstart/curves.png").read_bytes().startswith(b"\x89PNG")
    *_, made, look, following = result.stdout.splitlines()
    assert made.startswith("Made: 9 runs below outputs/digits_pool, ")
    assert all(name in look for name in ("quickstart/comparison.md", "quickstart/curves.png"))
    assert re.fullmatch(r"Next: \S*python scripts/train.py data=digits_pool .*", following)


def test_what_it_says_to_type_next_finds_the_teacher(done):
    folder, result = done
    words = result.stdout.splitlines()[-1].split("train.py ")[1].split()
    command = [ROOT / "scripts" / "train.py", *words, "recipe.epochs=1"]
    trained = processes.run(command, cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert "checkpoints/digits_pool/resnet20.safetensors" in trained.stdout


def test_without_a_terminal_a_line_a_run(done):
    lines = done[1].stderr.splitlines() + done[1].stdout.splitlines()
    runs = [line for line in lines if re.search(r"\] \d of 9: ", line)]
    assert len(runs) == 9 and "1 of 9: teacher, resnet20, seed 0: " in runs[0]
    assert "9 of 9: kd+matched, resnet8, seed 1: " in runs[-1]
    assert not re.search(r"[\r\x1b]", done[1].stderr + done[1].stdout)


def test_finished_runs_are_reused_and_another_table_is_kept(done):
    folder, first = done
    place = folder / "outputs" / "quickstart"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    again = quickstart(folder, *SHORT)
    assert again.stdout.partition("# ")[2] == first.stdout.partition("# ")[2]
    assert sorted(path.name for path in place.iterdir()) == ["comparison.md", "curves.png"]
    table = (place / "comparison.md").read_text()
    quickstart(folder, *SHORT[1:], "seeds=[0]")
    assert (place / "previous-comparison.md").read_text() == table
    assert (place / "previous-curves.png").is_file()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_networks_and_data_can_be_others():
    words = ["teacher=resnet14", "student=resnet8x4", "recipe.epochs=7", "seeds=[3]"]
    teacher, *students = plan(compose([*words, "methods=[kd]"], "quickstart"))
    assert (teacher.student.name, teacher.data.train_per_class) == ("resnet14", 100)
    assert [(s.student.name, s.recipe.epochs, s.seed) for s in students] == [("resnet8x4", 7, 3)]
    (alone,) = plan(compose(["methods=[none]", "seeds=[0]"], "quickstart"))
    assert not alone.save_teacher  # no method needs one
    (teacher, student) = plan(compose(["data=digits", "methods=[kd]", "seeds=[0]"], "quickstart"))
    assert (teacher.data, teacher.recipe) == (student.data, student.recipe)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("methods=[]", r"methods: found \[\], allowed is a list"),
        ("methods=kd", "methods: found 'kd', allowed is a list"),
        ("methods=[kd,kd]", r"methods: found \['kd', 'kd'\], allowed is a list, each value once"),
        ("methods=[ea_kd,kd+ea]", "methods: found one twice"),
        ("methods=[3]", "methods: found the number 3"),
        ("methods=[xkd]", "distiller: found 'xkd', allowed is one of ctkd"),
        ("methods=[kd+x]", "weighting: found 'x', allowed is one of confidence"),
        ("seeds=[]", r"seeds: found \[\], allowed is a list"),
        ("seeds=3", "seeds: found 3, allowed is a list"),
        ("seeds=[1,1]", r"seeds: found \[1, 1\], allowed is a list, each value once"),
        ("seeds=[-1]", "seeds: found -1, allowed is an integer >= 0"),
        ("seeds=[x]", "seeds: found 'x', allowed is an integer >= 0"),
        ("teacher=resnet99", "teacher: found 'resnet99', allowed is one of"),
        ("student=resnet99", "student: found 'resnet99', allowed is one of"),
        ("data=mnist", "data: found 'mnist', allowed is one of cifar10"),
        ("select=first", "select: found 'first', allowed is one of last, best"),
        ("output_root=/dev/null/x", "output_root: found '/dev/null/x'"),
        ("method=[kd]", "method: found an unknown key, allowed is one of"),
        ("overrides=x", "overrides: found 'x', allowed is a list"),
        ("overrides=[3]", "overrides: found 3, allowed is a quoted text"),
        ('overrides=["recipe.lr=-1"]', "recipe.lr: found -1"),
        ('overrides=["recipe.epoch=1"]', "recipe.epoch: found an unknown key"),
        ('overrides=["recipe.lr=1,2"]', "overrides: found several values"),
        ('overrides=["seed=1"]', r"overrides: found 'seed=1', .*, allowed is seeds=\["),
        ('overrides=["distiller.name=x"]', r"overrides: found .*, allowed is methods=\["),
        ('overrides=["data=digits"]', r"overrides: found .*, allowed is data=…"),
        # Refused by the method only, which would be built after its teacher is trained.
        ('overrides=["distiller.temperature=-1"]', "distiller.temperature: found"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        plan(compose([word], "quickstart"))
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["methods=[]", "teacher=resnet99", 'overrides=["recipe.lr=-1"]'])
def test_a_mistake_is_one_line_and_status_2(word, tmp_path):
    result = quickstart(tmp_path, word)
    assert result.returncode == 2 and result.stdout == ""
    assert re.fullmatch("error: .* found .*, allowed is .*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []
