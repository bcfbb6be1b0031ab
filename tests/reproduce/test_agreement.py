"""Means are taken over runs that differ in their seed, and in nothing else that moves numbers."""

import json

import pytest

from eakd.errors import UserError
from eakd.reproduce import compare, report
from eakd.reproduce.comparison import find_runs
from eakd.reproduce.table import load_table, make_table
from eakd.reproduce.table_report import markdown, summarise
from eakd.training.reading import checksum

CONFIG = {
    "data": {"name": "digits", "val_fraction": 0},
    "student": {"name": "resnet8", "width": 16},
    "teacher": {"name": "resnet20"},
    "distiller": {"name": "kd", "temperature": 4},
    "weighting": "uniform",
    "recipe": {"lr": 0.05, "epochs": 2, "milestones": [1]},
}


def a_run(method="kd", seed=0, value=70.0, config=(), **summary):
    """A finished run; ``config`` has dotted keys that differ from `CONFIG`."""
    found = json.loads(json.dumps(CONFIG | {"seed": seed}))
    for key, each in {"distiller.name": method, **dict(config)}.items():
        node, *path = found, *key.split(".")
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = each
    return {
        "method": method,
        "student": found["student"]["name"],
        "data": found["data"]["name"],
        "seed": seed,
        "epochs": found["recipe"]["epochs"],
        "selection": "test",
        "top1_last": value,
        "top1_best": value + 1,
        "seconds": 10.0,
        "data_fingerprint": "d" * 64,
        "teacher_digest": "e" * 64,
        "teacher_top1": 80.0,
        "precision": "float32",
        "device": "cpu",
        "environment": {"torch": "2.9.0", "commit": "aaaa", "modified": False},
        "config": found,
        "directory": f"{method}/{seed}",
        **summary,
    }


def leave(folder, run):
    """The files of a run."""
    folder.mkdir(parents=True)
    summary = {key: value for key, value in run.items() if key not in ("config", "directory")}
    text = json.dumps({**summary, "checksum": checksum(summary)})
    (folder / "config.json").write_text(json.dumps(run["config"]))
    (folder / "summary.json").write_text(text.replace("Infinity", "1e999"))
    (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    return folder


RUNS = [a_run(method, seed, 70.0 + seed) for method in ("kd", "ea_kd") for seed in (0, 1)]


@pytest.mark.parametrize(
    ("changes", "keys", "by"),
    [
        ({"config": {"recipe.lr": 0.1}}, r"recipe\.lr \(0\.05, 0\.1\)", "method,recipe.lr"),
        ({"config": {"distiller.temperature": 2}}, r"distiller\.temperature", "distiller.temp"),
        ({"config": {"weighting": {"tau": 2}}}, r"weighting.*weighting\.tau", "method,weighting"),
        ({"config": {"recipe.milestones": [2]}}, r"recipe\.milestones", "recipe.milestones"),
        ({"config": {"student.name": "resnet14"}}, r"student\.name \(res", "method,student]"),
        ({"config": {"recipe.new": None, "student.width": 8}}, r"student\.width", "student.width"),
        ({"data_fingerprint": "0" * 64}, "data_fingerprint", "method,data_fingerprint"),
        ({"teacher_digest": "0" * 64}, "teacher_digest", "method,teacher_digest"),
        ({"teacher_digest": None, "teacher_top1": 79.0}, "teacher_top1", "method,teacher_top1"),
        ({"epochs": 3}, "epochs", "method,epochs"),
    ],
)
@pytest.mark.parametrize("seed", [1, 7])
def test_runs_of_one_group_agree_in_everything_but_the_seed(changes, keys, by, seed):
    other = a_run("kd", seed, **changes)
    with pytest.raises(UserError, match=f"^by: found (two )?runs of kd .*{keys}") as caught:
        compare([*RUNS, other])
    message = str(caught.value)
    assert by in message and "\n" not in message
    assert ("two runs of kd with seed 1" in message) is (seed == 1)
    wanted = message.partition("by=[")[2].partition("]")[0].split(",")
    rows = compare([*RUNS, other], by=wanted)  # what the message advises works
    assert len(rows) == 3


def test_all_that_differs_is_named_and_advised():
    others = [
        a_run("kd", 5, config={"recipe.lr": 0.1}),
        a_run("kd", 6, config={"distiller.temperature": 2}),
    ]
    with pytest.raises(UserError, match=r"recipe\.lr .*by=\[method,") as caught:
        compare([*RUNS, *others])
    assert "distiller.temperature (4, 2)" in str(caught.value)
    wanted = str(caught.value).partition("by=[")[2].partition("]")[0].split(",")
    assert {"recipe.lr", "distiller.temperature"} < set(wanted)


def test_what_moves_no_number_much_is_a_warning(tmp_path):
    for place, run in enumerate(RUNS):
        leave(tmp_path / str(place), run)
    other = {"precision": "bf16", "device": "cuda:0", "teacher_top1": 79.0, "teacher_digest": None}
    environment = {"torch": "2.8.0", "commit": "bbbb", "modified": True}
    leave(tmp_path / "other", a_run("kd", 2, 71.0, environment=environment, **other))
    text = report(f"{tmp_path}/*")
    assert "| kd | 3 |" in text
    for warning in ("mixed precision", "mixed device", "mixed commit", "mixed torch"):
        assert f"Warning: {warning} among the runs: " in text
    assert "Warning: the code had uncommitted changes in 1 run" in text


@pytest.mark.parametrize("key", ["data_fingerprint", "teacher_digest"])
def test_groups_made_from_other_inputs_are_not_compared(key):
    runs = [*RUNS[:2], *({**run, key: "0" * 64} for run in RUNS[2:])]
    with pytest.raises(UserError, match=f"ea_kd and its baseline kd that differ in {key}"):
        compare(runs)
    rows = compare(runs, by=("method", key))
    assert [row.difference for row in rows] == [None, None]


def test_unknown_keys_and_baselines_are_refused_with_what_there_is():
    for by, found in ((["metod"], "metod"), (["method", "recipe.rl"], "recipe.rl"), (["x"], "x")):
        with pytest.raises(
            UserError, match=f"^by: found '{found}', allowed is a list of "
        ) as caught:
            compare(RUNS, by=by)
        for name in ("method", "student", "recipe.lr", "distiller.temperature", "teacher_digest"):
            assert name in str(caught.value)
    for baseline in ("dkd", "", "kd, lr=0.05"):
        with pytest.raises(UserError, match=r"^baseline: found .*one of 'kd', 'ea_kd'"):
            compare(RUNS, baseline=baseline)
    assert compare(RUNS[2:])[0].difference is None  # by default, kd where there is one


def test_groups_are_compared_with_the_baseline_of_the_same_other_keys():
    other = {"student.name": "resnet14"}
    runs = [*RUNS, *(a_run(r["method"], r["seed"], r["top1_last"] + 5, other) for r in RUNS)]
    runs[-1]["top1_last"] += 2
    rows = {row.method: row.difference for row in compare(runs, by=("method", "student"))}
    assert rows["kd, resnet8"] is None and rows["kd, resnet14"] is None
    assert rows["ea_kd, resnet8"].mean == 0 and rows["ea_kd, resnet14"].mean == 1


BROKEN = ["", "{", "[]", "3", b"\xff{}", '{"a": NaN}', None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("summary.json", content) for content in [*BROKEN, '{"seed": true}', "{}"]),
        *(("config.json", content) for content in BROKEN),
    ],
)
def test_runs_left_out_are_counted_with_reasons(name, content, tmp_path):
    for place, run in enumerate(RUNS):
        leave(tmp_path / str(place), run)
    unfinished = leave(tmp_path / "unfinished", RUNS[0])
    (unfinished / "summary.json").unlink()
    (unfinished / "status.json").write_text('{"state": "failed", "error": "a\\nb\\u001b[31m"}')
    metric = {"metrics": {"f1": "F1"}, "f1_last": 1.0, "f1_best": 1.0}
    leave(tmp_path / "other", a_run("kd", 9, **metric))
    broken = leave(tmp_path / "broken", a_run("kd", 8))
    (broken / name).unlink()
    if content is None:
        (broken / name).mkdir()
    else:
        (broken / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "no run").mkdir()
    text = report(f"{tmp_path}/**")
    assert "| kd | 2 |" in text
    assert "Left out: 3 of 7 runs (" in text
    for kind in ("1 damaged", "1 unfinished", "1 of another metric"):
        assert kind in text
    assert f"- {broken}: damaged: {broken / name}: " in text
    assert f"- {unfinished}: unfinished: failed: a b\\x1b[31m" in text
    assert f"- {tmp_path / 'other'}: of another metric: f1, most have top1" in text


@pytest.mark.parametrize("value", ["x", True, None, [1], 1e999])
@pytest.mark.parametrize("key", ["top1_last", "top1_best", "seconds", "teacher_top1"])
def test_a_value_of_another_type_is_damage(key, value, tmp_path):
    folder = leave(tmp_path / "run", a_run(**{key: value}))
    runs, left_out = find_runs([folder])
    assert runs == [] and key in left_out[folder] and left_out[folder].startswith("damaged: ")
    with pytest.raises(UserError, match=r"found no finished run .*1 left out, such as .*damaged"):
        report(f"{tmp_path}/*")


def table_of(runs, tmp_path):
    of = make_table(load_table("2"), pairs=["vgg13-vgg8"], methods=["kd", "ea_kd"])
    results = {
        cell: {run["seed"]: run for run in runs if run["method"] == cell.method}
        for cell in of.cells
        if cell.method != "teacher"
    }
    seeds = sorted({run["seed"] for run in runs})
    found = summarise(of, results, tmp_path, wanted_seeds=seeds, states={}, about={})
    return markdown(found)


@pytest.mark.parametrize("key", ["data_fingerprint", "teacher_digest"])
def test_a_table_takes_no_mean_over_runs_of_other_inputs(key, tmp_path):
    times = [f"2026-01-0{day}T10:00:00+0100" for day in (1, 2, 3, 4)]
    runs = [
        {**run, "directory": tmp_path / run["directory"], "finished": time}
        for run, time in zip(RUNS, times, strict=True)
    ]
    assert "stale" not in table_of(runs, tmp_path)
    runs[1] |= {key: "0" * 64, "top1_last": 0.0}  # not the newest
    text = table_of(runs, tmp_path)
    assert "70.00" in text and "(1 of 2, 1 stale) |" in text and "Warning: 1 run stale" in text
    assert "seed 1: stale: made with" in text and "retry=true" in text
    runs[3] |= {key: "0" * 64}  # the newest: what the others were made from is gone
    text = table_of(runs, tmp_path)
    assert text.count("(1 of 2, 1 stale) |") == 4 and "Warning: 2 runs stale" in text
    assert "stale" not in table_of([{**run, key: None} for run in runs], tmp_path)
