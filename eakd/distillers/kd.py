"""Knowledge distillation (Hinton et al., 2015), and training without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.errors import check_number
from eakd.weighting import Weighting


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """KL divergence of the softened predictions times τ², per sample.

    Source: Eqs. 2-3. The teacher's logits take no gradient.

    Args:
        student_logits, teacher_logits: ``(N, C)``.
        temperature: τ > 0.

    Returns:
        ``(N,)`` in nats; the caller weights and averages.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    return divergence * temperature**2


class CrossEntropy(Distiller):
    """Training on the labels alone: teachers, and the student's baseline (``distiller=none``)."""

    needs_teacher = False

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        logits = self.student(batch.images, features=False).logits
        return Terms({"ce": F.cross_entropy(logits, batch.targets)}, logits)


class KD(Distiller):
    """``ce_weight · CE + kd_weight · mean(weight · KL(τ) · τ²)``, Eq. 14 with the EA weight.

    Args:
        temperature: τ > 0 of the distillation loss.
        ce_weight, kd_weight: coefficients ≥ 0.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
    ):
        super().__init__(student, teacher, weighting)
        check_number("temperature", temperature, above=0)
        check_number("ce_weight", ce_weight, at_least=0)
        check_number("kd_weight", kd_weight, at_least=0)
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        teacher_logits = self.teach(batch.images).logits
        student_logits = self.student(batch.images, features=False).logits
        losses = {
            "ce": self.ce_weight * F.cross_entropy(student_logits, batch.targets),
            "kd": self.kd_weight * kd_loss(student_logits, teacher_logits, self.temperature),
        }
        return Terms(losses, student_logits, teacher_logits)
