"""Multi-level logit distillation (Jin et al., 2023): samples, batch and classes, two views."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Progress, Terms
from eakd.distillers.kd import check_shape, cross_entropy, kd_loss, log_probabilities
from eakd.distillers.standardization import LogitDistiller
from eakd.errors import check_choice, check_number
from eakd.weighting import Weighting, check_same_shape

VARIANTS = ("published", "intended")

# The "augmented" temperatures: the base one, then these (authors' code). In the published variant
# the last two of the strong view's terms are computed from the weak view.
EXTRA_TEMPERATURES = (3.0, 5.0, 2.0, 6.0)
MIXED_UP = 2

LogitPair = tuple[Tensor, Tensor]  # (student, teacher), each (N, C)


def low_confidence(teacher_logits: Tensor, variant: str = "published") -> tuple[Tensor, Tensor]:
    """Coefficients that favour the samples and the classes the teacher is least sure of.

    The mask is 1 where the confidence (largest probability of a sample, summed probability of a
    class) is not above its median. ``intended`` returns that mask. ``published`` returns its mean
    everywhere: the released code averages each loss before multiplying it by the mask, which
    leaves of the mask the factor "share of ones", about ½.

    Args:
        teacher_logits: ``(N, C)`` on the weak view.
        variant: ``"published"`` or ``"intended"``.

    Returns:
        ``(N,)`` and ``(C,)``, without gradient and without device synchronisation.
    """
    probabilities = log_probabilities(teacher_logits.detach(), 1.0).exp()
    coefficients = []
    for confidence in (probabilities.amax(dim=-1), probabilities.sum(dim=0)):
        # torch's median is the lower one; it selects exactly what the interpolated one does.
        mask = (confidence <= confidence.median()).to(probabilities.dtype)
        coefficients.append(mask if variant == "intended" else mask.mean().expand_as(mask))
    return coefficients[0], coefficients[1]


def instance_losses(
    weak: LogitPair,
    strong: LogitPair,
    sample_coefficient: Tensor,
    temperatures: Tensor,
    variant: str = "published",
) -> tuple[Tensor, Tensor]:
    """The instance level: KL(τ) · τ² of each sample, summed over the temperatures.

    Args:
        weak, strong: logits of the two views.
        sample_coefficient: ``(N,)`` from `low_confidence`; acts on the weak view only.
        temperatures: ``(K,)`` on the logits' device.
        variant: ``"published"`` adds the weak view's last two terms (τ of 2 and 6) a second time,
            without coefficient, in place of the strong view's, as the released code does.

    Returns:
        Two tensors ``(N,)`` in nats, computed from weak and from strong logits: the weight of
        either comes from the same logits.

    Raises:
        UserError: shapes that do not fit, as `kd_loss`.
    """
    check_shape("sample_coefficient", sample_coefficient, weak[0].shape[:-1])
    taus = temperatures[:, None, None]
    per_temperature = kd_loss(*weak, taus)  # (K, N)
    from_weak = sample_coefficient * per_temperature.sum(dim=0)
    if variant == "published":
        from_weak = from_weak + per_temperature[-MIXED_UP:].sum(dim=0)
        taus = taus[:-MIXED_UP]
    return from_weak, kd_loss(*strong, taus).sum(dim=0)


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the two Gram matrices of the rows, summed over each row.

    Args:
        student, teacher: probabilities ``(..., M, D)``. Rows are samples for the batch level and
            classes for the class level.

    Returns:
        ``(..., M)``; its mean is the loss of that level.
    """
    # Half-precision products would lose the small differences.
    with torch.autocast(student.device.type, enabled=False):
        return (teacher @ teacher.mT - student @ student.mT).square().sum(dim=-1)


def relation_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    sample_coefficient: Tensor,
    class_coefficient: Tensor,
    temperatures: Tensor,
) -> tuple[Tensor, Tensor]:
    """The batch and the class level, summed over the temperatures.

    Args:
        student_logits, teacher_logits: ``(N, C)`` of the weak view. (The released code also
            computes those of the strong view, and discards them.)
        sample_coefficient, class_coefficient: ``(N,)`` and ``(C,)`` from `low_confidence`.
        temperatures: ``(K,)`` on the logits' device.

    Returns:
        Two scalars, batch level and class level.

    Raises:
        UserError: shapes that do not fit.
    """
    check_same_shape(student_logits, teacher_logits)
    check_shape("sample_coefficient", sample_coefficient, student_logits.shape[:1])
    check_shape("class_coefficient", class_coefficient, student_logits.shape[1:])
    taus = temperatures[:, None, None]
    student = log_probabilities(student_logits, taus).exp()  # (K, N, C)
    teacher = log_probabilities(teacher_logits.detach(), taus).exp()
    batch = sample_coefficient * relation_loss(student, teacher)
    classes = class_coefficient * relation_loss(student.mT, teacher.mT)
    return batch.mean(dim=-1).sum(), classes.mean(dim=-1).sum()


class MLDLosses(NamedTuple):
    """The parts of MLD's loss, in nats or squared probabilities, before any weight.

    Attributes:
        instance_weak, instance_strong: ``(N,)``, of the two views; the weight of either comes from
            the same logits.
        batch, classes: ``()``, of the whole batch.
    """

    instance_weak: Tensor
    instance_strong: Tensor
    batch: Tensor
    classes: Tensor


def mld_losses(
    weak: LogitPair,
    strong: LogitPair,
    temperatures: Tensor | None = None,
    variant: str = "published",
    compared: tuple[LogitPair, LogitPair] | None = None,
) -> MLDLosses:
    """All levels of MLD. With weights ``(N,)`` of the two views the distillation loss is ::

        a, b, batch, classes = mld_losses((student, teacher), (student_strong, teacher_strong))
        loss = (weight * a).mean() + (weight_strong * b).mean() + batch + classes

    Source: Jin et al. (2023), Eqs. 3 to 8, and their code.

    Args:
        weak, strong: (student, teacher) logits of two views of the same images, each ``(N, C)``.
        temperatures: ``(K,)`` on the logits' device; 4, 3, 5, 2 and 6 by default.
        variant: see `low_confidence` and `instance_losses`.
        compared: (weak, strong) logits for the instance level where they are others: standardised.

    Raises:
        UserError: shapes that do not fit, an unknown variant.
    """
    check_choice("variant", variant, VARIANTS)
    if temperatures is None:
        temperatures = weak[0].new_tensor([4.0, *EXTRA_TEMPERATURES], dtype=torch.float32)
    samples, classes = low_confidence(weak[1], variant)
    instance = instance_losses(*(compared or (weak, strong)), samples, temperatures, variant)
    return MLDLosses(*instance, *relation_losses(*weak, samples, classes, temperatures))


class MLD(LogitDistiller):
    """``ce_weight · (CE weak + CE strong) + kd_weight · (instance + batch + class)``.

    The weight of EA-MLD multiplies the instance terms, as in the released code: the batch and the
    class level compare whole batches and have no term of a single sample.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: base τ > 0; 3, 5, 2 and 6 are added to it.
        ce_weight, kd_weight: coefficients ≥ 0.
        variant: ``"published"``, what the released code of MLD and of all that build on it
            computes and every published number rests on, or ``"intended"``, what it says it
            computes. See `low_confidence` and `instance_losses`.
        standardize, entropy_logits: see `LogitDistiller`; standardisation acts on the instance
            level only, the released entropies are those of raw logits.

    Raises:
        UserError: a value outside its range; on call, a batch without a strong view.
    """

    needs_strong_view = True

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 4.0,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        variant: str = "published",
        standardize: bool = False,
        entropy_logits: str = "raw",
    ):
        super().__init__(student, teacher, weighting, standardize, entropy_logits)
        temperature = check_number("temperature", temperature, above=0)
        check_choice("variant", variant, VARIANTS)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)
        self.variant = variant
        temperatures = torch.tensor([temperature, *EXTRA_TEMPERATURES])
        self.register_buffer("temperatures", temperatures, persistent=False)

    def passes(self, batch: Batch, progress: Progress) -> tuple[LogitPair, LogitPair]:
        """The (student, teacher) logits of the weak and of the strong view."""
        self.check_strong_view(batch.strong is not None)
        if batch.teacher_logits is None:
            # The frozen teacher takes both views at once; the student one by one, because each
            # view has its own batch statistics.
            both = self.teach(torch.cat([batch.images, batch.strong])).logits
            teacher_weak, teacher_strong = both.chunk(2)
        else:
            teacher_weak, teacher_strong = batch.teacher_logits, self.teach(batch.strong).logits
        student_weak = self.student(batch.images, features=False).logits
        student_strong = self.student(batch.strong, features=False).logits
        return (student_weak, teacher_weak), (student_strong, teacher_strong)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        raw_weak, raw_strong = self.passes(batch, progress)
        weak, weak_entropy = self.loss_and_entropy_logits(*raw_weak)
        strong, strong_entropy = self.loss_and_entropy_logits(*raw_strong)
        found = mld_losses(
            *(raw_weak, raw_strong, self.temperatures, self.variant), compared=(weak, strong)
        )
        ce = cross_entropy(raw_weak[0], batch.targets)
        ce = ce + cross_entropy(raw_strong[0], batch.targets)
        losses = {
            "ce": self.ce_weight * ce,
            "instance_weak": self.kd_weight * found.instance_weak,
            "instance_strong": self.kd_weight * found.instance_strong,
            "batch": self.kd_weight * found.batch,
            "class": self.kd_weight * found.classes,
        }
        entropy_logits = {"instance_weak": weak_entropy, "instance_strong": strong_entropy}
        return Terms(losses, *raw_weak, entropy_logits, targets=batch.targets)
