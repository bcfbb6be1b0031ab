"""The contract of a distillation method, and the one place where terms become a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.errors import UserError
from eakd.weighting import Weighting


class Progress(NamedTuple):
    """Where training stands. Everything random in a method derives from it.

    Attributes:
        seed: the run's seed.
        epoch: 1-based.
        step: 0-based within the epoch.
    """

    seed: int
    epoch: int
    step: int

    def generator(self) -> torch.Generator:
        """A CPU generator that depends on (seed, epoch, step) alone: runs can be resumed."""
        mixed = (self.seed * 1_000_003 + self.epoch) * 1_000_003 + self.step
        return torch.Generator().manual_seed(mixed % 2**63)


class Terms(dict[str, Tensor]):
    """The named loss terms of one step: ``{name: (N,) or scalar}``, coefficients included.

    A term of shape ``(N,)`` belongs to single samples and is multiplied by the weight before its
    mean is taken; a scalar belongs to the batch and is added as it is.

    Attributes:
        student_logits: ``(N, C)`` on ``batch.images``, for the accuracy meter and the weight.
        teacher_logits: ``(N, C)``, or ``None`` for a method without a teacher.
        entropy_logits: for terms whose weight must come from other logits than the two above (a
            second view, standardised logits): ``{name: (student_logits, teacher_logits)}``.
    """

    def __init__(
        self,
        losses: dict[str, Tensor],
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        entropy_logits: dict[str, tuple[Tensor, Tensor]] | None = None,
    ):
        super().__init__(losses)
        self.student_logits = student_logits
        self.teacher_logits = teacher_logits
        self.entropy_logits = entropy_logits or {}


class Total(NamedTuple):
    """The loss of one step and what is worth measuring about it.

    Attributes:
        loss: scalar to differentiate.
        weight: ``(N,)`` weight of the first per-sample term, or ``None`` without such a term.
        distillation: ``(N,)`` sum of the weighted per-sample terms, detached, or ``None``.
    """

    loss: Tensor
    weight: Tensor | None
    distillation: Tensor | None


class Distiller(nn.Module):
    """Base of every method: holds the student, the frozen teacher and the weighting.

    Subclasses implement ``forward(batch, progress) -> Terms`` and may own further trainable
    modules. The teacher stays in eval mode, takes no gradient, and is part of neither the
    parameters nor the state dict.

    Args:
        student: the network that is trained and kept.
        teacher: a trained network, or ``None`` for methods that need none.
        weighting: maps ``(student_logits, teacher_logits)`` to ``(N,)``; uniform when ``None``.
    """

    needs_strong_view = False
    folds_teacher = True  # works with batch norms folded into the teacher's convolutions

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        weighting: Weighting | None = None,
    ):
        super().__init__()
        self.student = student
        self.weighting = weighting or Weighting("uniform")
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        # A tuple hides the teacher from nn.Module: it must not be trained, saved or set to train().
        self._teacher = (teacher,)

    @property
    def teacher(self) -> nn.Module | None:
        return self._teacher[0]

    @property
    def inference_model(self) -> nn.Module:
        """The plain student: what is evaluated, exported and kept."""
        return self.student

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    @classmethod
    def check_strong_view(cls, present: bool) -> None:
        """Raise `UserError` if the method compares two views and the second is not ``present``."""
        if cls.needs_strong_view and not present:
            raise UserError(
                f"recipe.strong_view: found none, allowed is auto or randaugment: {cls.__name__} "
                "compares a weak and a strong view of each image"
            )

    def teach(self, images: Tensor, features: bool = False):
        """The teacher's `Output` for ``images``, without gradient."""
        with torch.no_grad():
            return self.teacher(images, features=features)

    def passes(self, batch: Batch, progress: Progress) -> Any:
        """Run the networks and every other module, but compute no loss.

        `forward` starts with it, and the benchmark takes it, with a backward pass from all that it
        returns, as the time that the method cannot avoid. A method that is not benchmarked may do
        without.

        Returns:
            The tensors that the losses compare, in any nesting of tuples, lists and dicts.
        """
        raise NotImplementedError(f"{type(self).__name__} does not tell its passes from its losses")

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """Values worth logging once an epoch, such as a learned temperature."""
        return {}

    def total(self, terms: Terms) -> Total:
        """Σ scalar terms + Σ mean(weight · per-sample term)."""
        weights: dict[tuple[int, int], Tensor] = {}
        loss, weight, distillation = 0.0, None, None
        for name, term in terms.items():
            if term.dim() == 0:
                loss = loss + term
                continue
            pair = terms.entropy_logits.get(name, (terms.student_logits, terms.teacher_logits))
            key = (id(pair[0]), id(pair[1]))
            if key not in weights:
                weights[key] = self.weighting(*pair)
            weight = weights[key] if weight is None else weight
            weighted = weights[key] * term
            loss = loss + weighted.mean()
            weighted = weighted.detach()
            distillation = weighted if distillation is None else distillation + weighted
        return Total(loss, weight, distillation)
