"""Knowledge distillation (Hinton et al., 2015), and training without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.distillers.standardization import LogitDistiller
from eakd.errors import check_number
from eakd.weighting import Weighting


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``log softmax(z / τ)`` over the last dimension, in float32 at least. Source: Eq. 2."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(logits / temperature, dim=-1)


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 4.0
) -> Tensor:
    """KL divergence of the softened predictions times τ², per sample.

    Source: Eqs. 2-3. The teacher's logits take no gradient; a temperature that is a tensor does,
    through both predictions and the factor τ².

    Args:
        student_logits, teacher_logits: ``(..., C)``.
        temperature: τ > 0, a number or a tensor that broadcasts against the logits (``(K, 1, 1)``
            gives ``K`` temperatures at once).

    Returns:
        ``(...)`` in nats; the caller weights and averages.
    """
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits.detach(), temperature)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True)
    return (divergence.sum(dim=-1, keepdim=True) * temperature**2).squeeze(-1)


class CrossEntropy(Distiller):
    """Training on the labels alone: teachers, and the student's baseline (``distiller=none``)."""

    def passes(self, batch: Batch, progress: Progress) -> Tensor:
        """The student's logits ``(N, C)``."""
        return self.student(batch.images, features=False).logits

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        logits = self.passes(batch, progress)
        return Terms({"ce": F.cross_entropy(logits, batch.targets)}, logits)


class KD(LogitDistiller):
    """``ce_weight · CE + kd_weight · mean(weight · KL(τ) · τ²)``, Eq. 14 with the EA weight.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: τ > 0 of the distillation loss.
        ce_weight, kd_weight: coefficients ≥ 0.
        standardize, entropy_logits: see `LogitDistiller`; ``kd_ls`` is this with ``standardize``.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        standardize: bool = False,
        entropy_logits: str = "raw",
    ):
        super().__init__(student, teacher, weighting, standardize, entropy_logits)
        check_number("temperature", temperature, above=0)
        check_number("ce_weight", ce_weight, at_least=0)
        check_number("kd_weight", kd_weight, at_least=0)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        student_logits, teacher_logits = self.passes(batch, progress)
        pair, entropy_pair = self.loss_and_entropy_logits(student_logits, teacher_logits)
        losses = {
            "ce": self.ce_weight * F.cross_entropy(student_logits, batch.targets),
            "kd": self.kd_weight * kd_loss(*pair, self.temperature),
        }
        return Terms(losses, student_logits, teacher_logits, {"kd": entropy_pair})
