"""The five test sets: known rows from either form, every rule counted, what is missing told."""

import json

import pytest

from eakd.errors import UserError
from eakd.language.sets import SETS, Missing, prepare
from eakd.language.text import encode, read_lines
from eakd.language.tokens import load_tokenizer
from language.tiny_models import tokenizer, unpacked, write_lines

ROWS = {"dolly": 500, "self_inst": 242, "vicuna": 80, "s_ni": 1694}


def never():
    raise AssertionError("a set that is there needs no tokenizer")


@pytest.fixture(scope="module")
def instruct(real_data, tmp_path_factory):
    return unpacked(real_data, tmp_path_factory, "instruct")


@pytest.mark.parametrize("name", ROWS)
def test_the_distributed_sets_are_the_tables(instruct, tmp_path, name):
    found = prepare(name, instruct, tmp_path, never)
    assert found.counts == {"read": ROWS[name]} and found.known is True
    assert found.sha256 == SETS[name].sha256


def test_the_one_that_is_not_there_is_told(instruct, tmp_path):
    with pytest.raises(Missing, match=r"^un_ni: found neither uinst/11_/valid\.jsonl nor core_"):
        prepare("un_ni", instruct, tmp_path, never)


def test_another_row_is_noticed_and_another_order_is_not(instruct, tmp_path):
    lines = (instruct / "vicuna/valid.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    turned = write_lines(tmp_path / "turned.jsonl", rows[::-1])
    assert prepare("vicuna", instruct, tmp_path, never, str(turned)).known is True
    rows[7]["output"] += " "
    other = write_lines(tmp_path / "other.jsonl", rows)
    assert prepare("vicuna", instruct, tmp_path, never, str(other)).known is False


def test_sets_made_from_their_sources_are_the_tables(instruct, tmp_path):
    """The rules keep the distributed rows and drop real ones that are too long."""
    gpt2 = load_tokenizer(instruct / "gpt2")
    rows = [row for _, row in read_lines(instruct / "dolly/valid.jsonl")]
    long = [row for _, row in read_lines(instruct / "dolly/long.jsonl")][:40]
    later = [row for _, row in read_lines(instruct / "dolly/dev.jsonl")][:30]
    raw = [
        {"instruction": r["instruction"], "context": r["input"], "response": r["output"]}
        for r in [*long[:20], *rows[:250], *long[20:], *rows[250:], *later]
    ]
    write_lines(tmp_path / "databricks-dolly-15k.jsonl", raw)
    found = prepare("dolly", tmp_path, tmp_path / "made", lambda: gpt2)
    assert found.known is True
    assert found.counts == {
        "read": 570, "prompt of 256 tokens or fewer": 530, "the first 500": 500
    }  # fmt: skip

    rows = [row for _, row in read_lines(instruct / "vicuna/valid.jsonl")]
    write_lines(
        tmp_path / "question.jsonl",
        [{"question_id": i, "text": row["instruction"]} for i, row in enumerate(rows)],
    )
    write_lines(
        tmp_path / "answer_gpt35.jsonl",
        [{"question_id": i, "text": row["output"]} for i, row in enumerate(rows)],
    )
    assert prepare("vicuna", tmp_path, tmp_path / "made", lambda: gpt2).known is True

    raw = [
        {"instruction": r["instruction"], "instances": [{k: r[k] for k in ("input", "output")}]}
        for _, r in read_lines(instruct / "self-inst/valid.jsonl")
    ]
    write_lines(tmp_path / "user_oriented_instructions.jsonl", raw)
    assert prepare("self_inst", tmp_path, tmp_path / "made", lambda: gpt2).known is True

    tasks = {}
    for _, row in read_lines(instruct / "sinst/11_/valid.jsonl"):
        tasks.setdefault((row["topic"], row["instruction"]), []).append(row)
    names = []
    for place, ((topic, definition), rows) in enumerate(tasks.items()):
        names.append(f"{topic}_{place}")
        short = {"input": "x", "output": ["two words"]}
        instances = [{"input": r["input"], "output": r["output"]} for r in rows]
        task = {"Definition": [definition], "Instances": [*instances, short][:100]}
        path = tmp_path / "tasks" / f"{names[-1]}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(task), encoding="utf-8")
    (tmp_path / "splits/default").mkdir(parents=True)
    (tmp_path / "splits/default/test_tasks.txt").write_text("\n".join(names), encoding="utf-8")
    found = prepare("s_ni", tmp_path, tmp_path / "made", lambda: gpt2)
    assert found.known is True and found.counts["reference of 11 tokens or more"] == 1694
    assert found.counts["read"] > 1694


def test_rules_count_tokens_of_the_first_reference(tmp_path):
    long, short = "one two three four five six seven eight", "a"
    instances = [{"input": "", "output": each} for each in (long, short, long, short)]
    write_lines(tmp_path / "core_data.jsonl", [{"instruction": "Say.", "instances": instances}])
    found = prepare("un_ni", tmp_path, tmp_path / "made", tokenizer)
    assert len(encode(tokenizer(), [long])[0]) >= 11
    assert [*found.counts.values()] == [4, 2, 2, 2] and found.known is None
    assert len(found.path.read_text(encoding="utf-8").splitlines()) == 2


def test_only_the_first_ten_thousand_of_un_ni_count(tmp_path):
    rows = [{"instruction": f"i {i}", "input": "", "output": "o"} for i in range(10_005)]
    write_lines(tmp_path / "uinst/11_/valid.jsonl", rows)
    found = prepare("un_ni", tmp_path, tmp_path, never)
    assert found.counts == {"read": 10_000} and found.last_line == 10_000


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"instruction": "a", "input": "", "output": []}', "line 2: found .* as output"),
        ('{"instruction": "a", "input": ""}', "line 2: found no output"),
        ("{", "no JSON object in .* line 2"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    good = '{"instruction": "a", "input": "", "output": "b"}'
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        prepare("mine", tmp_path, tmp_path, never, str(path))


def test_a_source_of_another_form_is_told(tmp_path):
    write_lines(tmp_path / "databricks-dolly-15k.jsonl", [{"instruction": "a"}])
    with pytest.raises(UserError, match=r"found databricks-dolly-15k\.jsonl of another form"):
        prepare("dolly", tmp_path, tmp_path / "made", tokenizer)
