"""Rows from files: what is encoded, cut, left out and refused."""

import gzip
import json

import pytest

from eakd.errors import UserError
from eakd.language.batches import TextData
from eakd.language.models import check_same_tokens, load_tokenizer
from eakd.language.source import HERE, dolly, python_docs, text_files
from eakd.language.text import TEMPLATES, load_rows

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(HERE / "python_docs.tokenizer.json")


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
        return path

    return write


def row(instruction="Say yes.", output="Yes.", **more):
    return {"instruction": instruction, "output": output, **more}


def test_prompt_and_answer(tokenizer, write):
    path = write(row(), row(input="{braces}"), {"prompt": "One", "completion": " two"})
    plain, given, own = load_rows(path, tokenizer, training=True)
    assert plain.prompt == TEMPLATES["alpaca"][1].format(instruction="Say yes.")
    assert "### Input:\n{braces}\n\n### Response:\n" in given.prompt
    assert (own.prompt, own.references) == ("One", (" two",))
    assert tokenizer.decode(plain.prompt_ids) == plain.prompt
    assert tokenizer.decode(plain.response_ids) == "Yes." + END
    assert plain.response_ids[-1] == tokenizer.eos_token_id
    assert [each.line for each in (plain, given, own)] == [1, 2, 3]


def test_text_that_spells_the_end_is_characters(tokenizer, write):
    path = write(row(f"Say {END}", f"{END}!"))
    rows = load_rows(path, tokenizer, training=True)
    assert rows.counts["special"] == 1
    (only,) = rows
    end = tokenizer.eos_token_id
    assert end not in only.prompt_ids and only.response_ids.count(end) == 1
    assert tokenizer.decode(only.response_ids) == f"{END}!{END}"


def test_lengths(tokenizer, write):
    long = "word " * 60
    path = write(row(), row(long), row(output=long))
    limits = {"max_prompt_length": 60, "max_length": 75, "template": "plain"}
    rows = load_rows(path, tokenizer, **limits)
    assert [each.line for each in rows] == [1, 3]
    counts = {"read": 3, "kept": 2, "prompt_too_long": 1, "truncated": 1}
    assert counts.items() <= rows.counts.items()
    cut = rows[1]
    assert cut.truncated and len(cut.prompt_ids) + len(cut.response_ids) == 75
    assert cut.response_ids[-1] != tokenizer.eos_token_id  # as published
    assert cut.references == (long,)  # the reference is whole
    kept = load_rows(path, tokenizer, long_prompts="truncate", **limits)
    assert len(kept) == 3 and len(kept[1].prompt_ids) == 60
    assert kept.counts["prompt_truncated"] == 1


def test_several_references_and_compressed_files(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(row(output=["Yes.", "Yes"])) + "\n\n")
    (only,) = load_rows(path, tokenizer)
    assert only.references == ("Yes.", "Yes")
    with pytest.raises(UserError, match=r"line 1: found \['Yes\.', 'Yes'\] output, allowed is a"):
        load_rows(path, tokenizer, training=True)


def test_equal_rows_have_equal_fingerprints(tokenizer, write):
    first = load_rows(write(row()), tokenizer)
    assert first.fingerprint == load_rows(write(row(more=1), name="b"), tokenizer).fingerprint
    assert first.fingerprint != load_rows(write(row(output="No."), name="c"), tokenizer).fingerprint


@pytest.mark.parametrize(
    ("lines", "settings", "words"),
    [
        ([row(), "{broken\n"], {}, "data: found no JSON object in {path} line 2"),
        (["[1]\n"], {}, "data: found no JSON object in {path} line 1"),
        ([{"instruction": "a"}], {}, "{path} line 1: found no output, allowed is a text"),
        ([row(output=3)], {}, "{path} line 1: found 3 output, allowed is a text"),
        ([row(output=[])], {"training": False}, "{path} line 1: found [] as output, allowed"),
        ([row(), row(output="")], {}, "{path} line 2: found an empty output, allowed is at least"),
        ([{"prompt": "", "completion": "a"}], {}, "{path} line 1: found an empty prompt"),
        (
            [row(), row()],
            {"max_prompt_length": 8},
            "max_prompt_length: found 8, which leaves none of 2 rows",
        ),
        ([row()], {"max_prompt_length": 512}, "max_prompt_length: found 512 with max_length 512"),
        ([row()], {"template": "chat"}, "template: found 'chat', allowed is one of alpaca, plain"),
        ([], {}, "data: found {path} without a row that can be used"),
    ],
)
def test_what_cannot_be_used_is_named(tokenizer, write, lines, settings, words):
    path = write(*lines)
    with pytest.raises(UserError) as caught:
        load_rows(path, tokenizer, **{"training": True, **settings})
    assert words.format(path=path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_damaged_file_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="data: found no file"):
        load_rows(tmp_path / "none.jsonl", tokenizer)
    damaged = tmp_path / "rows.jsonl.gz"
    damaged.write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:-9])
    with pytest.raises(UserError, match="which cannot be read"):
        load_rows(damaged, tokenizer)


def test_empty_answers_can_be_left_out(tokenizer, write):
    rows = load_rows(write(row(), row(output="")), tokenizer, training=True, drop_empty=True)
    assert len(rows) == 1 and rows.counts["empty"] == 1


def test_dolly_is_split_by_a_seed_of_its_own(tokenizer, write, tmp_path):
    lines = [{"instruction": f"{i}?", "context": "", "response": str(i)} for i in range(40)]
    write(*lines, name="databricks-dolly-15k.jsonl")
    found = dolly(str(tmp_path), dev=10, test=5).load(tokenizer)
    assert [each.line for each in found["test"]] == [1, 2, 3, 4, 5]
    assert len(found["val"]) == 10 and len(found["train"]) == 25
    lines = {split: {each.line for each in rows} for split, rows in found.items()}
    assert set.union(*lines.values()) == set(range(1, 41))
    again = dolly(str(tmp_path), seed=1, dev=10, test=5).load(tokenizer)
    assert {each.line for each in again["val"]} != lines["val"]


def test_a_dev_file_alone_is_the_test_split(tokenizer, write):
    path = str(write(row()))
    assert set(text_files(path, dev=path).files) == {"train", "test"}
    assert set(text_files(path, dev=path, test=path).files) == {"train", "val", "test"}
    with pytest.raises(UserError, match="dev: found none"):
        text_files(path)


def test_published_rows_and_prompts(real_data, tmp_path_factory):
    """MiniLLM's own rows: template and tokenizer make what they had."""
    import zipfile

    folder = tmp_path_factory.mktemp("instruct")
    with zipfile.ZipFile(real_data / "instruct.zip") as archive:
        archive.extractall(folder)
    instruct = folder / "instruct"
    gpt2 = load_tokenizer(instruct / "gpt2")
    assert (len(gpt2), gpt2.eos_token_id) == (50257, 50256)
    rows = load_rows(instruct / "dolly" / "dev.jsonl", gpt2, training=True)
    stored = [json.loads(line) for line in (instruct / "dolly" / "dev.jsonl").open()]
    assert [each.prompt for each in rows] == [each["prompt"] for each in stored]
    assert len(rows) == 1000 and rows.counts["truncated"] == 18
    assert gpt2.decode(rows[0].response_ids) == stored[0]["output"] + END
    with pytest.raises(UserError, match="which leaves none of 300 rows"):
        load_rows(instruct / "dolly" / "long.jsonl", gpt2)
    several = load_rows(instruct / "sinst" / "11_" / "valid.jsonl", gpt2)
    assert len(several) == 1694 and sum(len(each.references) > 1 for each in several) == 388
    with pytest.raises(UserError, match=r"differs from the student's in [\d,]+ of [\d,]+ tokens"):
        check_same_tokens(gpt2, load_tokenizer(HERE / "python_docs.tokenizer.json"))


def test_the_shipped_rows(tokenizer):
    """Their counts, and that no module is in two splits."""
    settings = {"template": "plain", "max_prompt_length": 64, "max_length": 128}
    rows = python_docs().load(tokenizer, **settings)
    assert {split: len(each) for split, each in rows.items()} == {
        "train": 3334, "val": 451, "test": 380,
    }  # fmt: skip
    modules = [{each.prompt.split("`")[1].split(".")[0] for each in rows[s]} for s in rows]
    assert not modules[0] & modules[1] | modules[0] & modules[2] | modules[1] & modules[2]
    answers = [each.references for split in rows.values() for each in split]
    assert len(set(answers)) == len(answers)
    assert isinstance(TextData(rows["train"], {"test": rows["test"]}).fingerprint, str)
