"""``hydra/sweeper=search``: killed anywhere, the same command goes on, and trains nothing twice."""

import json
import re
import shlex
import sys

import processes
import pytest

import eakd
from eakd.composing import compose
from eakd.errors import UserError

optuna = pytest.importorskip("optuna")

WORDS = [
    *("scripts/train.py", "-m", "hydra/sweeper=search", "distiller=none", "threads=1"),
    *("data.train_per_class=8", "recipe.epochs=8", "recipe.batch_size=16"),
    *("recipe.evaluate_every=0", "recipe.lr=tag(log,interval(0.01,0.1))"),
]
HONEST = "data.val_fraction=0.25"


def runs(place):
    return {path.parent.name for path in place.glob("outputs/**/summary.json")}


def trials(place):
    (database,) = place.glob("outputs/searches/*/study.db")
    study = optuna.load_study(study_name=database.parent.name, storage=f"sqlite:///{database}")
    return [(trial.state.name, trial.value, trial.params) for trial in study.trials]


@pytest.mark.slow
def test_a_search_is_killed_continued_and_extended(tmp_path):
    words = [*WORDS, HONEST, f"output_root={tmp_path}/outputs"]

    # Killed in the second trial, which has begun and has a checkpoint.
    process = processes.Command([*words, "hydra.sweeper.n_trials=3"], alone=True)
    second = "outputs/*/*/*/*/last.pt"
    processes.wait_for(lambda: len(list(tmp_path.glob(second))) == 2, process)
    process.kill()
    process.wait(60)
    before = runs(tmp_path)
    assert len(before) == 1

    done = processes.run([*words, "hydra.sweeper.n_trials=3"])
    assert done.returncode == 0, done.stderr
    assert "3 trials, best on val" in done.stdout and len(runs(tmp_path)) == 3
    told = trials(tmp_path)
    # The killed trial's values were the next ones: its run went on instead of a new one.
    complete = [params["recipe.lr"] for state, _, params in told if state == "COMPLETE"]
    assert len(complete) == len(set(complete)) == 3 and len(told) == 4
    assert told[1][2] == told[2][2] and [state for state, *_ in told].count("FAIL") == 1

    # More trials: only those, and with other values. The order of words does not matter.
    more = processes.run([*reversed_overrides(words), "hydra.sweeper.n_trials=4"])
    assert more.returncode == 0 and len(runs(tmp_path)) == 4 and len(trials(tmp_path)) == 5
    assert more.stdout.count("epoch 8/8") == 1

    (file,) = tmp_path.glob("outputs/searches/*/best.json")
    best = json.loads(file.read_text())
    values = [
        json.loads(path.read_text())["val_top1_best"]
        for path in tmp_path.glob("outputs/**/summary.json")
    ]
    assert best["value"] == max(values) and best["trials"] == 4
    # What the last line says is a command that works, for other seeds.
    (command,) = re.findall(r"^with other seeds: python (.*)$", more.stdout, re.M)
    assert best["best"][0] in command and "seed=1,2,3" in command
    overrides = [word for word in shlex.split(command)[2:] if not word.startswith("seed=")]
    assert str(compose(overrides).recipe.lr) == best["best"][0].partition("=")[2]


def reversed_overrides(words):
    """The same command, typed in another order."""
    return [*words[:3], *reversed(words[3:])]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "error: data.val_fraction: found 0, allowed in a search is above 0"),
        ([HONEST, "recipe.lr=0.1"], "error: hydra/sweeper: found no key to search over"),
        ([HONEST, "hydra.sweeper.n_trials=0"], "n_trials: found 0, allowed is an integer >= 1"),
    ],
)
def test_what_cannot_be_searched_is_one_line(words, expected, tmp_path):
    done = processes.run([*WORDS, *words, f"output_root={tmp_path}/outputs"])
    assert done.returncode == 2 and expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_trial_that_diverges_counts_and_a_wrong_value_ends_the_search(tmp_path):
    rates = "recipe.lr=choice(0.05,1e30)"
    words = [*WORDS[:-1], rates, HONEST, f"output_root={tmp_path}/outputs"]
    done = processes.run([*words, "hydra.sweeper.n_trials=4"])
    states = [state for state, *_ in trials(tmp_path)]
    assert done.returncode == 0, done.stderr
    assert len(states) == 4 and set(states) == {"COMPLETE", "PRUNED"}
    assert json.loads(next(tmp_path.glob("outputs/searches/*/best.json")).read_text())["best"] == [
        "recipe.lr=0.05"
    ]


def test_without_its_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "eakd.search", raising=False)
    monkeypatch.delattr(eakd, "search", raising=False)
    with pytest.raises(UserError, match=r"found no plugin 'optuna' .*pip install 'eakd"):
        compose(["hydra/sweeper=search"])
