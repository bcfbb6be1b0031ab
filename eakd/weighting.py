"""Entropy and the reweighting factors of EA-KD (paper, Eqs. 1 and 8-13, Tables 1 and 8).

Every function maps logits ``(..., C)`` to values ``(...)``: ``(N, C)`` for image samples,
``(N, L, C)`` for tokens, ``(R, C)`` for proposals. Entropies and weights are in nats, computed in
float32 at least, and never part of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from eakd.errors import UserError, check_choice, check_number

KINDS = (
    "uniform",
    "teacher",
    "student",
    "interaction",
    "ea",
    "inverted_teacher",
    "inverted_student",
    "matched",
)


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
        check_choice("kind", kind, KINDS)
        check_number("entropy_temperature", entropy_temperature, above=0)
        if max_entropy is not None:
            check_number("max_entropy", max_entropy, above=0)
        self.kind = kind
        self.entropy_temperature = entropy_temperature
        self.max_entropy = max_entropy
        self.batch_mean = batch_mean

    @torch.no_grad()
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if student_logits.shape != teacher_logits.shape:
            raise UserError(
                f"student_logits, teacher_logits: found shapes {tuple(student_logits.shape)} and "
                f"{tuple(teacher_logits.shape)}, allowed are equal shapes"
            )
        bound = self.max_entropy or math.log(student_logits.shape[-1])
        if self.kind == "uniform":
            return student_logits.new_ones(student_logits.shape[:-1], dtype=torch.float32)
        if self.kind == "student":
            return entropy(student_logits, self.entropy_temperature)
        if self.kind == "inverted_student":
            return bound - entropy(student_logits, self.entropy_temperature)
        teacher_entropy = entropy(teacher_logits, self.entropy_temperature)
        if self.kind == "teacher":
            return teacher_entropy  # Eq. 9
        if self.kind == "inverted_teacher":
            return bound - teacher_entropy
        student_entropy = entropy(student_logits, self.entropy_temperature)
        interaction = teacher_entropy * student_entropy / bound  # Eq. 10
        if self.kind == "interaction":
            return interaction
        weight = (teacher_entropy + interaction) / 2  # Eq. 11
        return self.batch_mean(weight).expand_as(weight) if self.kind == "matched" else weight

    def __repr__(self) -> str:
        bound = "log C" if self.max_entropy is None else f"{self.max_entropy:g}"
        return f"Weighting({self.kind}, τ′={self.entropy_temperature:g}, H_max={bound})"
