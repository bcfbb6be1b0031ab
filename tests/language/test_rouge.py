"""ROUGE-L: the published scorer's numbers, real answers, several references."""

import json

import pytest

from eakd.errors import UserError
from eakd.language import rouge
from eakd.language.evaluate import clean
from eakd.language.rouge import has_words, rouge_l
from language.tiny_models import unpacked

# What DSKD's scorer says of these, pair by pair, and in the mean.
ANSWERS = [
    "The cat sat on the mat.",
    "",
    "Running quickly through fields",
    "A, B and C!",
    "completely different text",
]
REFERENCES = [
    ["a cat is sitting on the mat"],
    ["something"],
    ["runs quick through the field", "He was running quickly"],
    ["a b and c"],
    ["nothing in common here"],
]
SCORES = [61.53846153846153, 0, 66.66666666666665, 100.0, 0.0]


def test_golden_pairs():
    scores = rouge_l(ANSWERS, REFERENCES)
    assert scores == pytest.approx(SCORES, abs=1e-9)
    assert sum(scores) / len(scores) == pytest.approx(45.641, abs=5e-4)


def test_the_best_reference_counts():
    references = ["He was running quickly", "runs quick through the field"]
    (best,) = rouge_l(ANSWERS[2:3], [references])
    each = [rouge_l(ANSWERS[2:3], [[reference]])[0] for reference in references]
    assert best == max(each) > min(each) and best == pytest.approx(SCORES[2])


def test_real_answers_of_gpt2(real_data, tmp_path_factory):
    folder = unpacked(real_data, tmp_path_factory, "instruct")
    lines = (folder / "rouge" / "gpt2-base_dolly-dev.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    scores = rouge_l([row["answer"] for row in rows], [[row["reference"]] for row in rows])
    assert sum(scores) / len(scores) == pytest.approx(6.1564, abs=5e-5)


def test_several_processes_score_the_same(monkeypatch):
    monkeypatch.setattr(rouge, "POOL_FROM", 10)
    monkeypatch.setattr(rouge, "CHUNK", 4)
    assert rouge_l(ANSWERS * 3, REFERENCES * 3) == pytest.approx(SCORES * 3, abs=1e-9)


def test_a_row_without_a_reference_is_refused():
    with pytest.raises(UserError, match="references of row 1: found none"):
        rouge_l(["a", "b"], [["a"], []])


def test_words_are_what_rouge_sees():
    assert has_words("été 5") and not has_words("日本語。") and not has_words(" \n")
    assert rouge_l(["日本語"], [["日本語"]]) == [0.0]


def test_answers_are_cut_and_stripped_as_published():
    assert clean(" one<n>two <|endoftext|> three") == "one\ntwo"
