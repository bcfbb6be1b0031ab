"""Knowledge distillation (Hinton et al., 2015), and training without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.distillers.standardization import LogitDistiller
from eakd.errors import UserError, check_number
from eakd.weighting import Weighting, at_least_float32, check_same_shape, check_temperature

IGNORED = -100  # a target that cross-entropy ignores: a sample without a label
MASKED = -1e30  # a logit that stands for −inf: its probability is 0, and 0 · (z - z) is no NaN


def check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raise `UserError` unless ``tensor`` has this shape: broadcasting would hide a mistake."""
    if tensor.shape != shape:
        raise UserError(f"{name}: found shape {tuple(tensor.shape)}, allowed is {tuple(shape)}")


def unmasked(logits: Tensor) -> Tensor:
    """``logits`` in float32 at least, with `MASKED` where a class is masked with −inf."""
    # A clamp whose gradient is one kernel. Before the division by τ, whose gradient knows no −inf.
    return torch.threshold(at_least_float32(logits), MASKED, MASKED)


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``log softmax(z / τ)`` over the last dimension, in float32 at least. Source: Eq. 2.

    Finite also for classes that are masked with −inf, whose probability is 0 all the same.
    """
    return F.log_softmax(unmasked(logits) / temperature, dim=-1)


def check_targets(targets: Tensor, classes: int) -> bool:
    """Raise `UserError` for labels outside of ``[0, classes)`` that are not `IGNORED`.

    Looked at on a CPU alone: elsewhere it would wait for the device.

    Returns:
        Whether any may be `IGNORED`.
    """
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    if targets.is_floating_point() or not targets.numel():
        return True
    low, high = (int(end) for end in targets.aminmax())
    if low >= 0 and high < classes:
        return False
    wrong = targets[((targets < 0) & (targets != IGNORED)) | (targets >= classes)]
    if wrong.numel():
        raise UserError(
            f"targets: found {int(wrong[0])}, allowed are the classes 0 to {classes - 1}, and "
            f"{IGNORED} for a sample without a label"
        )
    return True


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy ``()`` in nats over the samples whose target is not `IGNORED`.

    Args:
        logits: ``(N, C)``; half precision is computed in float32.
        targets: ``(N,)`` int64. Where all are ignored the loss is 0.

    Raises:
        UserError: a target that is no class (looked for on a CPU alone).
    """
    some_ignored = check_targets(targets, logits.shape[-1])
    loss = F.cross_entropy(at_least_float32(logits), targets)
    return loss.where((targets != IGNORED).any(), 0.0) if some_ignored else loss  # not 0 / 0


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor = 4.0
) -> Tensor:
    """KL divergence of the softened predictions times τ², per sample.

    Source: Eqs. 2-3. The teacher's logits take no gradient; a temperature that is a tensor does,
    through both predictions and the factor τ².

    A class may be masked with −inf: in both networks or in the teacher it has no part in the
    divergence. One that the student alone masks and the teacher believes in, where the divergence
    is infinite by definition, costs more than any logits could.

    Args:
        student_logits, teacher_logits: ``(..., C)`` of the same shape.
        temperature: τ > 0, a number or a tensor that broadcasts against the logits (``(K, 1, 1)``
            gives ``K`` temperatures at once).

    Returns:
        ``(...)`` in nats; the caller weights and averages.

    Raises:
        UserError: logits whose shapes differ, a temperature that is not positive, or a tensor of
            temperatures that would mix classes; see `check_temperature`.
    """
    check_same_shape(student_logits, teacher_logits)
    temperature = check_temperature(temperature, student_logits)
    student = log_probabilities(student_logits, temperature)
    teacher = log_probabilities(teacher_logits.detach(), temperature)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    scale = temperature.squeeze(-1) if isinstance(temperature, Tensor) else temperature
    return divergence * scale**2


class CrossEntropy(Distiller):
    """Training on the labels alone: teachers, and the student's baseline (``distiller=none``)."""

    def passes(self, batch: Batch, progress: Progress) -> Tensor:
        """The student's logits ``(N, C)``."""
        return self.student(batch.images, features=False).logits

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        logits = self.passes(batch, progress)
        return Terms({"ce": cross_entropy(logits, batch.targets)}, logits, targets=batch.targets)


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
        self.temperature = check_number("temperature", temperature, above=0)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        student_logits, teacher_logits = self.passes(batch, progress)
        pair, entropy_pair = self.loss_and_entropy_logits(student_logits, teacher_logits)
        losses = {
            "ce": self.ce_weight * cross_entropy(student_logits, batch.targets),
            "kd": self.kd_weight * kd_loss(*pair, self.temperature),
        }
        sources = {"kd": entropy_pair}
        return Terms(losses, student_logits, teacher_logits, sources, targets=batch.targets)
