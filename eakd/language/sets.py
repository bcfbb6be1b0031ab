"""The five test sets of the language tables, as they are distributed or made from their sources.

MiniLLM's archive, which DSKD and others use, holds them ready. They can be made from public files
by the rules that its code follows; ``docs/language-evaluation.md`` says how far each was checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from eakd.errors import UserError
from eakd.files import write_text
from eakd.language.text import Example, encode, parse, read_lines

MAX_PROMPT = 256  # GPT-2 tokens; longer prompts are in no set
MIN_REFERENCE = 11  # GPT-2 tokens of the first reference, of the sets that call themselves 11_
PER_TASK = 100  # instances of a task of Super-NaturalInstructions


class Source(NamedTuple):
    """A row as its source has it."""

    instruction: str
    input: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationSet:
    """One test set.

    Attributes:
        title: its column in the tables.
        file: where MiniLLM's archive has it.
        sources: the public files it is made from.
        read: the rows of those files, in order.
        min_reference: see `MIN_REFERENCE`, 0 for no such rule.
        first: so many rows are used, ``None`` for all.
        sha256: the `digest` of the tables' rows, ``None`` where it is not known.
    """

    title: str
    file: str
    sources: tuple[str, ...]
    read: Callable[[Path], Iterator[Source]]
    min_reference: int = 0
    first: int | None = None
    sha256: str | None = None


class Missing(UserError):
    """Neither the set nor its sources are there."""


@dataclass(frozen=True)
class Prepared:
    """A set that can be read.

    Attributes:
        path: its JSON lines.
        last_line: rows up to this line are used.
        counts: what each rule left of the rows.
        sha256: `digest` of the rows.
        known: whether they are the tables' rows, ``None`` where that cannot be told.
    """

    path: Path
    last_line: int
    counts: dict[str, int]
    sha256: str
    known: bool | None


def _dolly(root: Path) -> Iterator[Source]:
    for _, row in read_lines(root / "databricks-dolly-15k.jsonl", "data.root"):
        yield Source(row["instruction"], row["context"], (row["response"],))


def _self_inst(root: Path) -> Iterator[Source]:
    for _, row in read_lines(root / "user_oriented_instructions.jsonl", "data.root"):
        first = row["instances"][0]
        yield Source(row["instruction"], first["input"], (first["output"],))


def _vicuna(root: Path) -> Iterator[Source]:
    answers = {
        row["question_id"]: row["text"]
        for _, row in read_lines(root / "answer_gpt35.jsonl", "data.root")
    }
    for _, row in read_lines(root / "question.jsonl", "data.root"):
        yield Source(row["text"], "", (answers[row["question_id"]],))


def _s_ni(root: Path) -> Iterator[Source]:
    names = (root / "splits/default/test_tasks.txt").read_text(encoding="utf-8").split()
    for name in names:
        task = json.loads((root / "tasks" / f"{name}.json").read_text(encoding="utf-8"))
        definition = task["Definition"]
        text = definition if isinstance(definition, str) else definition[0]
        for row in task["Instances"][:PER_TASK]:
            output = row["output"]
            yield Source(text, row["input"], tuple([output] if isinstance(output, str) else output))


def _un_ni(root: Path) -> Iterator[Source]:
    for _, row in read_lines(root / "core_data.jsonl", "data.root"):
        for each in row["instances"]:
            yield Source(row["instruction"], each["input"], (each["output"],))


SETS = {
    "dolly": EvaluationSet(
        "Dolly",
        "dolly/valid.jsonl",
        ("databricks-dolly-15k.jsonl",),
        _dolly,
        first=500,
        sha256="f3c01bdc498378d64f9f28aa02ee4586496542cc300becf4e6566cdbda73bf89",
    ),
    "self_inst": EvaluationSet(
        "SInst",
        "self-inst/valid.jsonl",
        ("user_oriented_instructions.jsonl",),
        _self_inst,
        sha256="f8ffbc5df4c0cfbdafff52e5ae3aacba947749a19956b18427fb766a5bc38913",
    ),
    "vicuna": EvaluationSet(
        "Vicuna",
        "vicuna/valid.jsonl",
        ("question.jsonl", "answer_gpt35.jsonl"),
        _vicuna,
        sha256="361b6303d0c1831097c8cc4809c5048d54c45b8a60947a01dc2dc6dd913ff6eb",
    ),
    "s_ni": EvaluationSet(
        "S-NI",
        "sinst/11_/valid.jsonl",
        ("splits/default/test_tasks.txt", "tasks"),
        _s_ni,
        min_reference=MIN_REFERENCE,
        sha256="23f1e6d2bc827c009aab23c5a6c47ad78a8bc976c8f0b670592ccd63548d8eed",
    ),
    "un_ni": EvaluationSet(
        "UnNI",
        "uinst/11_/valid.jsonl",
        ("core_data.jsonl",),
        _un_ni,
        min_reference=MIN_REFERENCE,
        first=10_000,
    ),
}


def prepare(
    name: str,
    root: Path,
    folder: Path,
    tokenizer: Callable[[], Any],
    file: str | None = None,
) -> Prepared:
    """Find a set, or make it.

    Args:
        name: one of `SETS`, or any name with a ``file``.
        root: holds MiniLLM's folders, or the public files.
        folder: gets ``<name>.jsonl`` if the set is made.
        tokenizer: loads GPT-2's, for the length rules; only called if the set is made.
        file: the set's JSON lines, wherever they are.

    Raises:
        Missing: nothing to make it from.
        UserError: a file that cannot be read, with its line.
    """
    test = SETS.get(name)
    limit = test.first if test else None
    path = Path(file) if file else root / test.file
    if file or path.is_file():
        key = f"data.files.{name}" if file else "data.root"
        examples = [
            parse(*line, str(path), "alpaca", True) for line in islice(read_lines(path, key), limit)
        ]
        counts = {"read": len(examples)}
    elif all((root / source).exists() for source in test.sources):
        path = folder / f"{name}.jsonl"
        rows, counts = _filtered(test, root, tokenizer())
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        examples = [parse(*line, str(path), "alpaca", True) for line in read_lines(path)]
    else:
        raise Missing(
            f"{name}: found neither {test.file} nor {' and '.join(test.sources)} in {root}"
        )
    if not examples:
        raise UserError(f"{path}: found no rows, allowed is one at least")
    found = digest(examples)
    known = found == test.sha256 if test and test.sha256 else None
    return Prepared(path, examples[-1].line, counts, found, known)


def digest(examples: Iterable[Example]) -> str:
    """SHA-256, in hex, of prompts and references: the same in any order and format."""
    lines = (json.dumps([each.prompt, each.references]) for each in examples)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _filtered(
    test: EvaluationSet, root: Path, tokenizer: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows that the rules leave, and how many each rule left."""
    try:
        rows = [
            {"instruction": row.instruction, "input": row.input, "output": list(row.references)}
            for row in test.read(root)
        ]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"{type(error).__name__}: {error}"
        files = " and ".join(test.sources)
        raise UserError(f"{root}: found {files} of another form ({reason})") from error
    counts = {"read": len(rows)}

    def keep(rule: str, lengths: list[int], allowed: Callable[[int], bool]) -> None:
        rows[:] = [row for row, length in zip(rows, lengths, strict=True) if allowed(length)]
        counts[rule] = len(rows)

    if test.min_reference:
        firsts = encode(tokenizer, [row["output"][0] for row in rows])
        rule = f"reference of {test.min_reference} tokens or more"
        keep(rule, [*map(len, firsts)], lambda length: length >= test.min_reference)
    prompts = [parse(0, row, "", "alpaca", True).prompt for row in rows]
    rule = f"prompt of {MAX_PROMPT} tokens or fewer"
    keep(rule, [*map(len, encode(tokenizer, prompts))], lambda length: length <= MAX_PROMPT)
    if test.first is not None:
        keep(f"the first {test.first:,}", [*range(len(rows))], lambda place: place < test.first)
    return rows, counts
