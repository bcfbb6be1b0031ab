"""Table 6: its cells, a small table that is trained and then evaluated, and both spreads."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from eakd.composing import compose
from eakd.config import ROOT, method_label
from eakd.reproduce.evaluations import Evaluation, add_metrics, evaluations
from eakd.reproduce.plan import make_plan
from eakd.reproduce.table import load_table, make_table, printed
from eakd.reproduce.table_report import markdown, summarise
from eakd.reproduce.table_report.text import csv_text
from language.tiny_models import tokenizer, write_lines

SETS = ("dolly", "self_inst", "vicuna", "s_ni", "un_ni")
DIVERGENCES = {"sft": None, "rkld": "reverse_kl", "jsd": "jsd"} | dict.fromkeys(
    ("kd", "kd+matched", "ea_kd"), "forward_kl"
)
METRICS = tuple(f"rouge_l_{name}" for name in (*SETS, "average"))


def table(**narrowed):
    return make_table(load_table("6"), **narrowed)


def test_the_table_is_the_papers():
    six = table()
    assert six.metrics == METRICS
    assert six.methods == ("teacher", "sft", "kd", "kd+matched", "ea_kd", "rkld", "jsd")
    assert (six.evaluation, six.select, six.protocol) == ("authors", "best", "default")
    ea = printed("6", "gpt2_xl-gpt2", "ea_kd")
    assert [ea[name] for name in METRICS] == [24.95, 10.59, 16.41, 18.27, 21.46, 18.34]
    for cell in six.cells:
        if cell.paper:  # averages agree with their columns as printed
            mean = sum(cell.paper[f"rouge_l_{name}"] for name in SETS) / 5
            assert mean == pytest.approx(cell.paper["rouge_l_average"], abs=0.0061)


def test_its_runs_are_the_published_settings():
    for cell in table().cells:
        if not cell.overrides:
            continue
        config = compose([*cell.overrides, "data=dolly_minillm"])
        assert method_label(config) == cell.method
        assert (config.teacher.name, config.student.name) == ("gpt2_xl", "gpt2")
        assert (config.recipe.epochs, config.recipe.batch_size) == (20, 32)
        assert config.data.task == config.distiller.task
        assert config.distiller._target_.startswith("eakd.language.")
        assert config.distiller.get("divergence") == DIVERGENCES[cell.method]
    experiment = compose(["experiment=table6"])
    assert (experiment.data.name, experiment.distiller.name) == ("dolly_minillm", "kd")


def test_the_plan_has_a_teacher_and_an_evaluation_of_every_checkpoint(tmp_path):
    plan = make_plan(
        table(),
        overrides=["data.root=/data", "device=cpu", "recipe.lr=1e-4"],
        output_root=str(tmp_path),
        checkpoint_root=str(tmp_path / "checkpoints"),
    )
    (teacher,) = plan.teachers
    assert teacher.saves == tmp_path / "checkpoints/dolly_minillm/gpt2_xl"
    assert teacher.identified["distiller"]["name"] == "sft"
    assert teacher.identified["recipe"]["lr"] == 1e-4
    assert len(plan.students) == 30
    found = evaluations(plan, "best")
    assert len(found) == 31
    run = plan.students[7].directory
    assert found[run].checkpoint == run / "best" and run in found[run].folder.parents
    words = found[run].overrides(plan.table, plan.overrides)
    assert {"evaluation=authors", "data.root=/data", "device=cpu"} <= set(words)
    assert not any(word.startswith("recipe") for word in words)
    assert found[teacher.saves].run is None
    assert all(each.result is None for each in found.values())


# A report from made-up results


def finished(tmp_path, plan, sets=SETS, base=20.0):
    """Runs with summaries, and an evaluation beside each."""
    runs = {}
    for place, job in enumerate(plan.students):
        seed = job.identified["seed"]
        values = {f"rouge_l_{name}": base + i + 0.1 * place for i, name in enumerate(sets)}
        spreads = {f"{name}_sampling_std": 0.3 + 0.1 * seed for name in values}
        folder = job.directory / "evaluations" / "best-authors"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(
            json.dumps({"metrics": values | spreads, "checkpoint_digest": "s"})
        )
        runs[job.directory] = {
            "seed": seed, "epochs": 20, "selection": "val", "seconds": 60.0, "recipe": "dskd",
            "token_accuracy_last": 50.0, "token_accuracy_best": 51.0, "teacher_digest": "t",
            "directory": job.directory, "config": {}, "metrics": {"token_accuracy": "tokens %"},
        }  # fmt: skip
    return runs


def report_of(tmp_path, sets=SETS, teacher="t"):
    plan = make_plan(
        table(methods=["kd", "ea_kd"]),
        seeds=[0, 1, 2],
        output_root=str(tmp_path),
        checkpoint_root=str(tmp_path / "checkpoints"),
    )
    runs, measured = finished(tmp_path, plan, sets), evaluations(plan, "best")
    folder = tmp_path / "evaluations/authors/teacher-gpt2_xl"
    folder.mkdir(parents=True)
    metrics = {"rouge_l_dolly": 27.0, "rouge_l_dolly_sampling_std": 0.25}
    (folder / "result.json").write_text(
        json.dumps({"metrics": metrics, "checkpoint_digest": teacher})
    )
    runs = {
        job.directory: add_metrics(runs[job.directory], job, measured, "best")
        for job in plan.students
    }
    results = {
        cell: {seed: runs[job.directory] for seed, job in jobs.items()}
        for cell, jobs in plan.cells.items()
    }
    return summarise(
        plan.table, results, tmp_path, select="best", wanted_seeds=[0, 1, 2], states={}, about={}
    )


def rows_of(text):
    return [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_report_shows_both_spreads_and_says_what_is_quoted(tmp_path):
    text = markdown(report_of(tmp_path))
    rows = rows_of(text)
    # Runs of kd are 0, 2, 4 in the plan's order, those of ea_kd 1, 3, 5: seed by seed.
    assert ["kd", "training seeds", *["0.20"] * 5, "–"] in rows
    pooled = ((0.3**2 + 0.4**2 + 0.5**2) / 3) ** 0.5
    assert ["", "sampling seeds", *[f"{pooled:.2f}"] * 5, "–"] in rows
    assert ["teacher", "sampling seeds", "0.25", *["–"] * 5] in rows
    (paper,) = [row for row in rows if row[:2] == ["ea_kd", "paper"]]
    assert paper[2] == "**24.95**"
    assert "Table 6's rows teacher, sft, kd, rkld and jsd are quotations" in text
    assert "not checked against DSKD" in text
    assert "token_accuracy" not in text


def test_a_missing_set_leaves_its_column_empty(tmp_path):
    report = report_of(tmp_path, sets=SETS[:4])
    rows = rows_of(markdown(report))
    ours = [row for row in rows if row[1:2] == ["ours"] and "(3)" in row[2]]
    assert len(ours) == 2
    for row in ours:  # un_ni, and with it the average
        assert row[-2:] == ["– (0 of 3)"] * 2 and "(3)" in row[-3]
    assert "un_ni" in csv_text(report)


def test_a_teacher_that_is_not_the_runs_is_not_shown(tmp_path):
    report = report_of(tmp_path, teacher="another")
    (entry,) = [
        e for e in report.entries if e.cell.method == "teacher" and e.metric == "rouge_l_dolly"
    ]
    assert entry.best.mean is None


def test_an_evaluation_of_a_model_that_is_no_longer_there_does_not_count(tmp_path):
    model, folder = tmp_path / "model", tmp_path / "results"
    for place in (model, folder):
        place.mkdir()
    (model / "config.json").write_text("{}")
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    (folder / "result.json").write_text(json.dumps({"metrics": {}, "time": now}))
    evaluation = Evaluation("the teacher", model, folder)
    assert evaluation.result is not None
    later = time.time() + 60
    os.utime(model / "config.json", (later, later))
    assert evaluation.result is None
    (folder / "result.json").write_text('{"metrics": ')
    assert evaluation.result is None


# A small table of the same kind, from nothing


WORDS = ["red", "green", "blue", "one", "two", "three"]


def text_rows(count, start=0):
    return [
        {"instruction": f"Say {WORDS[i % 6]}.", "input": "", "output": f"It is {WORDS[i % 6]}."}
        for i in range(start, start + count)
    ]


@pytest.mark.slow
def test_a_table_is_trained_evaluated_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = tmp_path / "own"
    files = {
        "tables/small.yaml": (
            "data: text\nmetrics: [rouge_l_dolly, rouge_l_vicuna]\ngroup: language\n"
            "rows: method\ncolumns: metric\nevaluation: quick\nselect: best\nprotocol: default\n"
            "seeds: [0, 1]\npairs: [tiny_gpt_t-tiny_gpt_s]\nmethods: [teacher, sft, kd+matched]\n"
        ),
        "evaluation/quick.yaml": (
            "_target_: eakd.language.evaluate.Protocol\nname: quick\nseeds: [1, 2]\n"
            "max_new_tokens: 6\nmax_prompt_length: 100\n"
        ),
    }
    for name, text in files.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    write_lines(tmp_path / "train.jsonl", text_rows(24))
    write_lines(tmp_path / "dev.jsonl", text_rows(6))
    write_lines(tmp_path / "dolly/valid.jsonl", text_rows(6, 3))
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    lengths = ["data.max_prompt_length=100", "data.max_length=127", "data.template=plain"]
    overrides = [
        *(f"data.root={tmp_path}", "data.train=train.jsonl", "data.dev=dev.jsonl"),
        *(f"data.tokenizer={tmp_path / 'tokenizer'}", "recipe.epochs=1", "recipe.batch_size=8"),
        *lengths,
        *("teacher.layers=2", "teacher.width=64", "device=cpu", "precision=float32"),
    ]
    words = [
        *("table=small", f"output_root={tmp_path / 'outputs'}", "mode=run"),
        f"checkpoint_root={tmp_path / 'checkpoints'}",
        f"overrides={json.dumps(overrides)}",
    ]
    done = command(own, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    results = sorted((tmp_path / "outputs").rglob("result.json"))
    assert len(results) == 5  # two seeds of two methods, and the teacher
    found = [json.loads(path.read_text()) for path in results]
    assert all([*each["sets"]] == ["dolly"] for each in found)
    text = done.stdout
    rows = rows_of(text)
    for method in ("teacher", "sft", "kd+matched"):
        (row,) = [r for r in rows if r[0] == method and re.match(r"\W*\d+\.\d\d", r[1])]
        assert row[2].startswith("–")
    assert any(row[:2] == ["sft", "training seeds"] for row in rows)
    # Once more: nothing to do. A result that is gone is made again from the answers that are kept.
    times = {path: path.stat().st_mtime_ns for path in results}
    results[0].unlink()
    assert command(own, *words).returncode == 0
    again = {path: path.stat().st_mtime_ns for path in results}
    assert [path for path in results if again[path] != times[path]] == results[:1]
    same = json.loads(results[0].read_text())
    assert same["sets"] == found[0]["sets"]


def command(own, *words):
    script = [sys.executable, str(ROOT / "scripts/reproduce.py"), f"--config-dir={own}", *words]
    return subprocess.run(script, capture_output=True, text=True, check=False)
