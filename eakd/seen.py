"""What a rule of `eakd.factors` looks at: the predictions of both networks, and labels."""

from __future__ import annotations

import torch
from torch import Tensor

from eakd.errors import UserError


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32; float64 stays float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``softmax(z / τ)`` ``(..., C)`` in float32 at least, for any finite logits."""
    logits = at_least_float32(logits)
    # The shift keeps logits / τ from overflowing.
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    return torch.softmax(shifted / temperature, dim=-1)


class Seen:
    """What a rule looks at: both predictions, and labels where there are any.

    Args:
        student_logits, teacher_logits: ``(..., C)``; there may be no teacher.
        targets: ``(...)`` int64, or ``None``; negative for a row without a label.
        temperature: τ of the predictions.
        gamma: the rule's exponent, or ``None``.
    """

    def __init__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        targets: Tensor | None = None,
        temperature: float = 1.0,
        gamma: float | None = None,
    ):
        self._logits = {"student": student_logits, "teacher": teacher_logits}
        self.targets, self.temperature, self.gamma = targets, temperature, gamma
        self.unlabelled: Tensor | None = None  # rows that `true` could say nothing of

    @property
    def student(self) -> Tensor:
        """The student's probabilities ``(..., C)``."""
        return self._probabilities("student")

    @property
    def teacher(self) -> Tensor:
        """The teacher's probabilities ``(..., C)``.

        Raises:
            UserError: there is no teacher.
        """
        return self._probabilities("teacher")

    def _probabilities(self, role: str) -> Tensor:
        logits = self._logits[role]
        if logits is None:
            raise UserError(f"found no {role}, allowed is a method with one")
        return probabilities(logits, self.temperature)

    def true(self, values: Tensor) -> Tensor:
        """Of each row's ``(..., C)`` values the one of its label, ``(...)``.

        Raises:
            UserError: no labels are known, or they are not one for each row.
        """
        rows = tuple(values.shape[:-1])
        if self.targets is None or self.targets.shape != rows:
            found = "no labels" if self.targets is None else f"labels {tuple(self.targets.shape)}"
            raise UserError(
                f"found {found}, allowed is a method that tells the label of each row, {rows}: "
                "Terms(…, targets=…)"
            )
        self.unlabelled = self.targets < 0
        return values.gather(-1, self.targets.clamp(min=0).unsqueeze(-1))[..., 0]
