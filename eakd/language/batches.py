"""The steps of a text training: which rows, in which order, in which micro-batches.

A step's rows are a function of (seed, epoch) alone. Within a step they are sorted by length and cut
into micro-batches of few padded positions. That changes no sum: the step has one denominator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eakd.data.pipeline import stream
from eakd.errors import UserError, check_number
from eakd.language.text import Row, Rows, fingerprint


class Batch(NamedTuple):
    """A micro-batch of ``N`` rows with ``M`` answer tokens, one row's after the other's.

    Attributes:
        tokens: ``(N, L)`` int64, all but each row's last token; padded on the right by zeros, which
            a causal model cannot see from the left.
        places: ``(M,)`` int64, of the tokens before the answers' in the flattened ``tokens``: there
            the answers' tokens are foretold.
        targets: ``(M,)`` int64, the answers' tokens.
        row: ``(M,)`` int64, the row of each, in ``[0, N)``.
        lengths: of the answers, on the host.
        index: ``(N,)`` int64, positions in the training set.
        count: answer tokens of the whole step, of all its micro-batches and processes.
        rows: rows of the whole step.
        step: all micro-batches of this process in this step; empty outside of training.
        hidden: ``(M, D)`` the teacher's last hidden states, where they are known.
    """

    tokens: Tensor
    places: Tensor
    targets: Tensor
    row: Tensor
    lengths: tuple[int, ...]
    index: Tensor
    count: int
    rows: int
    step: tuple[Any, ...] = ()
    hidden: Tensor | None = None

    def sums(self, values: Tensor) -> Tensor:
        """Of a value of each answer token, over each row: ``(M,) -> (N,)``."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.row, values)

    def means(self, values: Tensor) -> Tensor:
        """The same, divided by the answers' lengths."""
        lengths = values.new_tensor(self.lengths)
        return self.sums(values) / lengths


def collate(
    rows: Sequence[Row],
    index: Sequence[int],
    device: torch.device | str = "cpu",
    count: int | None = None,
    whole: int | None = None,
) -> Batch:
    """A micro-batch of ``rows``.

    Args:
        index: of each row in the training set.
        count, whole: answer tokens and rows of the step; by default those of ``rows``.
    """
    lengths = [len(row.prompt_ids) + len(row.response_ids) - 1 for row in rows]
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    places, targets, owners = [], [], []
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        tokens[i, :length] = torch.tensor([*row.prompt_ids, *row.response_ids][:-1])
        first = i * tokens.shape[1] + len(row.prompt_ids) - 1
        places.append(torch.arange(first, first + len(row.response_ids)))
        targets.extend(row.response_ids)
        owners.append(torch.full((len(row.response_ids),), i))
    answers = tuple(len(row.response_ids) for row in rows)
    arrays = (tokens, torch.cat(places), torch.tensor(targets), torch.cat(owners))
    moved = (each.to(device, non_blocking=True) for each in arrays)
    where = torch.tensor(list(index), dtype=torch.int64).to(device, non_blocking=True)
    return Batch(*moved, answers, where, count or sum(answers), whole or len(rows))


@dataclass
class TextData:
    """The training batches of a run, and its splits; see `eakd.training.task.Data`.

    Args:
        train: its rows.
        others: the splits that are evaluated, ``"test"`` at least.
        batch_size: rows of a step, over all processes together.
        tokens_per_batch: padded positions of a micro-batch at most; a longer row is one of its own.
        accumulate: micro-batches of a step at least.
        steps_per_epoch: ``None`` for a pass over the rows; those that fill no step are left out of
            the epoch, others each time.
        part: this process's number and how many there are.

    Attributes:
        hidden: the teacher's last hidden states of all training rows, see `eakd.language.cache`.

    Raises:
        UserError: fewer rows than a step has, or fewer rows in a step than processes.
    """

    train: Rows
    others: Mapping[str, Rows]
    batch_size: int = 32
    seed: int = 0
    tokens_per_batch: int = 8192
    accumulate: int = 1
    steps_per_epoch: int | None = None
    device: torch.device | str = "cpu"
    part: tuple[int, int] = (0, 1)
    hidden: Any = None
    train_size: int = field(init=False)

    def __post_init__(self) -> None:
        self.train_size = len(self.train)
        check_number("data.tokens_per_batch", self.tokens_per_batch, at_least=1, integer=True)
        if self.train_size < self.batch_size:
            raise UserError(
                f"recipe.batch_size: found {self.batch_size}, allowed is at most "
                f"{self.train_size}, the training rows"
            )
        if self.batch_size < self.part[1]:
            raise UserError(
                f"recipe.batch_size: found {self.batch_size} for {self.part[1]} processes, allowed "
                "is a row for each at least"
            )
        if self.steps_per_epoch is None:
            self.steps_per_epoch = self.train_size // self.batch_size

    @property
    def splits(self) -> Sequence[str]:
        return tuple(self.others)

    @cached_property
    def fingerprint(self) -> str:
        return joined_fingerprint({"train": self.train, **self.others})

    def step_size(self, step: int) -> int:
        return self.batch_size

    def step_rows(self, epoch: int) -> Iterator[list[int]]:
        """The rows of each step of an epoch; one of more than a pass draws another order."""
        order: list[int] = []
        passes = 0
        for _ in range(self.steps_per_epoch):
            if len(order) < self.batch_size:
                draw = stream(self.seed, epoch, "text", passes)
                order = torch.randperm(self.train_size, generator=draw).tolist()
                passes += 1
            yield order[: self.batch_size]
            del order[: self.batch_size]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        for step, rows in enumerate(self.step_rows(epoch)):
            if step < start:
                continue
            count = sum(len(self.train[i].response_ids) for i in rows)
            # Dealt out by length: every process has about as much to do.
            mine = sorted(rows, key=lambda i: (self._length(i), i))[self.part[0] :: self.part[1]]
            batches = [
                collate([self.train[i] for i in piece], piece, self.device, count, len(rows))
                for piece in self.pieces(mine)
            ]
            if self.hidden is not None:
                batches = [
                    batch._replace(hidden=self.hidden.of(piece, self.device))
                    for batch, piece in zip(batches, self.pieces(mine), strict=True)
                ]
            yield [batch._replace(step=tuple(batches)) for batch in batches]

    def pieces(self, rows: Sequence[int]) -> list[list[int]]:
        """Cut sorted rows into micro-batches, longest first: what has no room fails at once."""
        most = -(-len(rows) // self.accumulate)
        found: list[list[int]] = []
        for i in reversed(rows):
            last = found[-1] if found else None
            # Rows come longest first, so a piece's first row is what it is padded to.
            fits = last and (len(last) + 1) * self._length(last[0]) <= self.tokens_per_batch
            if last is not None and fits and len(last) < most:
                last.append(i)
            else:
                found.append([i])
        return found

    def evaluation(self, split: str, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """A split's rows once, sorted by length; with several processes, this one's part."""
        rows = self.others[split]
        order = sorted(
            range(len(rows)), key=lambda i: len(rows[i].prompt_ids + rows[i].response_ids)
        )
        for piece in cut([rows[i] for i in order[part[0] :: part[1]]], self.tokens_per_batch):
            yield collate(piece, range(len(piece)), self.device)

    def _length(self, i: int) -> int:
        row = self.train[i]
        return len(row.prompt_ids) + len(row.response_ids) - 1


def cut(rows: Sequence[Row], positions: int) -> Iterator[list[Row]]:
    """Pieces of sorted rows, shortest first, of at most ``positions`` padded positions."""
    piece: list[Row] = []
    for row in rows:
        length = len(row.prompt_ids) + len(row.response_ids) - 1
        if piece and (len(piece) + 1) * length > positions:
            yield piece
            piece = []
        piece.append(row)
    if piece:
        yield piece


def joined_fingerprint(splits: Mapping[str, Rows]) -> str:
    """Hex digest of a run's rows, whatever files they came from."""
    digests = {name: fingerprint(rows) for name, rows in splits.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
