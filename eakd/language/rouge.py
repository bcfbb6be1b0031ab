"""ROUGE-L of answers against references, as the field's language tables report it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from eakd.errors import UserError
from eakd.workers import in_processes

POOL_FROM = 4096  # answers; fewer are scored sooner than processes start
CHUNK = 256  # of them, that a process takes at once


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L F of each answer in percent: the best over its references, words stemmed (Porter).

    By ``rouge-score``, which knows letters and digits of ASCII only: text in other alphabets has no
    words for it and scores 0.

    Raises:
        UserError: an answer without a reference, or no ``rouge-score``.
    """
    for row, each in enumerate(references):
        if not each:
            raise UserError(f"references of row {row}: found none, allowed is at least one")
    _scorer()  # a missing library is told here, not in a worker process
    pairs = list(zip(answers, references, strict=True))
    return in_processes(_score, pairs, most=16 if len(pairs) >= POOL_FROM else 1, chunk=CHUNK)


def has_words(text: str) -> bool:
    """Whether ROUGE sees anything in a text."""
    return any(character.isascii() and character.isalnum() for character in text)


def _score(pair: tuple[str, Sequence[str]]) -> float:
    answer, references = pair
    return 100.0 * _scorer().score_multi(references, answer)["rougeL"].fmeasure


@functools.cache
def _scorer():  # type: ignore[no-untyped-def]
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise UserError(
            "rouge-score: found none, install it: pip install 'eakd[language]'"
        ) from error
    return RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=True))
