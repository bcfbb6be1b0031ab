"""Answers sampled from a causal language model, each by random numbers of its own.

Row i of a set and sampling seed k own a stream of uniform numbers, and token t of that answer is
the inverse of the cumulative distribution at the stream's number t. So an answer does not depend on
what else is in its batch, on the order, or on the number of devices, up to rounding. Rows that have
ended leave the batch, and several answers to one prompt share its pass through the model.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eakd.errors import UserError, check_number
from eakd.language.models import positions_of
from eakd.training.parallel import ALONE, Processes


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; all of it changes scores.

    Attributes:
        temperature: of the softmax; 0 is greedy decoding, which takes the likeliest token.
        top_k: only so many of the likeliest tokens may be drawn; 0 for all.
        top_p: only the likeliest tokens that make up this probability may be drawn.
        no_repeat_ngram_size: no run of so many tokens may occur twice, the prompt included, so that
            an answer may not quote so many tokens of its prompt either; 0 for no such ban.
        max_new_tokens: an answer that is longer is cut there, and has not ended.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, at_least=0)
        check_number("top_k", self.top_k, at_least=0, integer=True)
        check_number("top_p", self.top_p, above=0, at_most=1)
        check_number("no_repeat_ngram_size", self.no_repeat_ngram_size, at_least=0, integer=True)
        check_number("max_new_tokens", self.max_new_tokens, at_least=1, integer=True)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Request(NamedTuple):
    """One answer that is wanted: to the prompt (token ids) of a row, with a sampling seed."""

    row: int
    seed: int
    prompt: Sequence[int]


class Answer(NamedTuple):
    """Token ids without the end token, and whether there was one."""

    tokens: list[int]
    ended: bool


def generate(
    model: nn.Module,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    end: Collection[int],
    batch_size: int = 128,
    vocabulary: int | None = None,
    processes: Processes = ALONE,
) -> Iterator[list[tuple[Request, Answer]]]:
    """Answer all requests, the longest prompts first, and hand over a batch at a time.

    Args:
        model: a causal language model of transformers, in eval mode, on its device.
        requests: equal rows have equal prompts.
        end: ids that end an answer.
        batch_size: answers that a process samples together; changes none but by rounding.
        vocabulary: ids from here on are never drawn: a head may have more outputs than there are
            tokens; ``None`` for all outputs.
        processes: share the requests, and all get all answers.

    Raises:
        UserError: a prompt and its answer are longer than the positions that the model has; logits
            that are NaN or infinite.
    """
    check_number("batch_size", batch_size, at_least=1, integer=True)
    check_positions(model, (len(request.prompt) for request in requests), sampling)
    # Rows of one length need no padding, and a batch too large for the memory comes first.
    order = sorted(requests, key=lambda r: (-len(r.prompt), r.row, r.seed))
    together = batch_size * processes.size
    for start in range(0, len(order), together):
        mine = order[start : start + together][processes.rank * batch_size :][:batch_size]
        answers = answer_together(model, mine, sampling, end, vocabulary) if mine else []
        shares = processes.gather(list(zip(mine, answers, strict=True)))
        yield [pair for share in shares for pair in share]


def check_positions(model: nn.Module, lengths: Iterable[int], sampling: Sampling) -> None:
    """Raise `UserError` unless prompts of these lengths and their answers fit into the model."""
    longest, positions = max(lengths, default=0), positions_of(model)
    if positions is not None and longest + sampling.max_new_tokens > positions:
        raise UserError(
            f"max_new_tokens: found {sampling.max_new_tokens} after a prompt of {longest} tokens, "
            f"allowed are {positions} in all, the positions of the model"
        )


@torch.inference_mode()
def answer_together(
    model: nn.Module,
    requests: Sequence[Request],
    sampling: Sampling,
    end: Collection[int],
    vocabulary: int | None = None,
) -> list[Answer]:
    """One answer for each request, sampled as one batch; see `generate`."""
    device = next(model.parameters()).device
    prompts = {request.row: request.prompt for request in requests}
    ids, mask = left_padded(list(prompts.values()), device)
    decoder = _Decoder(model, vocabulary)
    logits = decoder(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
    place = {row: i for i, row in enumerate(prompts)}
    owner = torch.tensor([place[request.row] for request in requests], device=device)
    decoder.keep(owner)  # one pass for all answers to a prompt
    logits, mask = logits[owner], mask[owner]
    lengths = mask.sum(1)

    width = sampling.max_new_tokens
    numbers = np.stack([uniforms(request.row, request.seed, width) for request in requests])
    draws = torch.from_numpy(numbers).to(_precise(device))
    size = sampling.no_repeat_ngram_size
    texts = [_Text(request.prompt, size) for request in requests]
    answers: list[list[int]] = [[] for _ in requests]
    ended = [False] * len(requests)
    alive = list(range(len(requests)))  # positions in `requests` of the rows of the batch
    for step in range(width):
        _forbid(logits, [texts[i].banned() for i in alive])
        chosen = choose(logits, draws[:, step], sampling).tolist()
        if min(chosen) < 0:
            raise UserError("checkpoint: found logits that are NaN or infinite, allowed is none")
        stay = []
        for i, (at, token) in enumerate(zip(alive, chosen, strict=True)):
            if token in end:
                ended[at] = True
            else:
                answers[at].append(token)
                texts[at].append(token)
                stay.append(i)
        if not stay or step + 1 == width:
            break
        if len(stay) < len(alive):
            kept = torch.tensor(stay, device=device)
            decoder.keep(kept)
            mask, lengths, draws = mask[kept], lengths[kept], draws[kept.to(draws.device)]
            alive, chosen = [alive[i] for i in stay], [chosen[i] for i in stay]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids = torch.tensor(chosen, device=device)[:, None]
        logits = decoder(ids, mask, lengths[:, None] + step)
    return [Answer(*pair) for pair in zip(answers, ended, strict=True)]


def uniforms(row: int, seed: int, count: int) -> np.ndarray:
    """The stream of a row and a sampling seed: ``count`` numbers inside (0, 1), float64.

    Philox is a function of its key, and NumPy promises the same bits in every version.
    """
    key = np.array([seed, row], dtype=np.uint64)
    bits = np.random.Philox(key=key).random_raw(count) >> np.uint64(32)
    return (bits + 0.5) * 2.0**-32  # away from both ends, whatever it is multiplied by


def choose(logits: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """The next token of each row, ``(N, V), (N,) -> (N,)``; −1 where logits are not finite.

    Temperature, top-k and top-p act in this order, as in transformers.
    """
    logits = logits.float()
    if sampling.greedy:
        top, tokens = logits.max(-1)
        return torch.where(top.isfinite(), tokens, -1)
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, indices = logits.sort(-1)
        outside = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        outside[:, -1] = False  # the likeliest token always stays
        logits = logits.masked_fill(outside.scatter(-1, indices, outside), -torch.inf)
    # Sums in float64: in float32, those over a large vocabulary are off by more than many a
    # token's probability.
    cumulative = logits.softmax(-1).to(draws.device).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The first token whose sum exceeds the number; one of probability 0 never is.
    tokens = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
    return torch.where(total.isfinite(), tokens, -1)[:, 0]


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both ``(N, longest)`` int64; padding is on the left, where mask is 0.

    The ids there are 0, whatever that means: masks come from lengths, so that no token is special.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def _precise(device: torch.device) -> torch.device:
    """Where float64 sums are computed: Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device


class _Decoder:
    """The model with a cache of keys and values: logits of the last position, ``(N, V)``."""

    def __init__(self, model: nn.Module, vocabulary: int | None):
        from transformers import DynamicCache

        takes = inspect.signature(model.forward).parameters
        self.model, self.vocabulary = model, vocabulary
        self.cache = DynamicCache(config=model.config)
        # transformers calls it `past_key_values` until 5.23, and `cache` from then on.
        name = "cache" if "cache" in takes else "past_key_values"
        self.fixed: dict[str, Any] = {name: self.cache, "use_cache": True}
        if "logits_to_keep" in takes:
            self.fixed["logits_to_keep"] = 1
        self.takes_positions = "position_ids" in takes  # not where attention is biased by distance

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        more = {"position_ids": positions} if self.takes_positions else {}
        output = self.model(input_ids=ids, attention_mask=mask, **more, **self.fixed)
        # A copy: bans are written into it.
        return output.logits[:, -1, : self.vocabulary].clone()

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows of the batch; one may be named several times."""
        self.cache.batch_select_indices(rows)


class _Text:
    """A prompt and its answer so far: which tokens would repeat a run of ``size`` tokens."""

    def __init__(self, prompt: Sequence[int], size: int):
        self.size, self.tokens = size, list[int]()
        self.followers: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in prompt if size else ():
            self.append(token)

    def append(self, token: int) -> None:
        if self.size:
            if len(self.tokens) + 1 >= self.size:
                self.followers[self._last()].append(token)
            self.tokens.append(token)

    def banned(self) -> Sequence[int]:
        return self.followers.get(self._last(), ()) if self.size else ()

    def _last(self) -> tuple[int, ...]:
        return tuple(self.tokens[len(self.tokens) + 1 - self.size :])


def _forbid(logits: Tensor, banned: Sequence[Sequence[int]]) -> None:
    """Make tokens impossible, in place."""
    rows = [row for row, tokens in enumerate(banned) for _ in tokens]
    if rows:
        columns = [token for tokens in banned for token in tokens]
        logits[rows, columns] = -torch.inf
