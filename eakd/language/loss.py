"""Losses and entropies of single tokens, without ever holding all of their logits.

A vocabulary of 50,257 makes logits the largest tensors of a language model by far. `token_losses`
takes the last hidden states of the tokens that have a loss, and applies the heads to a chunk of
them at a time. Nothing of size (tokens, vocabulary) outlives its chunk, in either direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eakd.weighting import at_least_float32

EPSILON = 1e-9  # inside the logarithms of the Jensen-Shannon divergence, as in DSKD's code


class Head(NamedTuple):
    """What makes the logits of ``M`` tokens.

    Attributes:
        hidden: ``(M, D)``; without a ``weight``, ``(M, V)``: logits themselves.
        weight: ``(V, D)``, or ``None``.
        bias: ``(V,)``, or ``None``.
    """

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    def cut(self, vocabulary: int) -> Head:
        """The same without what is beyond the tokenizer's size: padding that no text contains."""
        if self.weight is None:
            return Head(self.hidden[:, :vocabulary])
        if len(self.weight) == vocabulary:
            return self
        bias = None if self.bias is None else self.bias[:vocabulary]
        return Head(self.hidden, self.weight[:vocabulary], bias)

    def logits(self, start: int, stop: int) -> Tensor:
        """``(stop - start, V)`` in float32, or in float64 where the hidden states are."""
        hidden = self.hidden[start:stop]
        if self.weight is not None:
            hidden = F.linear(hidden, self.weight, self.bias)
        return at_least_float32(hidden)


class TokenLosses(NamedTuple):
    """Of each token ``(M,)``; the first two have a gradient.

    Attributes:
        ce: cross-entropy with the token that follows, in nats.
        divergence: between the softened predictions; zeros without a teacher.
        student_entropy, teacher_entropy: in nats, at τ′; the latter zeros without a teacher.
        right: 1 where the likeliest token follows, else 0.
    """

    ce: Tensor
    divergence: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    right: Tensor


# Of chunk's tokens: (first, last + 1, student's entropies, teacher's) → what their losses will be
# multiplied with, (ce, divergence).
Foresee = Callable[[int, int, Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_kl(student: Tensor, teacher: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """``Σ p_t (log p_t - log p_s)`` of log-probabilities ``(M, V)``, and its gradient.

    The gradient of all three divergences is with respect to the student's softened logits.
    """
    p = teacher.exp()
    value = (p * (teacher - student)).sum(-1)
    return value, student.exp() - p if gradient else None


def reverse_kl(student: Tensor, teacher: Tensor, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """``Σ p_s (log p_s - log p_t)``; see `forward_kl`."""
    p, ratio = student.exp(), student - teacher
    value = (p * ratio).sum(-1)
    return value, p * (ratio - value[:, None]) if gradient else None


def jensen_shannon(
    student: Tensor, teacher: Tensor, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Half of each KL divergence from the mean, as in DSKD's code; see `forward_kl`."""
    ps, pt = student.exp(), teacher.exp()
    m = (ps + pt) / 2
    log_s, log_m = (ps + EPSILON).log(), (m + EPSILON).log()
    value = (pt * ((pt + EPSILON).log() - log_m) + ps * (log_s - log_m)).sum(-1) / 2
    if not gradient:
        return value, None
    slope = (log_s + ps / (ps + EPSILON) - log_m - m / (m + EPSILON)) / 2
    return value, ps * (slope - (ps * slope).sum(-1, keepdim=True))


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jensen_shannon}


class Options(NamedTuple):
    """Of a method.

    Attributes:
        divergence: of `DIVERGENCES`.
        temperature: τ of the divergence, without a factor τ².
        entropy_temperature: τ′.
    """

    divergence: str = "forward_kl"
    temperature: float = 1.0
    entropy_temperature: float = 3.0


def token_losses(
    student: Head,
    teacher: Head | None,
    targets: Tensor,
    options: Options,
    bounds: Sequence[int],
    foresee: Foresee | None = None,
) -> TokenLosses:
    """Losses and entropies of ``M`` tokens, chunk by chunk.

    Args:
        student: its hidden states, weight and bias get gradients.
        teacher: ``None`` without one.
        targets: ``(M,)`` the tokens that follow.
        bounds: where chunks begin, and ``M``: see `chunks`.
        foresee: gradients are taken in the forward pass then, while a chunk's logits are there,
            and backpropagation only looks whether what it brings is what was foreseen, but for one
            factor. If not, the gradients are NaN, which stops a run. Without it, backpropagation
            computes the logits again.
    """
    weight, bias = student.weight, student.bias
    return TokenLosses(
        *_TokenLosses.apply(
            student.hidden, weight, bias, teacher, targets, options, tuple(bounds), foresee
        )
    )


def chunks(lengths: Sequence[int], size: int) -> list[int]:
    """Bounds of chunks of at most ``size`` tokens that hold whole answers.

    Args:
        lengths: of the answers; one that is longer than ``size`` is a chunk of its own.
    """
    bounds, end = [0], 0
    for length in lengths:
        if end > bounds[-1] and end + length - bounds[-1] > size:
            bounds.append(end)
        end += length
    return [*bounds, end]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        teacher: Head | None,
        targets: Tensor,
        options: Options,
        bounds: tuple[int, ...],
        foresee: Foresee | None,
    ) -> tuple[Tensor, ...]:
        given = Head(hidden, weight, bias)
        with torch.autocast(hidden.device.type, enabled=False):
            student, teacher = _in_precision(given, hidden), _in_precision(teacher, hidden)
            needs = any(ctx.needs_input_grad)
            gradients = _Gradients(student) if foresee is not None and needs else None
            found, foreseen = [], []
            for start, stop in pairwise(bounds):
                logits = student.logits(start, stop)
                others = None if teacher is None else teacher.logits(start, stop)
                values, slopes = _chunk(
                    logits, others, targets[start:stop], options, gradients is not None
                )
                found.append(values)
                if gradients is not None:
                    factors = foresee(start, stop, *values[2:4])
                    gradients.add(start, stop, _combine(slopes, factors))
                    foreseen.append(torch.stack(factors))
        ctx.options, ctx.bounds, ctx.gradients = options, bounds, gradients
        ctx.foreseen = torch.cat(foreseen, dim=1) if foreseen else None
        ctx.teacher = None if gradients is not None else teacher
        ctx.dtypes = [None if x is None else x.dtype for x in given]
        if gradients is None:
            ctx.save_for_backward(hidden, weight, bias, targets)
            ctx.precision = student.hidden.dtype
        joined = [torch.cat(values) for values in zip(*found, strict=True)]
        ctx.mark_non_differentiable(*joined[2:])
        return tuple(joined)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ce: Tensor, divergence: Tensor, *_: Tensor) -> tuple[Any, ...]:
        factors = torch.stack([ce, divergence])
        gradients = ctx.gradients
        if gradients is not None:
            gradients.scale(_as_foreseen(factors, ctx.foreseen))
        else:
            hidden, weight, bias, targets = ctx.saved_tensors
            student = Head(
                *(None if x is None else x.to(ctx.precision) for x in (hidden, weight, bias))
            )
            gradients = _Gradients(student)
            for start, stop in pairwise(ctx.bounds):
                logits = student.logits(start, stop)
                others = None if ctx.teacher is None else ctx.teacher.logits(start, stop)
                _, slopes = _chunk(logits, others, targets[start:stop], ctx.options, True)
                gradients.add(start, stop, _combine(slopes, factors[:, start:stop]))
        return *gradients.cast(ctx.dtypes), *[None] * 5


def _in_precision(head: Head | None, like: Tensor) -> Head | None:
    """What autocast would make of a head's linear map, cast once for all chunks."""
    if head is None:
        return None
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if dtype is None:  # a student in float32 and a teacher in bfloat16 have each their own
        return Head(*(None if x is None else x.detach().to(head.hidden.dtype) for x in head))
    return Head(*(None if x is None else x.detach().to(dtype) for x in head))


def _chunk(
    logits: Tensor, others: Tensor | None, targets: Tensor, options: Options, gradient: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor | None] | None]:
    """The values of `TokenLosses`, and the gradients of the first two by the student's logits."""
    tau, tau_entropy = options.temperature, options.entropy_temperature
    ours = _Softened(logits)
    ce = -ours(1.0).gather(1, targets[:, None])[:, 0]
    right = (logits.argmax(-1) == targets).to(logits.dtype)
    nothing = torch.zeros_like(ce)
    slope_ce = None
    if gradient:
        slope_ce = ours(1.0).exp()
        slope_ce[torch.arange(len(targets), device=targets.device), targets] -= 1
    if others is None:
        return [ce, nothing, ours.entropy(tau_entropy), nothing.clone(), right], (slope_ce, None)
    theirs = _Softened(others.to(logits.dtype))
    value, slope = DIVERGENCES[options.divergence](ours(tau), theirs(tau), gradient)
    if slope is not None:
        slope = slope.div_(tau)
    entropies = ours.entropy(tau_entropy), theirs.entropy(tau_entropy)
    return [ce, value, *entropies, right], (slope_ce, slope)


class _Softened:
    """Log-probabilities of a chunk at any temperature, each made once: they are what costs time."""

    def __init__(self, logits: Tensor):
        self.logits = logits
        self.known: dict[float, Tensor] = {}

    def __call__(self, temperature: float) -> Tensor:
        if temperature not in self.known:
            scaled = self.logits if temperature == 1 else self.logits / temperature
            self.known[temperature] = scaled.log_softmax(-1)
        return self.known[temperature]

    def entropy(self, temperature: float) -> Tensor:
        """`eakd.weighting.entropy` by another way, which takes no second logarithm."""
        log_p = self(temperature)
        bound = math.log(log_p.shape[-1])
        return -(log_p.exp() * log_p).sum(-1).clamp(-bound, 0.0)


def _combine(slopes: tuple[Tensor, Tensor | None], factors: Sequence[Tensor]) -> Tensor:
    ce, divergence = slopes
    found = ce.mul_(factors[0][:, None].to(ce.dtype))
    return found if divergence is None else found.addcmul_(divergence, factors[1][:, None])


class _Gradients:
    """Of a student's hidden states, weight and bias, summed over chunks in float32 at least."""

    def __init__(self, student: Head):
        self.student = student
        self.hidden = torch.zeros_like(student.hidden, dtype=_wide(student.hidden))
        self.weight, self.bias = (
            None if x is None else torch.zeros_like(x, dtype=_wide(x)) for x in student[1:]
        )

    def add(self, start: int, stop: int, logits: Tensor) -> None:
        """Go on from the gradient by a chunk's logits."""
        student = self.student
        if student.weight is None:
            self.hidden[start:stop] = logits
            return
        small = logits.to(student.weight.dtype)
        self.hidden[start:stop] = small @ student.weight
        if small.dtype == self.weight.dtype:
            self.weight.addmm_(small.T, student.hidden[start:stop])
        else:
            self.weight += small.T @ student.hidden[start:stop]
        if self.bias is not None:
            self.bias += logits.sum(0)

    def scale(self, factor: Tensor) -> None:
        for each in (self.hidden, self.weight, self.bias):
            if each is not None:
                each.mul_(factor.to(each.dtype))

    def cast(self, dtypes: Sequence[torch.dtype | None]) -> list[Tensor | None]:
        found = self.hidden, self.weight, self.bias
        return [None if x is None else x.to(dtype) for x, dtype in zip(found, dtypes, strict=True)]


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _as_foreseen(found: Tensor, foreseen: Tensor) -> Tensor:
    """The one factor between them, NaN if there is none; nothing waits for the device."""
    factor = (found * foreseen).sum() / foreseen.square().sum().clamp_min(1e-30)
    off = (found - factor * foreseen).norm()
    return torch.where(off <= 1e-3 * found.norm(), factor, torch.nan)
