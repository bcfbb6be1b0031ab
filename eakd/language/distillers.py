"""Methods for causal language models: fine-tuning on the answers, and distillation on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eakd.distillers.base import Distiller, Progress, Terms
from eakd.errors import UserError, check_boolean, check_choice, check_number
from eakd.factors import FACTORS, MATCHED, RESCALED, SHUFFLED
from eakd.language.batches import Batch
from eakd.language.loss import (
    DIVERGENCES,
    Foresee,
    Head,
    Options,
    TokenLosses,
    chunks,
    token_losses,
)
from eakd.language.models import outputs_of, split
from eakd.weighting import Entropies, Weighting

LEVELS = ("sequence", "token_mean", "sequence_mean", "token")


class SequenceTerms(Terms):
    """Terms, and what a task measures of each row.

    Attributes:
        right: ``(N,)`` share of the answer's tokens that the student finds likeliest.
    """

    right: Tensor


class LanguageMethod(Distiller):
    """What methods on texts share: networks in, values of single tokens out.

    Args:
        student, teacher: causal language models of transformers.
        weighting: by entropies, a `Weighting`.
        vocabulary: the tokenizer's size; logits beyond it are cut off. Default: the models'.
        chunk_size: answer tokens whose logits exist at a time; ``None``: 128 on a CPU, where they
            stay in the cache, 1,024 elsewhere. It changes rounding at most.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        weighting: Weighting | None = None,
        vocabulary: int | None = None,
        chunk_size: int | None = None,
    ):
        super().__init__(student, teacher, weighting)
        check_weighting(weighting)
        if chunk_size is not None:
            check_number("chunk_size", chunk_size, at_least=1, integer=True)
        self.chunk_size = chunk_size
        self.vocabulary = common_vocabulary(vocabulary, student, teacher)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay is for matrices: not for biases and norms, as in DSKD's code."""
        return parameter.dim() > 1

    def head(self, model: nn.Module, batch: Batch) -> Head:
        """What makes ``model``'s logits of a batch's answer tokens."""
        parts = split(model)
        if parts is None:
            logits = model(input_ids=batch.tokens, use_cache=False).logits
            return Head(logits.flatten(0, 1)[batch.places])
        hidden = parts.body(input_ids=batch.tokens, use_cache=False).last_hidden_state
        return Head(hidden.flatten(0, 1)[batch.places], parts.weight, parts.bias)

    @torch.no_grad()
    def teacher_head(self, batch: Batch) -> Head | None:
        """The same of the teacher: from its hidden states if the batch brings them."""
        if self.teacher is None:
            return None
        if batch.hidden is None:
            return self.head(self.teacher, batch)
        parts = split(self.teacher)
        return Head(batch.hidden, parts.weight, parts.bias)

    def passes(self, batch: Batch, progress: Progress) -> Any:
        """All logits of a batch at once, which `values` never has."""
        heads = [self.head(self.student, batch), self.teacher_head(batch)]
        cut = [head.cut(self.vocabulary) for head in heads if head is not None]
        return [head.logits(0, len(batch.targets)) for head in cut]

    def values(
        self, batch: Batch, options: Options, foresee: Foresee | None = None
    ) -> tuple[TokenLosses, float]:
        """Values of all answer tokens, and the bound of their entropies."""
        student, teacher = (
            None if head is None else head.cut(self.vocabulary)
            for head in (self.head(self.student, batch), self.teacher_head(batch))
        )
        on_cpu = batch.tokens.device.type == "cpu"
        bounds = chunks(batch.lengths, self.chunk_size or (128 if on_cpu else 1024))
        found = token_losses(student, teacher, batch.targets, options, bounds, foresee)
        return found, math.log(self.vocabulary)

    def terms(
        self, batch: Batch, found: TokenLosses, losses: dict[str, Tensor], **more: Any
    ) -> Terms:
        terms = SequenceTerms(losses, count=batch.count, **more)
        terms.right = batch.means(found.right)
        return terms


def check_weighting(weighting: Any) -> None:
    """Raise `UserError` for what needs more than a chunk's entropies: a rule, a step's means."""
    kind = getattr(weighting, "kind", None)
    if getattr(weighting, "judges", False) or kind in RESCALED:
        raise UserError(
            f"weighting.kind: found {kind!r}, allowed for texts is a weighting by entropies at its "
            f"own scale: {', '.join((*FACTORS, *MATCHED, *SHUFFLED))}"
        )


def common_vocabulary(vocabulary: int | None, student: nn.Module, teacher: nn.Module | None) -> int:
    """How many logits count.

    Raises:
        UserError: two models that differ, and nothing says where their tokens end.
    """
    sizes = [outputs_of(model) for model in (student, teacher) if model is not None]
    if vocabulary is None:
        if len(set(sizes)) > 1:
            raise UserError(
                f"vocabulary: found none for {sizes[0]} and {sizes[1]} outputs, allowed is the "
                "tokenizer's size"
            )
        return sizes[0]
    return check_number("vocabulary", vocabulary, at_least=1, at_most=min(sizes), integer=True)


class SFT(LanguageMethod):
    """Fine-tuning: the cross-entropy of the answers' tokens, ``Σ CE / count``.

    Prompts have no loss. The teacher's fine-tuning, and the students' baseline.
    """

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        temperature = getattr(self.weighting, "entropy_temperature", 3.0)

        def foresee(start: int, stop: int, student: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(student, 1 / batch.count), torch.zeros_like(student)

        options = Options(entropy_temperature=temperature)
        found, bound = self.values(batch, options, foresee)
        entropies = Entropies(None, batch.means(found.student_entropy), bound)
        losses = {"ce": found.ce.sum() / batch.count}
        return self.terms(batch, found, losses, entropies=entropies)


class SequenceKD(LanguageMethod):
    """``(ce_weight · Σ CE + kd_weight · Σ_s w_s Σ_t D_t) / count``, over the answers' tokens.

    With ``w = 1`` this is DSKD's "vanilla" distillation. How EA-KD's weight applies to a sequence
    is not published; the paper says "at the sequence level". ``level`` holds the readings, with h
    the entropies of a token's predictions, H their means over an answer, and ``w(·)`` the
    weighting:

    =================  ==============================================================
    ``sequence``       ``Σ_s w(H_T, H_S) Σ_t D_t / count``: one weight for an answer
    ``token_mean``     ``Σ_s mean_t w(h_T, h_S) Σ_t D_t / count``
    ``sequence_mean``  ``mean_s w(H_T, H_S) mean_t D_t``: every answer counts the same
    ``token``          ``Σ_t w(h_T, h_S) D_t / count``
    =================  ==============================================================

    Args:
        divergence: ``"forward_kl"`` (KD), ``"reverse_kl"`` or ``"jsd"``.
        temperature: τ of both predictions.
        ce_weight, kd_weight: of the two terms.
        scale_by_temperature: multiply D by τ², as for images. DSKD does not: its 0.5 at τ = 2 is a
            ``kd_weight`` of 0.125 with it.
        level: of the table.
        mean: of a tensor over all processes, such as `Processes.mean`; for ``matched``.
        student, teacher, weighting, vocabulary, chunk_size: see `LanguageMethod`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        divergence: str = "forward_kl",
        temperature: float = 2.0,
        ce_weight: float = 0.5,
        kd_weight: float = 0.5,
        scale_by_temperature: bool = False,
        level: str = "sequence",
        vocabulary: int | None = None,
        chunk_size: int | None = None,
        mean: Callable[[Tensor], Tensor] = torch.mean,
    ):
        super().__init__(student, teacher, weighting, vocabulary, chunk_size)
        check_choice("divergence", divergence, DIVERGENCES)
        check_choice("level", level, LEVELS)
        check_boolean("scale_by_temperature", scale_by_temperature)
        self.divergence, self.level, self.mean = divergence, level, mean
        self.temperature = check_number("temperature", temperature, above=0)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)
        self.scale = self.kd_weight * (self.temperature**2 if scale_by_temperature else 1.0)
        self._constant: Tensor | None = None

    @property
    def options(self) -> Options:
        temperature = getattr(self.weighting, "entropy_temperature", 3.0)
        return Options(self.divergence, self.temperature, temperature)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        if self._is_matched:
            self._match(batch)
        found, bound = self.values(batch, self.options, self._foresee(batch))
        losses = {"ce": self.ce_weight * found.ce.sum() / batch.count}
        divergence = self.scale * found.divergence
        entropies = Entropies(found.teacher_entropy, found.student_entropy, bound)
        if self.level in ("token", "token_mean"):
            if self.level == "token_mean":  # Σ_s (mean_t w_t) Σ_t D_t = Σ_t w_t (mean of its D)
                divergence = batch.means(divergence)[batch.row]
            losses["kd"] = divergence
            return self.terms(batch, found, losses, entropies=entropies, sample=batch.row)
        if self.level == "sequence":
            losses["kd"] = batch.sums(divergence)
        else:  # divided by the count later, though it is a mean over the step's rows
            losses["kd"] = batch.means(divergence) * (batch.count / batch.rows)
        return self.terms(batch, found, losses, entropies=self._of_rows(batch, entropies))

    @staticmethod
    def _of_rows(batch: Batch, entropies: Entropies) -> Entropies:
        means = batch.means(entropies.teacher), batch.means(entropies.student)
        return Entropies(*means, entropies.bound)

    def _foresee(self, batch: Batch) -> Foresee | None:
        """What `Distiller.total` will multiply each token's losses with, if that can be told."""
        weighting = self.weighting
        plain = type(weighting) is Weighting and weighting.kind not in SHUFFLED
        if not plain:
            return None
        ends = torch.tensor([0, *batch.lengths]).cumsum(0).tolist()
        rows_of = {end: row for row, end in enumerate(ends)}

        def foresee(
            start: int, stop: int, student: Tensor, teacher: Tensor
        ) -> tuple[Tensor, Tensor]:
            first, last = rows_of[start], rows_of[stop]
            lengths = student.new_tensor(batch.lengths[first:last])
            row = batch.row[start:stop] - first

            def means(values: Tensor) -> Tensor:
                return torch.zeros_like(lengths).index_add(0, row, values) / lengths

            tokens = Entropies(teacher, student, math.log(self.vocabulary))
            if self._is_matched:
                weight = self._constant.to(student).expand(stop - start)
            elif self.level == "token":
                weight = weighting.combine(tokens)
            elif self.level == "token_mean":
                weight = means(weighting.combine(tokens))[row]
            else:
                weight = weighting.combine(Entropies(means(teacher), means(student), tokens.bound))
                weight = weight[row]
            if self.level == "sequence_mean":
                weight = weight / lengths[row] * (batch.count / batch.rows)
            ones = torch.ones_like(student)
            return ones * (self.ce_weight / batch.count), weight * (self.scale / batch.count)

        return foresee

    @property
    def _is_matched(self) -> bool:
        return isinstance(self.weighting, Weighting) and self.weighting.kind in MATCHED

    def _match(self, batch: Batch) -> None:
        """Give ``matched`` the mean weight of the whole step, by how much of the loss each has.

        It must be known before the first gradient, so a step's first micro-batch brings a pass of
        the student over all of them, with the random numbers that the real passes will draw.
        """
        step = batch.step or (batch,)
        if batch.step and batch.index is not step[0].index:
            return  # not the first: known
        weighting, shares = self.weighting, []
        cuda = [batch.tokens.device] if batch.tokens.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            for each in step:
                found, bound = self.values(each, self.options)
                entropies = Entropies(found.teacher_entropy, found.student_entropy, bound)
                if self.level in ("token", "token_mean"):
                    weight = each.means(weighting.combine(entropies))
                else:
                    weight = weighting.combine(self._of_rows(each, entropies))
                lengths = weight.new_tensor(each.lengths)
                # Of the step's tokens, or of its rows where all rows count the same.
                same = self.level == "sequence_mean"
                shares.append(weight if same else weight * lengths * each.rows / each.count)
        # A sum over all rows of all processes, divided by their number.
        self._constant = self.mean(torch.cat(shares))
        constant = self._constant
        weighting.batch_mean = lambda weight: constant.to(weight)
