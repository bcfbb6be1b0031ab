"""Curriculum temperature (Li et al., 2023): a temperature that learns to make the task harder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Progress, Terms
from eakd.distillers.kd import cross_entropy, kd_loss
from eakd.distillers.standardization import LogitDistiller
from eakd.errors import check_number
from eakd.weighting import Weighting


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """``x`` itself, with its gradient multiplied by ``scale`` (reversed when negative)."""
    return x.detach() + scale * (x - x.detach())


def cosine_lambda(epoch: int, decay_epochs: int = 10, minimum: float = -1.0) -> float:
    """The factor λ on the temperature's gradient: a cosine from 0 to ``minimum``, then constant.

    The authors' paper writes the reversal as -λ with λ rising from 0 to 1; here, as in their code,
    λ is the (negative) factor itself.

    Args:
        epoch: 1-based; the first epoch already has a small λ.
        decay_epochs: epoch from which λ equals ``minimum``.
        minimum: final λ.
    """
    done = min(epoch / decay_epochs, 1.0)
    return minimum * (1 - (1 + math.cos(math.pi * done)) / 2)


def curriculum_temperature(
    theta: Tensor, scale: float = -1.0, minimum: float = 1.0, width: float = 20.0
) -> Tensor:
    """CTKD's temperature, ``τ = minimum + width · sigmoid(θ)``, for `kd_loss`.

    Source: Li et al. (2023), global version.

    Args:
        theta: the learned ``()``, given to the optimiser beside the student's parameters.
        scale: factor of θ's gradient, `cosine_lambda` of the epoch: negative, so that the optimiser
            makes the task harder.
        minimum: lower end of τ, > 0.
        width: of τ's interval, > 0.

    Returns:
        ``()``; its gradient flows to θ, through the factor τ² too.
    """
    return minimum + width * torch.sigmoid(scale_gradient(theta, scale))


class CTKD(LogitDistiller):
    """KD with one learned temperature, ``τ = min_temperature + temperature_range · sigmoid(θ)``.

    The student descends the loss and θ, through gradient reversal, ascends it. θ belongs to the
    trainable parameters, so the optimiser's weight decay pulls it too, as in the authors' code.

    Args:
        student, teacher, weighting: see `Distiller`.
        min_temperature: lower end of τ, > 0.
        temperature_range: width of τ's interval, > 0 (the authors' ``t_end``, which is no end: 1
            and 20 give τ in (1, 21)).
        theta: initial θ.
        decay_epochs: see `cosine_lambda`.
        ce_weight, kd_weight: coefficients ≥ 0.
        standardize, entropy_logits: see `LogitDistiller`.

    Raises:
        UserError: a value outside its range, such as a temperature interval that is empty,
            inverted or reaches 0.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        min_temperature: float = 1.0,
        temperature_range: float = 20.0,
        theta: float = 1.0,
        decay_epochs: int = 10,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        standardize: bool = False,
        entropy_logits: str = "raw",
    ):
        super().__init__(student, teacher, weighting, standardize, entropy_logits)
        self.min_temperature = check_number("min_temperature", min_temperature, above=0)
        self.temperature_range = check_number("temperature_range", temperature_range, above=0)
        self.decay_epochs = check_number("decay_epochs", decay_epochs, at_least=1, integer=True)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)
        self.theta = nn.Parameter(torch.tensor(float(check_number("theta", theta))))

    def temperature(self, scale: float = 1.0) -> Tensor:
        """The current τ, a scalar tensor, with θ's gradient multiplied by ``scale``."""
        interval = self.min_temperature, self.temperature_range
        return curriculum_temperature(self.theta, scale, *interval)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        student_logits, teacher_logits = self.passes(batch, progress)
        pair, entropy_pair = self.loss_and_entropy_logits(student_logits, teacher_logits)
        # τ² stays in the graph: detached, dL/dτ would be several times larger and another
        # temperature would be learned.
        temperature = self.temperature(cosine_lambda(progress.epoch, self.decay_epochs))
        losses = {
            "ce": self.ce_weight * cross_entropy(student_logits, batch.targets),
            "kd": self.kd_weight * kd_loss(*pair, temperature),
        }
        sources = {"kd": entropy_pair}
        return Terms(losses, student_logits, teacher_logits, sources, targets=batch.targets)

    def scalars(self) -> dict[str, float]:
        return {"temperature": self.temperature().item()}
