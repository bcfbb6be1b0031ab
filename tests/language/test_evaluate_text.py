"""``evaluate_text``: any directory, killed anywhere, and one line for what cannot be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from eakd.command_line import guard
from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.language.command import evaluate_checkpoint, table_metrics
from eakd.language.evaluate import Protocol, evaluate_rows
from eakd.language.generate import Sampling
from eakd.language.predictions import Prediction, Predictions
from eakd.language.text import load_rows
from language.tiny_models import gpt2, save, tokenizer, unpacked, write_lines

WORDS = ["red", "green", "blue", "one", "two", "three", "Paris", "river"]


def rows(count, references=1):
    return [
        {
            "instruction": f"Say {WORDS[i % 8]} {i}.",
            "input": WORDS[(3 * i) % 8] if i % 3 else "",
            "output": [f"{WORDS[(i + j) % 8]} and {i}" for j in range(references)],
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and three of the sets."""
    root = tmp_path_factory.mktemp("language")
    save(root / "model")
    write_lines(root / "data/dolly/valid.jsonl", rows(12))
    write_lines(root / "data/vicuna/valid.jsonl", rows(5))
    write_lines(root / "data/sinst/11_/valid.jsonl", rows(6, references=3))
    return root


def command(place, results, *more, checkpoint="model"):
    return [
        f"checkpoint={place / checkpoint}",
        f"data.root={place / 'data'}",
        f"results={results}",
        "device=cpu",
        "precision=float32",
        "progress=false",
        "evaluation.max_new_tokens=12",
        "evaluation.seeds=[1,2]",
        *more,
    ]


def evaluate(*words):
    return evaluate_checkpoint(compose(list(words), "evaluate_text"))


def files_of(folder):
    """Every prediction, whatever the order in its file."""
    return {
        path.name: sorted(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((folder / "predictions").iterdir())
    }


def test_the_sets_that_are_there_are_evaluated(place, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    result = evaluate(*command(place, tmp_path))
    assert list(result["sets"]) == ["dolly", "vicuna", "s_ni"]
    told = [line for line in caplog.messages if "its column stays empty" in line]
    assert [line.partition(":")[0] for line in told] == ["self_inst", "un_ni"]
    dolly = result["sets"]["dolly"]
    assert dolly["counts"] == {"read": 12, "evaluated": 12} and dolly["of_the_tables"] is False
    assert 0 <= dolly["ended"] <= 100 and 0 < dolly["answer_length"] <= 12
    each = [dolly["rouge_l_seed1"], dolly["rouge_l_seed2"]]
    assert dolly["rouge_l"] == pytest.approx(sum(each) / 2)
    assert dolly["sampling_std"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert result["metrics"]["rouge_l_dolly"] == dolly["rouge_l"]
    assert "rouge_l_average" not in result["metrics"]
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert "Protocol authors" in capsys.readouterr().out
    names = {f"{name}-{seed}.jsonl" for name in ("dolly", "vicuna", "s_ni") for seed in (1, 2)}
    assert names == set(files_of(tmp_path))


def test_batch_size_and_what_was_done_before_change_nothing(place, tmp_path):
    whole = evaluate(*command(place, tmp_path / "a", "sets=[dolly]"))
    other = evaluate(*command(place, tmp_path / "b", "sets=[dolly]", "batch_size=3"))
    assert whole["sets"]["dolly"] == other["sets"]["dolly"]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    # Half of one file, a torn line, and nothing of the other.
    first = tmp_path / "b/predictions/dolly-1.jsonl"
    lines = first.read_text(encoding="utf-8").splitlines(keepends=True)
    first.write_text("".join(lines[:6]) + lines[6][:20], encoding="utf-8")
    (tmp_path / "b/predictions/dolly-2.jsonl").unlink()
    again = evaluate(*command(place, tmp_path / "b", "sets=[dolly]"))
    assert again["sets"]["dolly"] == whole["sets"]["dolly"]
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_killed_evaluation_goes_on(place, tmp_path):
    """By SIGKILL while it samples; the answers in its files are not sampled again."""
    write_lines(tmp_path / "data/dolly/valid.jsonl", rows(60))
    shutil.copytree(place / "model", tmp_path / "model")
    words = command(tmp_path, tmp_path / "killed", "sets=[dolly]", "batch_size=4")
    words.append("evaluation.max_new_tokens=24")
    script = [sys.executable, str(ROOT / "scripts" / "evaluate_text.py"), *words]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, env=os.environ)
    path = tmp_path / "killed/predictions/dolly-1.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size > 2000):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = path.read_text(encoding="utf-8").splitlines()
    assert 2 < len(before) < 61
    found = evaluate(*words)
    words[2] = f"results={tmp_path / 'whole'}"
    assert evaluate(*words)["sets"] == found["sets"]
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert path.read_text(encoding="utf-8").splitlines()[: len(before) - 1] == before[:-1]


def test_predictions_of_another_checkpoint_or_protocol_are_refused(place, tmp_path):
    save(tmp_path / "other", seed=1)
    shutil.copytree(place / "data", tmp_path / "data")
    words = command(place, tmp_path / "r", "sets=[vicuna]")
    evaluate(*words)
    kept = files_of(tmp_path / "r")
    other = command(tmp_path, tmp_path / "r", "sets=[vicuna]", checkpoint="other")
    with pytest.raises(UserError, match=r"vicuna-1\.jsonl: found predictions of something else"):
        evaluate(*other)
    with pytest.raises(UserError, match=r"sampling\.top_p"):
        evaluate(*words, "evaluation.top_p=0.9")
    write_lines(tmp_path / "data/vicuna/valid.jsonl", rows(4))
    with pytest.raises(UserError, match="rows"):
        evaluate(*command(place, tmp_path / "r", f"data.root={tmp_path / 'data'}", "sets=[vicuna]"))
    assert files_of(tmp_path / "r") == kept
    evaluate(*other, "replace=true")
    assert files_of(tmp_path / "r") != kept


def test_greedy_needs_one_seed(place, tmp_path):
    words = command(place, tmp_path, "sets=[vicuna]", "evaluation=greedy", "evaluation.seeds=[0]")
    result = evaluate(*words)
    assert "sampling_std" not in result["sets"]["vicuna"]
    assert result["protocol"]["temperature"] == 0
    with pytest.raises(UserError, match=r"evaluation\.seeds: found 2 seeds with temperature 0"):
        evaluate(*words, "evaluation.seeds=[1,2]")


def test_the_published_protocol():
    protocol = compose(["checkpoint=x"], "evaluate_text").evaluation
    assert (protocol.temperature, protocol.top_k, protocol.top_p) == (1, 0, 1)
    assert (protocol.no_repeat_ngram_size, protocol.max_new_tokens) == (6, 256)
    assert protocol.seeds == [10, 20, 30, 40, 50] and protocol.max_prompt_length == 256


def test_the_average_needs_all_five_sets():
    sets = ("dolly", "self_inst", "vicuna", "s_ni", "un_ni")
    scores = {
        name: {"rouge_l": 10.0 + i, "sampling_std": 1.0, "rouge_l_seed1": 9.0 + i,
               "rouge_l_seed2": 11.0 + i}
        for i, name in enumerate(sets)
    }  # fmt: skip
    found = table_metrics(scores)
    assert found["rouge_l_average"] == 12.0
    assert found["rouge_l_average_sampling_std"] == pytest.approx(2**0.5)
    del scores["un_ni"]
    assert "rouge_l_average" not in table_metrics(scores)


def test_a_set_of_ones_own(place, tmp_path):
    mine = write_lines(tmp_path / "mine.jsonl", rows(3))
    words = command(place, tmp_path / "r", f"data.files={{mine: {mine}}}")
    result = evaluate(*words, "sets=[mine,vicuna]")
    assert list(result["sets"]) == ["mine", "vicuna"]
    assert result["sets"]["mine"]["of_the_tables"] is None


def test_long_prompts_are_left_out_and_counted(place, tmp_path):
    some = rows(4)
    some[1]["instruction"] += " long" * 300
    mine = write_lines(tmp_path / "mine.jsonl", some)
    words = command(place, tmp_path / "r", f"data.files={{mine: {mine}}}", "sets=[mine]")
    counts = evaluate(*words)["sets"]["mine"]["counts"]
    assert counts == {"read": 4, "evaluated": 3}


@pytest.mark.parametrize(
    "words, message",
    [
        (["sets=[]"], r"sets: found \[\], allowed is a list of dolly, self_inst, vicuna"),
        (["sets=[dolly,wmt]"], "sets: found 'wmt', allowed is one of dolly, self_inst, vicuna"),
        (["evaluation.seeds=[]"], r"evaluation\.seeds: found \[\]"),
        (["evaluation.seeds=[1,1]"], r"evaluation\.seeds: found \[1, 1\]"),
        (["evaluation.top_p=2"], r"evaluation\.top_p: found 2, allowed is a number"),
        (["evaluation.max_new_tokens=600"], r"evaluation\.max_new_tokens: found 600 after"),
        (["evaluation.max_prompt_length=3"], r"evaluation\.max_prompt_length: found 3, which"),
        (["batch_size=0"], "batch_size: found 0"),
        (["precision=fp16"], "precision: found 'fp16', allowed is one of auto, bf16, float32"),
        (["data.root=/nowhere"], "data.root: dolly: found neither dolly/valid.jsonl"),
        (["checkpoint=/nowhere/model"], "checkpoint: found no config.json in '/nowhere/model'"),
        (["checkpoint=gpt2-of-nobody"], "checkpoint: found no gpt2-of-nobody here"),
        (["data.files={a/b: x}", "sets=[dolly]"], "data.files: found 'a/b'"),
    ],
)
def test_wrong_values_are_told_before_anything_is_sampled(
    place, tmp_path, monkeypatch, words, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*command(place, tmp_path / "r", *words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "predictions").exists()


def damaged(place, folder, what):
    shutil.copytree(place / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    if what == "no config":
        (folder / "config.json").unlink()
    elif what == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif what == "not causal":
        config["architectures"] = ["BertForMaskedLM"]
    elif what == "own code":
        config["auto_map"] = {"AutoModelForCausalLM": "code.Model"}
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "a pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    elif what == "smaller than the tokenizer":
        shutil.rmtree(folder)
        gpt2(vocab=100).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return
    if what != "no config":
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "what, message",
    [
        ("no config", r"checkpoint: found no config\.json in"),
        ("no tokenizer", r"checkpoint: found no tokenizer\.json in .*tokenizer=DIRECTORY"),
        ("not causal", "checkpoint: found BertForMaskedLM, allowed is a causal language model"),
        ("own code", "found a model that runs code of its own, allowed with trust_remote_code"),
        ("no weights", "checkpoint: found no model that can be read"),
        ("a pickle", "checkpoint: found no model that can be read"),
        ("smaller than the tokenizer", "checkpoint: found 100 embeddings, allowed is at least"),
    ],
)
def test_a_directory_that_is_no_model_is_told(place, tmp_path, what, message):
    damaged(place, tmp_path / "model", what)
    words = command(place, tmp_path / "r", f"checkpoint={tmp_path / 'model'}")
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*words)
    assert "\n" not in str(caught.value)


def test_references_without_words_are_refused(place, tmp_path):
    some = [{"instruction": "Say it.", "input": "", "output": "日本語"}]
    mine = write_lines(tmp_path / "mine.jsonl", some)
    words = command(place, tmp_path / "r", f"data.files={{mine: {mine}}}", "sets=[mine]")
    with pytest.raises(UserError, match="found references without a word that ROUGE sees"):
        evaluate(*words)


def test_the_command_ends_with_status_2_and_one_line(place, tmp_path):
    words = command(place, tmp_path, "sets=[wmt]")
    script = [sys.executable, str(ROOT / "scripts" / "evaluate_text.py"), *words]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    with pytest.raises(UserError, match="sets: found 'wmt'"):
        guard(evaluate_checkpoint, compose(words, "evaluate_text"), "evaluate_text")


def test_a_trained_model_on_real_sets(real_data, tmp_path_factory, tmp_path):
    stories = unpacked(real_data, tmp_path_factory, "tiny-lm") / "stories260K"
    instruct = unpacked(real_data, tmp_path_factory, "instruct")
    result = evaluate(
        f"checkpoint={stories}",
        f"data.root={instruct}",
        f"results={tmp_path}",
        "sets=[vicuna,un_ni]",
        *("evaluation.max_new_tokens=24", "evaluation.seeds=[10,20]"),
        *("device=cpu", "precision=float32", "progress=false"),
    )
    vicuna = result["sets"]["vicuna"]
    assert vicuna["of_the_tables"] is True and vicuna["counts"]["evaluated"] == 80
    assert 1 < vicuna["rouge_l"] < 10  # words of children's stories
    assert list(result["metrics"]) == ["rouge_l_vicuna", "rouge_l_vicuna_sampling_std"]


def test_rows_are_evaluated_inside_a_training_run(tmp_path):
    """The model's mode and weights stay, dropout does nothing, the same seeds say the same."""
    model = gpt2().train()
    some = load_rows(write_lines(tmp_path / "dev.jsonl", rows(9)), tokenizer())
    settings = {"seeds": range(2), "protocol": Sampling(max_new_tokens=8)}
    first = evaluate_rows(model, tokenizer(), some, **settings)
    assert model.training and first == evaluate_rows(model, tokenizer(), some, **settings)
    assert {"rouge_l", "sampling_std", "ended", "answer_length"} < first.keys()
    own = Protocol(max_new_tokens=8)
    assert (
        evaluate_rows(model, tokenizer(), some, seeds=[0], protocol=own)["rouge_l"]
        == (first["rouge_l_seed0"])
    )
    with pytest.raises(UserError, match="rows: found none"):
        evaluate_rows(model, tokenizer(), [], **settings)


def test_predictions_are_read_back_as_they_were_written(tmp_path):
    path, about = tmp_path / "p.jsonl", {"checkpoint": "a", "seed": 1}
    written = [Prediction(i, f"line\n{i} \u2028é", i, bool(i % 2)) for i in range(5)]
    store = Predictions(path, about)
    store.add(written[:2])
    store.add(written[2:])
    assert list(Predictions(path, about).done.values()) == written
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):  # killed after any byte
        path.write_bytes(whole[:end])
        found = Predictions(path, about).done
        assert [*found.values()] == written[: len(found)]
        missing = [each for each in written if each.row not in found]
        Predictions(path, about).add(missing)
        assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"tokens": 2', b'"tokens": null'))
    assert sorted(Predictions(path, about).done) == [0, 1, 3, 4]


@pytest.mark.slow
def test_two_processes_share_the_rows_and_give_the_same_answers(place, tmp_path):
    words = ["sets=[dolly,s_ni]", "batch_size=4"]
    alone = evaluate(*command(place, tmp_path / "one", *words))
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        str(ROOT / "scripts" / "evaluate_text.py"),
        *command(place, tmp_path / "two", *words),
    ]
    done = subprocess.run(torchrun, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    assert together["sets"] == alone["sets"]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
