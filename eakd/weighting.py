"""Entropy and the reweighting factors of EA-KD (paper, Eqs. 1 and 8-13, Tables 1 and 8).

Every function maps logits ``(..., C)`` to values ``(...)``: ``(N, C)`` for image samples,
``(N, L, C)`` for tokens, ``(R, C)`` for proposals. Entropies and weights are in nats, computed in
float32 at least, and never part of the gradient.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eakd.errors import UserError, check_choice, check_number
from eakd.factors import FACTORS, KINDS, MATCHED

__all__ = ["FACTORS", "KINDS", "Entropies", "Weighting", "ea_weight", "entropy"]


@torch.no_grad()
def entropy(logits: Tensor, temperature: float = 3.0) -> Tensor:
    """Entropy of the softened prediction, ``H = -Σ_c p_c log p_c`` with ``p = softmax(z / τ′)``.

    Source: Eqs. 1 and 8.

    Args:
        logits: ``(..., C)``; half-precision input is computed in float32, float64 stays float64.
        temperature: τ′ > 0.

    Returns:
        ``(...)`` in nats, within ``[0, log C]`` for any finite logits, without gradient.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # The shift keeps logits / τ′ from overflowing; entr(0) = 0, so one-hot needs no epsilon.
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    h = torch.special.entr(torch.softmax(shifted / temperature, dim=-1)).sum(dim=-1)
    return h.clamp(max=math.log(logits.shape[-1]))


@torch.no_grad()
def ea_weight(
    student_logits: Tensor,
    teacher_logits: Tensor,
    entropy_temperature: float = 3.0,
    max_entropy: float | None = None,
) -> Tensor:
    """EA-KD's weight of each sample, ``w = ½ (H_T + H_T · H_S / H_max)``.

    Multiply it into a distillation loss before the mean over samples::

        loss = (ea_weight(student_logits, teacher_logits) * kd_per_sample).mean()

    Source: Eqs. 9-12. The base term ``H_T`` is not divided by the bound, as in the released code.

    Args:
        student_logits, teacher_logits: ``(..., C)`` of the same shape.
        entropy_temperature: τ′ of Eq. 8 for both entropies.
        max_entropy: the bound ``H_max`` in nats. Default: ``log C``, as in the paper. The authors'
            released KD and DKD code uses 100 on CIFAR-100.

    Returns:
        ``(...)`` in ``[0, log C]`` with the default bound, without gradient.
    """
    return Weighting("ea", entropy_temperature, max_entropy)(student_logits, teacher_logits)


class Entropies(NamedTuple):
    """What a weight is made of, for rows of one shape ``(...)``.

    Attributes:
        teacher: in nats, or ``None`` without a teacher.
        student: in nats.
        bound: the largest value either can have, ``log C`` of the ``C`` classes they are over.
    """

    teacher: Tensor | None
    student: Tensor
    bound: float


class Weighting:
    """A named reweighting factor: ``(student_logits, teacher_logits) -> weight``.

    ========================  ==========================  ==================================
    kind                      weight                      source
    ========================  ==========================  ==================================
    ``uniform``               1                           the plain method
    ``teacher``               H_T                         Eq. 9 (base), Tables 1 and 8
    ``student``               H_S                         Table 1
    ``interaction``           H_T · H_S / H_max           Eq. 10, Table 8
    ``ea``                    (base + interaction) / 2    Eqs. 11-12
    ``inverted_teacher``      H_max - H_T                 Table 1
    ``inverted_student``      H_max - H_S                 Table 1
    ``matched``               batch mean of ``ea``        control: same scale, no selection
    ========================  ==========================  ==================================

    The formulas are the table of `eakd.factors`. A subclass may replace `combine`, to weigh by
    entropies in another way, or ``__call__``, to weigh by logits.

    Args:
        kind: a name from the table.
        entropy_temperature: τ′ > 0 of Eq. 8.
        max_entropy: bound ``H_max`` in nats, ``None`` for ``log C``.
        batch_mean: mean of ``matched``, a scalar. Where several processes share a batch, it must
            be one over all of them.

    Raises:
        UserError: unknown kind, non-positive temperature or bound; on call, logits whose shapes
            differ.
    """

    def __init__(
        self,
        kind: str = "ea",
        entropy_temperature: float = 3.0,
        max_entropy: float | None = None,
        batch_mean: Callable[[Tensor], Tensor] = torch.mean,
    ):
        check_choice("kind", kind, (*FACTORS, *MATCHED))
        check_number("entropy_temperature", entropy_temperature, above=0)
        if max_entropy is not None:
            check_number("max_entropy", max_entropy, above=0)
        self.kind = kind
        self.entropy_temperature = entropy_temperature
        self.max_entropy = max_entropy
        self.batch_mean = batch_mean

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
        return self.combine(self.entropies(student_logits, teacher_logits))

    def entropies(self, student_logits: Tensor, teacher_logits: Tensor | None) -> Entropies:
        """Both entropies at this weighting's τ′, ``(..., C) -> (...)``.

        Raises:
            UserError: logits whose shapes differ.
        """
        bound = math.log(student_logits.shape[-1])
        student = entropy(student_logits, self.entropy_temperature)
        if teacher_logits is None:
            return Entropies(None, student, bound)
        if student_logits.shape != teacher_logits.shape:
            raise UserError(
                f"student_logits, teacher_logits: found shapes {tuple(student_logits.shape)} and "
                f"{tuple(teacher_logits.shape)}, allowed are equal shapes"
            )
        return Entropies(entropy(teacher_logits, self.entropy_temperature), student, bound)

    @torch.no_grad()
    def combine(self, entropies: Entropies) -> Tensor:
        """The weight ``(...)`` of samples whose entropies are known.

        Raises:
            UserError: a kind that needs the teacher's entropy, and there is none.
        """
        bound = self.max_entropy or entropies.bound
        factor = FACTORS[MATCHED.get(self.kind, self.kind)]
        if entropies.teacher is None:
            # A factor that needs none works without: try, rather than list the names.
            with contextlib.suppress(TypeError):
                weight = factor(None, entropies.student, bound)
                if weight is not None:
                    return weight
            raise UserError(
                f"weighting.kind: found {self.kind!r} for a method without a teacher, allowed is "
                "what needs no teacher's entropy: uniform, student or inverted_student"
            )
        weight = factor(entropies.teacher, entropies.student, bound)
        return self.batch_mean(weight).expand_as(weight) if self.kind in MATCHED else weight

    def __repr__(self) -> str:
        bound = "log C" if self.max_entropy is None else f"{self.max_entropy:g}"
        return f"Weighting({self.kind}, τ′={self.entropy_temperature:g}, H_max={bound})"


class WeightFunction(ABC):
    """What ``weighting=`` may name: a `Weighting`, or any class whose objects are called alike."""

    @abstractmethod
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The weight ``(...)`` of each row of logits ``(..., C)``."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        calls = (each.__dict__["__call__"] for each in other.__mro__ if "__call__" in each.__dict__)
        try:
            inspect.signature(next(calls, None)).bind("self", "student_logits", "teacher_logits")
        except TypeError:  # no such method, or one that is called in another way
            return False
        return True
