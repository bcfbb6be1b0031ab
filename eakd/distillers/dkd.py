"""Decoupled knowledge distillation (Zhao et al., 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Progress, Terms
from eakd.distillers.kd import IGNORED, check_shape, check_targets, cross_entropy, kd_loss, unmasked
from eakd.distillers.standardization import LogitDistiller
from eakd.errors import UserError, check_number
from eakd.weighting import Weighting, check_same_shape, check_temperature


def other_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``(N, C)`` without each row's target column: ``(N, C - 1)``, in the order of the classes."""
    columns = torch.arange(logits.shape[-1] - 1, device=logits.device)
    return logits.gather(-1, columns + (columns >= targets[:, None]))


def check_labels(student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Some class ``(N,)`` for every row: its target, or class 0 where the target is ignored.

    Raises:
        UserError: logits that are not both ``(N, C)`` with ``C ≥ 2``, targets that are not ``(N,)``
            or name no class.
    """
    check_same_shape(student_logits, teacher_logits)
    if student_logits.dim() != 2 or student_logits.shape[-1] < 2:
        raise UserError(
            f"student_logits: found shape {tuple(student_logits.shape)}, allowed is (N, C) with "
            "two classes or more: DKD compares the target with the others"
        )
    check_shape("targets", targets, student_logits.shape[:-1])
    check_targets(targets, student_logits.shape[-1])
    return targets.clamp(min=0)


def target_class_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float = 4.0
) -> Tensor:
    """TCKD: KL divergence of (target, not target) times τ², per sample.

    Source: Zhao et al. (2022), Eq. 7, first term.

    Args:
        student_logits, teacher_logits: ``(N, C)``, ``C ≥ 2``.
        targets: ``(N,)`` int64.
        temperature: τ > 0.

    Returns:
        ``(N,)`` in nats; 0 where the target is ignored (−100), as a label the row does not have.

    Raises:
        UserError: logits or targets of another shape, a target that is no class (looked for on a
            CPU alone), a temperature that is not positive.
    """
    classes = check_labels(student_logits, teacher_logits, targets)
    temperature = check_temperature(temperature, student_logits)

    def binary(logits: Tensor) -> Tensor:
        # Two logits whose softmax is (p_target, 1 - p_target). No probability is formed, so none
        # can underflow to 0 under a logarithm.
        logits = unmasked(logits) / temperature
        others = other_logits(logits, classes).logsumexp(dim=-1)
        return torch.stack([logits.gather(-1, classes[:, None])[:, 0], others], dim=-1)

    loss = kd_loss(binary(student_logits), binary(teacher_logits), temperature=1.0)
    return (loss * temperature**2).where(targets != IGNORED, 0.0)


def non_target_class_loss(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float = 4.0
) -> Tensor:
    """NCKD: KL divergence among the classes that are not the target, times τ², per sample.

    Source: Zhao et al. (2022), Eq. 7, second term without its factor. The target is left out
    exactly, where the released code subtracts 1000 from its logit.

    Args, Returns, Raises: as `target_class_loss`.
    """
    classes = check_labels(student_logits, teacher_logits, targets)
    student, teacher = other_logits(student_logits, classes), other_logits(teacher_logits, classes)
    return kd_loss(student, teacher, temperature).where(targets != IGNORED, 0.0)


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """``alpha · TCKD + beta · NCKD``, per sample; the authors raise it over the first 20 epochs.

    Source: Zhao et al. (2022), Eq. 8.

    Args:
        student_logits, teacher_logits, targets, temperature: as `target_class_loss`.
        alpha, beta: coefficients; the authors tune beta for each pair.

    Returns, Raises: as `target_class_loss`.
    """
    logits = student_logits, teacher_logits
    target = target_class_loss(*logits, targets, temperature)
    return alpha * target + beta * non_target_class_loss(*logits, targets, temperature)


class DKD(LogitDistiller):
    """``ce_weight · CE + ramp · kd_weight · mean(weight · (alpha · TCKD + beta · NCKD))``.

    ``ramp`` rises linearly to 1 over the warm-up. EA-DKD: the same with the EA weight. A sample
    without a label (target −100) counts in the mean with terms of 0.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: τ > 0.
        alpha, beta: coefficients ≥ 0 of TCKD and NCKD. The authors tune beta for each pair.
        warmup: epochs ≥ 0 of the ramp ``min(epoch / warmup, 1)``, epochs counted from 1.
        ce_weight: coefficient ≥ 0.
        kd_weight: scales alpha and beta alike; 1 in DKD, the one tuned weight of DKD+LS.
        standardize, entropy_logits: see `LogitDistiller`. The released EA-DKD+LS takes the entropy
            of the standardised logits, hence the default.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        warmup: int = 20,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        standardize: bool = False,
        entropy_logits: str = "standardized",
    ):
        super().__init__(student, teacher, weighting, standardize, entropy_logits)
        self.temperature = check_number("temperature", temperature, above=0)
        self.alpha = check_number("alpha", alpha, at_least=0)
        self.beta = check_number("beta", beta, at_least=0)
        self.warmup = check_number("warmup", warmup, at_least=0)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        student_logits, teacher_logits = self.passes(batch, progress)
        pair, entropy_pair = self.loss_and_entropy_logits(student_logits, teacher_logits)
        target = target_class_loss(*pair, batch.targets, self.temperature)
        non_target = non_target_class_loss(*pair, batch.targets, self.temperature)
        scale = self.kd_weight * min(progress.epoch / max(self.warmup, 1), 1.0)
        losses = {
            "ce": self.ce_weight * cross_entropy(student_logits, batch.targets),
            "tckd": scale * self.alpha * target,
            "nckd": scale * self.beta * non_target,
        }
        entropy_logits = dict.fromkeys(("tckd", "nckd"), entropy_pair)
        return Terms(losses, student_logits, teacher_logits, entropy_logits, targets=batch.targets)
