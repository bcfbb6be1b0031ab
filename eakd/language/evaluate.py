"""ROUGE-L of a model's sampled answers to the prompts of a set."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm import tqdm

from eakd.errors import UserError, check_name, check_number, check_numbers
from eakd.language.generate import Answer, Request, Sampling, generate
from eakd.language.predictions import Prediction, Predictions
from eakd.language.rouge import rouge_l
from eakd.language.text import Row
from eakd.training.device import Compute
from eakd.training.parallel import ALONE


@dataclass(frozen=True)
class Protocol(Sampling):
    """How a model is evaluated: `Sampling`, and how often.

    Attributes:
        name: results of different protocols cannot be compared.
        seeds: of the samplings; the mean over them is the result.
        max_prompt_length: rows with longer prompts, in tokens, are left out, and counted.
    """

    name: str = "own"
    seeds: Sequence[int] = (10, 20, 30, 40, 50)
    max_prompt_length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("name", self.name)
        check_seeds("seeds", self.seeds, self)
        check_number("max_prompt_length", self.max_prompt_length, at_least=1, integer=True)


def check_seeds(name: str, seeds: object, sampling: Sampling) -> None:
    """Raise `UserError` unless ``seeds`` are different integers, one where they change nothing."""
    found = check_numbers(name, seeds, at_least=0, at_most=2**63 - 1, integer=True)
    if not found or len(set(found)) < len(found):
        raise UserError(f"{name}: found {found}, allowed is a list of different integers >= 0")
    if sampling.greedy and len(found) > 1:
        raise UserError(
            f"{name}: found {len(found)} seeds with temperature 0, allowed is one: greedy answers "
            "do not depend on it"
        )


def evaluate_rows(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    *,
    seeds: Sequence[int],
    protocol: Sampling,
    batch_size: int = 128,
    compute: Compute | None = None,
    predictions: Mapping[int, Predictions] | None = None,
    progress: str = "",
) -> dict[str, float]:
    """Sample an answer to each row with each seed, and score them; the model's mode is put back.

    Args:
        model: on its device.
        rows: see `eakd.language.text.load_rows`; a row's line number names its random numbers.
        protocol: how tokens are chosen, a `Sampling` or a `Protocol`, whose own seeds are not used.
        batch_size: answers that are sampled together; changes nothing but rounding and speed.
        compute: its autocast is used, and its processes share the rows; all get the result.
        predictions: of each seed, where answers are kept; those that are there are not sampled.
        progress: text before a bar on standard error, ``""`` for none.

    Returns:
        ``rouge_l``, in percent, the mean over seeds of the mean over rows; ``sampling_std``, the
        sample standard deviation over seeds, with two at least; ``ended``, the percentage of
        answers that ended by themselves; ``answer_length``, in tokens; and ``rouge_l_seed<k>``.

    Raises:
        UserError: no rows; see `generate` and `rouge_l`.
    """
    check_seeds("seeds", seeds, protocol)
    if not rows:
        raise UserError("rows: found none, allowed is at least one")
    processes = compute.processes if compute else ALONE
    kept = predictions or {}
    wanted = {row.line for row in rows}
    found = {seed: {line: p for line, p in kept[seed].done.items() if line in wanted}
             if seed in kept else {} for seed in seeds}  # fmt: skip
    requests = [
        Request(row.line, seed, row.prompt_ids)
        for row in rows
        for seed in seeds
        if row.line not in found[seed]
    ]
    bar = tqdm(
        total=len(rows) * len(seeds),
        initial=len(rows) * len(seeds) - len(requests),
        desc=progress,
        unit=" answers",
        disable=not (progress and processes.first),
    )
    training = model.training
    model.eval()
    try:
        with bar, compute.autocast() if compute else contextlib.nullcontext():
            for batch in generate(
                model,
                requests,
                protocol,
                end=end_tokens(model, tokenizer),
                batch_size=batch_size,
                vocabulary=len(tokenizer),
                processes=processes,
            ):
                for seed in seeds:
                    new = [_predicted(r.row, a, tokenizer) for r, a in batch if r.seed == seed]
                    found[seed] |= {prediction.row: prediction for prediction in new}
                    if seed in kept and new and processes.first:
                        kept[seed].add(new)
                bar.update(len(batch))
    finally:
        model.train(training)
    return processes.from_first(lambda: score(rows, found))


def score(rows: Sequence[Row], found: Mapping[int, Mapping[int, Prediction]]) -> dict[str, float]:
    """What `evaluate_rows` returns, from ``{seed: {line: prediction}}``."""
    each = [found[seed][row.line] for seed in found for row in rows]
    references = [row.references for row in rows] * len(found)
    scores = rouge_l([prediction.answer for prediction in each], references)
    size = len(rows)
    means = {
        seed: statistics.fmean(scores[place * size : (place + 1) * size])
        for place, seed in enumerate(found)
    }
    result = {"rouge_l": statistics.fmean(means.values())}
    if len(means) > 1:
        result["sampling_std"] = statistics.stdev(means.values())
    result["ended"] = 100.0 * statistics.fmean(prediction.ended for prediction in each)
    result["answer_length"] = statistics.fmean(prediction.tokens for prediction in each)
    return result | {f"rouge_l_seed{seed}": mean for seed, mean in means.items()}


def end_tokens(model: nn.Module, tokenizer: Any) -> Collection[int]:
    """Ids that end an answer: the tokenizer's, and those that the model's own files name."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = named if isinstance(named, list | tuple) else [named]
    return {tokenizer.eos_token_id, *more} - {None}


def _predicted(row: int, answer: Answer, tokenizer: Any) -> Prediction:
    text = tokenizer.decode(
        answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Prediction(row, clean(text), len(answer.tokens), answer.ended)


def clean(text: str) -> str:
    """An answer as the authors score it: up to a spelled-out end, ``<n>`` as a line break."""
    return text.partition("<|endoftext|>")[0].replace("<n>", "\n").strip()
