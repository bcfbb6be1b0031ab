"""A second domain in a hundred lines: a causal language model of characters, with a mask.

A sample is a line of text, a row of the loss is a line too: its loss is a sum over its characters,
and the step has one denominator, the characters of all its micro-batches.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.pipeline import stream
from eakd.distillers import Distiller, Terms
from eakd.distillers.kd import kd_loss
from eakd.models.weights import save_weights
from eakd.targets import build
from eakd.training import Built
from eakd.weighting import Entropies

END = 0  # every other character is its position in this alphabet, from 1
ALPHABET = "abcdefghijklmnopqrstuvwxyz ,.:0123456789"


class Lines(NamedTuple):
    """A micro-batch.

    Attributes:
        tokens: ``(N, L)`` int64, padded with END.
        mask: ``(N, L - 1)`` whether the next character belongs to the line.
        count: characters of the whole step, of all its micro-batches and processes.
        index: ``(N,)``.
    """

    tokens: Tensor
    mask: Tensor
    count: int
    index: Tensor


class Text:
    """Lines of numbers in words, shortest first or not: a language small enough to learn."""

    splits = ("test",)

    def __init__(self, lines, batch_size=8, accumulate=1, seed=0, part=(0, 1)):
        self.lines = [torch.tensor([ALPHABET.index(c) + 1 for c in line] + [END]) for line in lines]
        self.batch_size, self.accumulate, self.seed, self.part = batch_size, accumulate, seed, part
        self.test, self.train = range(0, len(lines), 4), [i for i in range(len(lines)) if i % 4]
        self.train_size = len(self.train)
        self.steps_per_epoch = self.train_size // batch_size
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def step_size(self, step):
        return self.batch_size

    def batch(self, indices, count=None):
        tokens = nn.utils.rnn.pad_sequence([self.lines[i] for i in indices], batch_first=True)
        lengths = torch.tensor([len(self.lines[i]) for i in indices])
        mask = torch.arange(1, tokens.shape[1]) < lengths[:, None]
        return Lines(tokens, mask, count or int(mask.sum()), torch.tensor(indices))

    def epoch(self, epoch, start=0):
        order = torch.randperm(self.train_size, generator=stream(self.seed, epoch)).tolist()
        for step in range(start, self.steps_per_epoch):
            of_step = order[step * self.batch_size : (step + 1) * self.batch_size]
            indices = [self.train[i] for i in of_step]
            count = sum(len(self.lines[i]) - 1 for i in indices)
            mine = indices[self.part[0] :: self.part[1]]
            pieces = [mine[place :: self.accumulate] for place in range(self.accumulate)]
            yield [self.batch(piece, count) for piece in pieces if piece]


class TinyGPT(nn.Module):
    """One causal block; the output embedding is the input's."""

    def __init__(self, width=16, dropout=0.1):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET) + 1, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.head = nn.Linear(width, len(ALPHABET) + 1, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        """Logits ``(N, L, V)``."""
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.head(self.block(self.embedding(tokens), src_mask=causal, is_causal=True))


class SequenceKD(Distiller):
    """``½ CE + ½ Σ_lines w · Σ_characters KL``, both over the step's characters."""

    def forward(self, batch, progress):
        with torch.no_grad():
            teacher = self.teacher(batch.tokens)[:, :-1]
        student, mask = self.student(batch.tokens)[:, :-1], batch.mask
        ce = F.cross_entropy(student.transpose(1, 2), batch.tokens[:, 1:], reduction="none")
        kd = kd_loss(student, teacher, temperature=2.0)
        seen = self.weighting.entropies(student, teacher)  # (N, L - 1) each
        of_line = [(h * mask).sum(1) / mask.sum(1) for h in (seen.teacher, seen.student)]
        losses = {"ce": 0.5 * (ce * mask).sum() / batch.count, "kd": 0.5 * (kd * mask).sum(1)}
        return Terms(losses, student, entropies=Entropies(*of_line, seen.bound), count=batch.count)


def accuracy(logits, batch):
    """Percent of each line's characters that were foreseen, ``(N,)``."""
    right = (logits.argmax(-1) == batch.tokens[:, 1:]) & batch.mask
    return 100 * right.sum(1) / batch.mask.sum(1)


class Language:
    metrics: ClassVar = {"characters": "characters %"}

    def build(self, config, recipe, compute):
        lines = build(config.data.load, "data")
        data = Text(
            lines, recipe.batch_size, recipe.accumulate, config.seed, compute.processes.part
        )
        torch.manual_seed(1)
        teacher = build(config.teacher, "teacher")
        torch.manual_seed(config.seed)
        student = build(config.student, "student")
        weighting = build(config.weighting, "weighting")
        networks = {"student": student, "teacher": teacher, "weighting": weighting}
        return Built(data, build(config.distiller, "distiller", **networks))

    def inputs(self, config):
        return {"data_fingerprint": Text(build(config.data.load, "data")).fingerprint}

    def measure(self, batch, terms):
        return {"characters": accuracy(terms.student_logits, batch)}

    @torch.no_grad()
    def evaluate(self, model, data, split, compute):
        training, batch = model.training, data.batch(list(data.test))
        found = accuracy(model.eval()(batch.tokens)[:, :-1], batch).mean().item()
        model.train(training)
        return {"characters": found}

    def export(self, model, path, metadata):
        save_weights(model, path.with_name(f"{path.name}.safetensors"), metadata)


def number_lines(count: int = 200) -> list[str]:
    """``17: one, seven.`` and so on."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    return [f"{i}: {', '.join(words[int(digit)] for digit in str(i))}." for i in range(count)]
