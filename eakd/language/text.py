"""Rows of text as token ids: JSON lines, the prompt's template, lengths, and what was left out."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

from eakd.errors import UserError, check_choice, check_number, shortened

log = logging.getLogger(__name__)

# Alpaca's two prompts, as MiniLLM and DSKD fill them in: with an input, and without.
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
)
# With and without an input; a row that brings its own `prompt` needs none.
TEMPLATES = {"alpaca": ALPACA, "plain": ("{instruction}\n{input}\n", "{instruction}\n")}


class Row(NamedTuple):
    """A prompt and its answer.

    Attributes:
        prompt_ids: never empty.
        response_ids: with the end-of-text token, unless the length limit cut it off; never empty
            in training.
        references: the answers as text, one in training.
        prompt: as text.
        line: in its file, from 1.
        truncated: part of the answer, and with it the end-of-text token, is missing.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    references: tuple[str, ...]
    prompt: str
    line: int
    truncated: bool = False


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of one file, and what happened to the others.

    Attributes:
        rows: in the file's order.
        counts: ``read``, ``prompt_too_long`` and ``empty`` (left out), ``prompt_truncated``,
            ``truncated`` (answers), ``special`` (rows that spell a special token), ``kept``.
        path: the file.
    """

    rows: list[Row]
    counts: Mapping[str, int] = field(default_factory=dict)
    path: str = ""

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        return self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of prompts, answers as ids, and references."""
        return fingerprint(self.rows)


def fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256, in hex, of rows: whatever file they came from, equal rows have equal digests."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt_ids, row.response_ids, row.references]).encode())
    return digest.hexdigest()


def read_lines(path: Path | str, key: str = "data") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, ``.gz`` or not, with their line numbers.

    Args:
        key: of the path, for messages.

    Raises:
        UserError: the file, and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}: found no file {str(path)!r}, allowed is a file of JSON lines")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    found = None
                if not isinstance(found, dict):
                    raise UserError(f"{key}: found no JSON object in {path} line {number}")
                yield number, found
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{key}: found {path}, which cannot be read ({error}), allowed is a file of JSON lines"
        ) from error


class Example(NamedTuple):
    """A line as texts."""

    line: int
    prompt: str
    references: tuple[str, ...]


def parse(
    number: int, found: Mapping[str, Any], where: str, template: str, several: bool
) -> Example:
    """A line's prompt and answers.

    Args:
        number: of the line.
        found: ``{"instruction", "input", "output"}`` or ``{"prompt", "completion"}``; ``input``
            may be missing or called ``context``, ``output`` be called ``response``; other keys are
            left alone.
        where: the file, for messages.
        several: ``output`` may be a list of references.

    Raises:
        UserError: file, line and key.
    """
    at = f"{where} line {number}"

    def text(key: str) -> str:
        value = found.get(key)
        if not isinstance(value, str):
            what = "no" if value is None else shortened(value)
            raise UserError(f"{at}: found {what} {key}, allowed is a text")
        return value

    if "instruction" in found:
        instruction = text("instruction")
        name = next((key for key in ("input", "context") if found.get(key)), None)
        given = text(name) if name else ""
        form = TEMPLATES[template][0 if given else 1]
        # Not by `format` of an already filled text: instructions contain braces.
        prompt = form.format(instruction=instruction, input=given)
    else:
        prompt = text("prompt") if "prompt" in found else text("instruction")
    key = next((key for key in ("output", "completion", "response") if key in found), "output")
    answers = found.get(key)
    if several and isinstance(answers, list):
        if not answers or not all(isinstance(each, str) for each in answers):
            raise UserError(
                f"{at}: found {shortened(answers)} as {key}, allowed is a text, or a list of texts "
                "that is not empty"
            )
        return Example(number, prompt, tuple(answers))
    return Example(number, prompt, (text(key),))


def load_rows(
    path: Path | str,
    tokenizer: Any,
    *,
    max_prompt_length: int = 256,
    max_length: int = 512,
    template: str = "alpaca",
    long_prompts: str = "drop",
    drop_empty: bool = False,
    training: bool = False,
    where: Mapping[str, str] | None = None,
    key: str = "data",
) -> Rows:
    """Read, fill in, encode and filter a file of JSON lines.

    Prompt and answer are encoded apart, and the answer ends with the tokenizer's end-of-text token.
    What is longer than ``max_length`` together loses the end of its answer, as published, and has
    no end-of-text token then. Text that spells a special token is encoded as characters.

    Args:
        tokenizer: a fast tokenizer of transformers, see `eakd.language.models.load_tokenizer`.
        max_prompt_length, max_length: in tokens, of the prompt and of prompt and answer.
        template: of `TEMPLATES`, for rows that have an ``instruction``.
        long_prompts: ``"drop"`` rows whose prompt is longer, or ``"truncate"`` it from the right.
        drop_empty: leave out rows with an empty answer, which are refused otherwise.
        training: one answer a row, and no empty one; else ``output`` may be a list of references.
        where: only lines with these values.
        key: of the path, for messages.

    Raises:
        UserError: file and line of what cannot be used; every row left out.
    """
    check_choice("template", template, TEMPLATES)
    check_choice("long_prompts", long_prompts, ("drop", "truncate"))
    check_lengths(max_prompt_length, max_length)
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("tokenizer: found no end-of-text token, allowed is one that has eos_token")
    examples = [
        parse(number, found, str(path), template, not training)
        for number, found in read_lines(path, key)
        if all(found.get(name) == value for name, value in (where or {}).items())
    ]
    counts = {"read": len(examples), "prompt_too_long": 0, "prompt_truncated": 0, "empty": 0}
    counts |= {"truncated": 0, "special": _spelling_special(examples, tokenizer)}
    start = starting_ids(tokenizer)
    prompts = encode(tokenizer, [example.prompt for example in examples])
    answers = encode(tokenizer, [example.references[0] for example in examples])
    rows, most = [], max_prompt_length - len(start)
    for example, prompt, answer in zip(examples, prompts, answers, strict=True):
        if training and not answer:
            if not drop_empty:
                raise UserError(
                    f"{path} line {example.line}: found an empty output, allowed is at least one "
                    "token; data.drop_empty=true leaves such rows out"
                )
            counts["empty"] += 1
            continue
        if len(prompt) > most:
            if long_prompts == "drop":
                counts["prompt_too_long"] += 1
                continue
            counts["prompt_truncated"] += 1
        prompt = [*start, *prompt[:most]]
        if not prompt:
            raise UserError(
                f"{path} line {example.line}: found an empty prompt, allowed is at least one token"
            )
        whole, room = [*answer, end], max_length - len(prompt)
        counts["truncated"] += len(whole) > room
        rows.append(
            Row(
                *(tuple(prompt), tuple(whole[:room]), example.references, example.prompt),
                *(example.line, len(whole) > room),
            )
        )
    if not rows:
        reason = (
            f"max_prompt_length: found {max_prompt_length}, which leaves none of "
            f"{counts['read']:,} rows"
            if counts["prompt_too_long"]
            else f"{key}: found {path} without a row that can be used"
        )
        raise UserError(reason)
    counts["kept"] = len(rows)
    log.info("%s: %s", path, describe(counts))
    return Rows(rows, counts, str(path))


def check_lengths(max_prompt_length: int, max_length: int) -> None:
    """Raise `UserError` unless both are lengths, and an answer has room behind the prompt."""
    check_number("max_prompt_length", max_prompt_length, at_least=1, integer=True)
    check_number("max_length", max_length, at_least=2, integer=True)
    if max_prompt_length >= max_length:
        raise UserError(
            f"max_prompt_length: found {max_prompt_length} with max_length {max_length}, allowed "
            "is less than max_length"
        )


def describe(counts: Mapping[str, int]) -> str:
    """``11,435 rows read, 195 answers truncated (without an end-of-text token), …``."""
    words = {
        "prompt_too_long": "left out for the length of their prompt",
        "empty": "left out for an empty answer",
        "prompt_truncated": "prompts truncated",
        "truncated": "answers truncated, which have no end-of-text token",
        "special": "with text that spells a special token, encoded as characters",
    }
    parts = [f"{counts[name]:,} {text}" for name, text in words.items() if counts.get(name)]
    return ", ".join([f"{counts['read']:,} rows read", *parts, f"{counts['kept']:,} kept"])


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, no special token among them, whatever the texts spell."""
    if not texts:
        return []
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,  # "<|endoftext|>" in a text would end it
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def starting_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before every text: the beginning-of-text token, or nothing."""
    first = tokenizer("a", verbose=False)["input_ids"][:1]
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and first == [bos] else ()


def _spelling_special(examples: Sequence[Example], tokenizer: Any) -> int:
    words = [word for word in tokenizer.all_special_tokens if word]
    return sum(
        any(word in text for word in words for text in (example.prompt, *example.references))
        for example in examples
    )
