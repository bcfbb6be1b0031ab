"""Runs from a config: what they leave, killed and continued bit for bit, with a table or not."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.config import run_name
from eakd.errors import Interrupted, UserError
from eakd.language.distillers import SequenceKD
from eakd.training.run import run

TIMES = ("train_seconds", "samples_per_second")


def lines(directory, name="metrics.jsonl"):
    found = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def train(words, directory, *more):
    run(compose([*words, *more, f"run_dir={directory}"]))
    return directory


def assert_same_runs(found, expected):
    for name in ("best", "last", "snapshots/epoch002"):
        a, b = (load_file(each / name / "model.safetensors") for each in (found, expected))
        assert all(torch.equal(a[key], b[key]) for key in b), name
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        assert lines(found, name) == lines(expected, name)


class Killed(BaseException):
    """Like a process that is gone: nothing is saved."""


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["ea", "matched"])
@pytest.mark.parametrize("how", ["killed", "SIGTERM"])
def test_stopped_in_a_micro_batch_and_continued_bit_for_bit(
    words, tmp_path, monkeypatch, how, weighting
):
    job = [*words, f"weighting={weighting}"]
    expected = train(job, tmp_path / "whole")
    calls, forward = [], SequenceKD.forward

    def stop(self, batch, progress):
        calls.append(len(batch.step))
        if (progress.epoch, progress.step) == (2, 2) and batch.index is batch.step[1].index:
            if how == "killed":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(SequenceKD, "forward", stop)
        with pytest.raises(Killed if how == "killed" else Interrupted):
            train(job, tmp_path / "stopped")
    assert min(calls) > 1  # micro-batches
    assert len(lines(tmp_path / "stopped")) == 1
    (tmp_path / "stopped" / ".best.1.0123abcd.tmp").mkdir()  # as a kill while it is written leaves
    assert_same_runs(train(job, tmp_path / "stopped"), expected)
    assert not list((tmp_path / "stopped").glob(".*.tmp"))


def test_what_a_run_leaves(words, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = train(words, tmp_path / "run", "weighting.entropy_temperature=1")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["metrics"] == {"token_accuracy": "tokens %", "loss": "nats a token"}
    assert summary["method"] == "ea_kd" and summary["weighting"] == "ea"
    assert summary["teacher_loss"] > 0 and summary["selection"] == "test"
    line = lines(directory)[-1]
    assert line["train_loss_kd"] > 0 and line["weight_mean"] > 0 and line["weight_std"] > 0
    assert lines(directory)[0]["test_loss"] > line["test_loss"]  # it learns
    (first, *_) = lines(directory, "dynamics.jsonl")
    assert sum(first["by"]["epoch"]["samples"]) == 48
    best = directory / "best"
    model = AutoModelForCausalLM.from_pretrained(best)
    tokenizer = AutoTokenizer.from_pretrained(best)
    assert tokenizer.eos_token == "<|endoftext|>" and model.config.n_embd == 32
    assert json.loads((best / "eakd.json").read_text())["test_loss"]
    # Weights and head are one tensor, saved once.
    assert "lm_head.weight" not in load_file(best / "model.safetensors")


def test_cutting_a_step_otherwise_trains_the_same_student(words, tmp_path):
    job = [*words, "student.dropout=0", "recipe.epochs=2", "record.snapshots=[]"]
    few = train(job, tmp_path / "few", "data.tokens_per_batch=100000")
    many = train(job, tmp_path / "many", "data.tokens_per_batch=100", "recipe.accumulate=5")
    for a, b in zip(lines(few), lines(many), strict=True):
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-3), key


def test_a_table_of_hidden_states_changes_rounding_at_most(words, tmp_path, caplog):
    caplog.set_level("INFO")
    job = [*words, "student.dropout=0"]
    without = train(job, tmp_path / "without")
    assert "none" in json.loads((without / "environment.json").read_text())["teacher_table"]
    table = train(job, tmp_path / "with", "teacher.table=true")
    assert "answers for the teacher" in caplog.text
    name = json.loads((table / "summary.json").read_text())["teacher_table"]
    folder = tmp_path / "checkpoints" / "answers" / name
    assert (folder / "hidden.bin").stat().st_size % (48 * 4) == 0
    for a, b in zip(lines(without), lines(table), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-4), key
    # A run that began without stays without, though there is a table now; one with it keeps it.
    again = train([*job, "recipe.epochs=3"], tmp_path / "auto")
    assert json.loads((again / "summary.json").read_text())["teacher_table"] == name
    assert_same_runs(again, table)
    damaged = bytearray((folder / "hidden.bin").read_bytes())
    damaged[100] ^= 1
    (folder / "hidden.bin").write_bytes(damaged)
    caplog.clear()
    train(job, tmp_path / "damaged")
    assert "unfinished or damaged, teacher.table=true completes it" in caplog.text
    mended = train(job, tmp_path / "mended", "teacher.table=true")
    assert_same_runs(mended, table)


def test_a_finished_student_becomes_a_teacher(words, tmp_path):
    base = [word for word in words if not word.startswith(("teacher", "distiller"))]
    train([*base, "distiller=language/sft", "save_teacher=true"], tmp_path / "sft")
    saved = tmp_path / "checkpoints" / "text" / "tiny_gpt_s"
    assert (saved / "config.json").is_file() and (saved / "tokenizer.json").is_file()
    summary = json.loads((tmp_path / "sft" / "summary.json").read_text())
    assert summary["method"] == "sft" and summary["teacher"] is None
    taught = [*base, "teacher=tiny_gpt_s", "distiller=language/kd", "recipe.epochs=1"]
    run(compose([*taught, "record.snapshots=[]", f"run_dir={tmp_path / 'kd'}"]))
    kd = json.loads((tmp_path / "kd" / "summary.json").read_text())
    # The teacher is the best epoch.
    assert kd["teacher_token_accuracy"] == pytest.approx(summary["token_accuracy_best"], abs=1e-9)
    # A worse one does not replace it.
    more = ["distiller=language/sft", "recipe.epochs=1", "recipe.lr=1e-6", "record.snapshots=[]"]
    before = (saved / "eakd.json").read_text()
    train([*base, *more, "save_teacher=true"], tmp_path / "worse")
    assert (saved / "eakd.json").read_text() == before


def test_matrices_decay_and_biases_do_not(words, monkeypatch):
    from eakd.language.task import Language
    from eakd.targets import build
    from eakd.training.optimizer import make_optimizer
    from eakd.training.run import build_compute
    from eakd.training.schedule import Recipe

    config = compose(words)
    recipe, compute = build(config.recipe, "recipe", Recipe), build_compute(config)
    built = Language().build(config, recipe, compute)
    decayed, free = make_optimizer(built.distiller, recipe, compute).param_groups
    names = {id(p): name for name, p in built.distiller.student.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= {
        names[id(p)] for p in decayed["params"]
    }
    assert all(
        name.endswith("bias") or ".ln_" in name for name in (names[id(p)] for p in free["params"])
    )
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_names_of_runs():
    base = ["data=dolly_minillm", "teacher=gpt2_xl", "student=gpt2"]
    names = {
        name: run_name(compose([*base, *more]))
        for name, more in {
            "ea": ["distiller=language/ea_kd"],
            "weighting": ["distiller=language/kd", "weighting=ea"],
            "plain": ["distiller=language/kd"],
            "sft": ["distiller=language/sft"],
            "sft_ea": ["distiller=language/sft", "weighting=ea"],
            "elsewhere": ["distiller=language/kd", "data.root=/elsewhere"],
            "jsd": ["distiller=language/ea_jsd"],
        }.items()
    }
    assert names["ea"] == names["weighting"] and "/gpt2_xl-gpt2/ea_kd/" in names["ea"]
    assert names["sft"] == names["sft_ea"] and "/gpt2/sft/" in names["sft"]
    assert names["plain"] == names["elsewhere"] != names["ea"]
    assert "/ea_jsd/" in names["jsd"]


def test_a_real_model_teaches_on_real_text(real_data, tmp_path, words):
    """A Llama with a tokenizer of its own, as teacher and as the start of the student."""
    import zipfile

    for name in ("tiny-lm.zip", "instruct.zip"):
        with zipfile.ZipFile(real_data / name) as archive:
            archive.extractall(tmp_path)
    model = tmp_path / "tiny-lm" / "stories260K"
    rows = (tmp_path / "instruct" / "dolly" / "dev.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(rows[:40]))
    (tmp_path / "b.jsonl").write_text("".join(rows[40:60]))
    job = [
        *words,
        "data.tokenizer=null",
        f"data.train={tmp_path / 'a.jsonl'}",
        f"data.dev={tmp_path / 'b.jsonl'}",
        "data.max_prompt_length=250",
        "data.max_length=300",
        "data.tokens_per_batch=4096",
        f"teacher.path={model}",
        "student=hf",
        f"student.path={model}",
        "recipe.epochs=1",
        "recipe.batch_size=8",
        "recipe.lr=5e-4",
        "record.snapshots=[]",
    ]
    job = [word for word in job if not word.startswith(("student.width", "student.dropout"))]
    directory = train(job, tmp_path / "run")
    summary = json.loads((directory / "summary.json").read_text())
    # It starts as good as its teacher, and learns the new domain.
    assert summary["loss_last"] < summary["teacher_loss"] - 0.2
    assert set(summary) >= {"student_digest", "teacher_digest", "data_fingerprint"}
    (line,) = lines(directory)
    assert line["weight_std"] > 0.02 * line["weight_mean"]  # of a real, uneven distribution
    with pytest.raises(UserError, match="found a tokenizer that differs from the student's"):
        train([*words, f"teacher.path={model}"], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_bf16_trains_nearly_the_same_and_has_tables_of_its_own(words, tmp_path):
    job = [*words, "student.dropout=0", "recipe.epochs=2", "record.snapshots=[]"]
    exact = train(job, tmp_path / "float32")
    half = train([*job, "precision=bf16"], tmp_path / "bf16")
    table = train([*job, "precision=bf16", "teacher.table=true"], tmp_path / "table")
    for rough in (half, table):
        for a, b in zip(lines(exact), lines(rough), strict=True):
            for key in ("train_loss_ce", "train_loss_kd", "test_loss"):
                assert a[key] == pytest.approx(b[key], rel=0.03), key
    # Weights stay float32, as an optimiser needs them.
    weights = load_file(half / "last" / "model.safetensors").values()
    assert {each.dtype for each in weights} == {torch.float32}
    (folder,) = (tmp_path / "checkpoints" / "answers").iterdir()
    tokens = json.loads((folder / "table.json").read_text())["facts"]["shape"]
    assert (folder / "hidden.bin").stat().st_size == 2 * tokens[0] * tokens[1]


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["ea", "matched"])
def test_two_processes_train_the_same_student(words, tmp_path, weighting):
    import subprocess
    import sys

    from eakd.places import ROOT

    job = [*words, "student.dropout=0", "recipe.epochs=2", "record.snapshots=[]"]
    job.append(f"weighting={weighting}")
    expected = train(job, tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "scripts/train.py", *job, "threads=1", f"run_dir={tmp_path / 'two'}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for a, b in zip(lines(expected), lines(tmp_path / "two"), strict=True):
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-3), key
