"""Logit standardisation (Sun et al., 2024), and the base of the methods that compare logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress
from eakd.errors import UserError, check_choice
from eakd.weighting import Weighting, at_least_float32


def standardize(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of each row of logits over its classes.

    After it, student and teacher agree when their logits have the same relations, whatever their
    range. Source: Sun et al. (2024), Algorithm 1, with the released code's unbiased standard
    deviation.

    Args:
        logits: ``(..., C)`` with ``C ≥ 2``; half precision is computed in float32. Classes masked
            with −inf stay so, and have no part in mean and standard deviation.
        eps: added to the standard deviation. Constant rows become zeros, with zero gradient.

    Returns:
        ``(..., C)``.

    Raises:
        UserError: fewer than two classes, which have no standard deviation.
    """
    classes = logits.shape[-1] if logits.dim() else 0
    if classes < 2:
        raise UserError(
            f"logits: found shape {tuple(logits.shape)}, allowed is (..., C) with two classes or "
            "more: one has no standard deviation"
        )
    logits = at_least_float32(logits)
    masked = logits.isneginf()
    on_cpu = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and not masked.any():  # a look that costs nothing here, and elsewhere a wait
        std, mean = torch.std_mean(logits, dim=-1, keepdim=True)
        return (logits - mean) / (std + eps)
    count = classes - masked.sum(dim=-1, keepdim=True)
    mean = logits.masked_fill(masked, 0).sum(dim=-1, keepdim=True) / count
    centred = (logits - mean).masked_fill(masked, 0)
    std = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (count - 1).clamp(min=1).sqrt()
    return (centred / (std + eps)).masked_fill(masked, -torch.inf)


class LogitDistiller(Distiller):
    """Base of the logit methods: decides which logits the divergence and the weight see.

    Args:
        student, teacher, weighting: see `Distiller`.
        standardize: compare standardised logits (the cross-entropy always sees raw ones).
        entropy_logits: with ``standardize``, the logits whose entropy gives the weight: ``"raw"``
            or ``"standardized"``. Standardised logits all have nearly the same entropy at τ′ = 3,
            so the second choice makes the weight almost a constant.
    """

    takes_answers = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None,
        standardize: bool,
        entropy_logits: str,
    ):
        super().__init__(student, teacher, weighting)
        check_choice("standardize", standardize, (False, True))
        check_choice("entropy_logits", entropy_logits, ("raw", "standardized"))
        self.standardize = standardize
        self.entropy_logits = entropy_logits

    def passes(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits ``(N, C)``."""
        teacher_logits = self.teacher_logits(batch)
        return self.student(batch.images, features=False).logits, teacher_logits

    def loss_and_entropy_logits(
        self, student_logits: Tensor, teacher_logits: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The (student, teacher) logits for the divergence and those for the weight.

        Raises:
            UserError: student and teacher know different numbers of classes.
        """
        if student_logits.shape != teacher_logits.shape:
            raise UserError(
                f"teacher: found {teacher_logits.shape[-1]} classes, allowed is "
                f"{student_logits.shape[-1]}, the number of the student's"
            )
        raw = student_logits, teacher_logits
        if not self.standardize:
            return raw, raw
        scored = standardize(student_logits), standardize(teacher_logits)
        return scored, raw if self.entropy_logits == "raw" else scored
