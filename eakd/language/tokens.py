"""Tokenizers: reading them, and whether two mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eakd.errors import UserError
from eakd.language.hub import find_directory, library, one_line_of


def load_tokenizer(path: str | Path, key: str = "path", trust_remote_code: bool = False) -> Any:
    """A fast tokenizer from a directory, a ``tokenizer.json``, or a model's name on the hub.

    A directory with ``vocab.json`` and ``merges.txt`` alone is read as GPT-2's.

    Raises:
        UserError: no such tokenizer, or one without an end-of-text token.
    """
    transformers = library()
    place = Path(path)
    if place.suffix == ".json":
        if not place.is_file():
            raise UserError(f"{key}: found no file {str(path)!r}, allowed is a tokenizer.json")
    else:
        place = find_directory(str(path), key)
    whole = place.is_dir() and any(
        (place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    try:
        if place.is_file():
            tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(place), eos_token="<|endoftext|>"
            )
        elif not whole and (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            tokenizer = _gpt2_tokenizer(transformers, place)
        else:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, trust_remote_code=trust_remote_code, use_fast=True
            )
    except Exception as error:  # whatever a damaged or foreign file makes the library trip over
        raise UserError(f"{key}: found no tokenizer in {place} ({one_line_of(error)})") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{key}: found a slow tokenizer in {place}, allowed is a fast one")
    if tokenizer.eos_token_id is None or tokenizer.eos_token_id >= len(tokenizer):
        raise UserError(f"{key}: found a tokenizer without an end-of-text token in {place}")
    return tokenizer


def _gpt2_tokenizer(transformers: Any, folder: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)


def check_same_tokens(student: Any, teacher: Any) -> None:
    """Raise `UserError` unless two tokenizers mean the same by every id: a teacher reads its ids.

    They are compared by content, whatever they are called.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        names = sorted(ours.keys() | theirs.keys(), key=lambda name: ours.get(name, len(ours)))
        differing = [name for name in names if ours.get(name) != theirs.get(name)]
        raise UserError(
            f"teacher: found a tokenizer that differs from the student's in {len(differing):,} of "
            f"{len(names):,} tokens (first: {differing[0]!r}), allowed is the same one"
        )
    if student.eos_token_id != teacher.eos_token_id:
        raise UserError(
            f"teacher: found the end-of-text token {teacher.eos_token!r}, allowed is the student's "
            f"{student.eos_token!r}"
        )
