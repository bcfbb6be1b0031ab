"""The contract of a distillation method, and the one place where terms become a loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.errors import UserError
from eakd.models.base import Output
from eakd.weighting import Entropies, Weighting, takes_targets


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
        mixed = (int(self.seed) * 1_000_003 + self.epoch) * 1_000_003 + self.step
        return torch.Generator().manual_seed(mixed % 2**63)


# Entropies, or the (student, teacher) logits to take them from.
Source = Entropies | tuple[Tensor | None, Tensor | None]


class Terms(dict[str, Tensor]):
    """The named loss terms of one step: ``{name: (U,) or scalar}``, coefficients included.

    A term of shape ``(U,)`` belongs to single rows (images, sequences, proposals) and is multiplied
    by the weight before its mean is taken; a scalar belongs to the batch and is added as it is.

    Attributes:
        student_logits: ``(U, C)``, for the accuracy meter and the weight.
        teacher_logits: ``(U, C)``, or ``None`` for a method without a teacher.
        entropy_logits: for terms whose weight must come from other logits than the two above (a
            second view, standardised logits): ``{name: (student_logits, teacher_logits)}``.
        entropies: instead of logits, where the method has computed them already because its logits
            are too large to keep; each ``(U,)``.
        count: what a sum over rows is divided by, ``U`` by default. A method whose rows are sums
            themselves (over a sequence's tokens) gives the number of summands in the whole step,
            of all its micro-batches and processes: such a step has one denominator, however it is
            cut. Its scalar terms must be divided by it already.
        sample: ``(U,)`` int64, which of the batch's samples each row belongs to; ``None`` where
            row i is sample i.
        targets: ``(U,)`` labels of the rows, for weightings that look at them.
    """

    def __init__(
        self,
        losses: dict[str, Tensor],
        student_logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        entropy_logits: dict[str, tuple[Tensor, Tensor]] | None = None,
        *,
        entropies: Entropies | None = None,
        count: Tensor | float | None = None,
        sample: Tensor | None = None,
        targets: Tensor | None = None,
    ):
        super().__init__(losses)
        self.student_logits = student_logits
        self.teacher_logits = teacher_logits
        self.entropy_logits = entropy_logits or {}
        self.entropies = entropies
        self.count = count
        self.sample = sample
        self.targets = targets

    def weight_source(self, name: str = "") -> Source:
        """What the weight of a term comes from."""
        if name in self.entropy_logits:
            return self.entropy_logits[name]
        if self.entropies is not None:
            return self.entropies
        return self.student_logits, self.teacher_logits

    def labels(self, source: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
        """The rows' labels, unless the weight sees logits of other classes than they number."""
        ours, seen = self.student_logits, source[0]
        known = ours is not None and seen is not None and ours.shape[-1] == seen.shape[-1]
        return self.targets if known else None

    def mean(self, rows: Tensor) -> Tensor:
        """The step's part of a value per row ``(U,) -> ()``; 0, and not NaN, without any row."""
        if self.count is not None:
            return rows.sum() / self.count
        return rows.mean() if rows.numel() else rows.sum()


class Total(NamedTuple):
    """The loss of one step and what is worth measuring about it.

    Attributes:
        loss: scalar to differentiate.
        weight: ``(U,)`` weight of the first per-row term, or ``None`` without such a term.
        distillation: ``(U,)`` sum of the weighted per-row terms, detached, or ``None``.
        unweighted: ``(U,)`` the same without the weights, or ``None``.
        entropies: those that ``weight`` was made of, at its τ′; without a per-row term those of the
            student's logits, or ``None`` where nothing tells them.
    """

    loss: Tensor
    weight: Tensor | None
    distillation: Tensor | None
    unweighted: Tensor | None = None
    entropies: Entropies | None = None


class Distiller(nn.Module):
    """Base of every method: holds the student, the frozen teacher and the weighting.

    Subclasses implement ``forward(batch, progress) -> Terms`` and may own further trainable
    modules. The teacher stays in eval mode, takes no gradient, and is part of neither the
    parameters nor the state dict.

    Args:
        student: the network that is trained and kept.
        teacher: a trained network, or ``None`` for methods that need none.
        weighting: maps ``(student_logits, teacher_logits)``, and ``targets`` if it takes them, to
            ``(U,)``: a `Weighting`, or any callable; uniform when ``None``.

    Attributes:
        needs_strong_view: the method compares two views of an image.
        folds_teacher: it works with batch norms folded into the teacher's convolutions.
        takes_answers: of the weak view it asks the teacher for logits alone, and by
            `teacher_logits`, so that a table of them can answer.
    """

    needs_strong_view = False
    folds_teacher = True
    takes_answers = False

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

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the recipe's weight decay is for a parameter; for all, by default."""
        return True

    @classmethod
    def check_strong_view(cls, present: bool) -> None:
        """Raise `UserError` if the method compares two views and the second is not ``present``."""
        if cls.needs_strong_view and not present:
            raise UserError(
                f"recipe.strong_view: found none, allowed is auto or randaugment: {cls.__name__} "
                "compares a weak and a strong view of each image"
            )

    def teach(self, images: Tensor, features: bool = False) -> Output:
        """The teacher's output for ``images``, without gradient."""
        with torch.no_grad():
            return self.teacher(images, features=features)

    def teacher_logits(self, batch: Batch) -> Tensor:
        """``(N, C)`` of ``batch.images``: those that the batch brings, or else a teacher pass."""
        known = batch.teacher_logits
        return self.teach(batch.images).logits if known is None else known

    def passes(self, batch: Batch, progress: Progress) -> Any:
        """Run the networks and every other module, but compute no loss.

        `forward` starts with it, and the benchmark takes it, with a backward pass from all that it
        returns, as the time that the method cannot avoid. A method that is not benchmarked may do
        without.

        Returns:
            The tensors that the losses compare, in any nesting of tuples, lists and dicts.

        Raises:
            UserError: the method does not tell its passes from its losses.
        """
        raise UserError(
            f"distiller: found {type(self).__name__}, which has no `passes`, allowed in the "
            "benchmark is a method that tells its network passes from its losses"
        )

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        raise NotImplementedError

    def scalars(self) -> dict[str, float]:
        """Values worth logging once an epoch, such as a learned temperature."""
        return {}

    def total(self, terms: Terms, progress: Progress | None = None) -> Total:
        """Σ scalar terms + Σ mean(weight · per-row term).

        Args:
            terms: of one batch.
            progress: where training stands, for a weighting that draws (``shuffled``); without it,
                such a weighting draws from torch's own generator.

        Raises:
            UserError: a term that is neither a scalar nor one value for each row; it is named.
        """
        # Terms that are weighted by the same logits share one weight, computed once.
        known: dict[tuple[int, ...], tuple[Entropies | None, Tensor]] = {}
        loss, distillation, unweighted = 0.0, None, None
        for name, term in terms.items():
            if term.dim() == 0:
                loss = loss + term
                continue
            source = terms.weight_source(name)
            key = tuple(map(id, source))
            if key not in known:
                known[key] = self._weigh(terms, source, term, progress)
            weight, (_, first) = known[key][1], next(iter(known.values()))
            # Broadcasting would silently make another weighting of a term of another shape.
            if term.shape != weight.shape or weight.shape != first.shape:
                raise UserError(
                    f"term {name!r}: found shape {tuple(term.shape)}, allowed is () for the whole "
                    f"batch or {tuple(first.shape)}, a value for each row"
                )
            weighted = weight * term
            loss = loss + terms.mean(weighted)
            weighted, term = weighted.detach(), term.detach()
            distillation = weighted if distillation is None else distillation + weighted
            unweighted = term if unweighted is None else unweighted + term
        if known:
            entropies, weight = next(iter(known.values()))
        else:  # the labels alone; records still tell how unsure the student is
            entropies, weight = self._entropies(terms.weight_source()), None
        return Total(loss, weight, distillation, unweighted, entropies)

    def spread(self, weight: Tensor, terms: Terms) -> Tensor:
        """What the rows' own weights ``(U,)`` become: themselves, or what a sample's rows share."""
        return weight

    def _weigh(
        self, terms: Terms, source: Source, term: Tensor, progress: Progress | None
    ) -> tuple[Entropies | None, Tensor]:
        """The entropies of each row and its weight."""
        entropies = self._entropies(source)
        weighting = self.weighting
        known = not isinstance(source, Entropies) and source[0] is not None
        if isinstance(weighting, Weighting) and type(weighting).__call__ is Weighting.__call__:
            if entropies is not None:
                if weighting.judges and known:
                    judged = weighting.judge(*source, terms.labels(source))
                    entropies = entropies._replace(judged=judged)
                draw = None if progress is None else progress.generator
                weight = self.spread(weighting.combine(entropies), terms)
                return entropies, weighting.deal(weight, draw)
            if self.weighting.kind == "uniform":
                return None, term.detach().new_ones(len(term))
        elif known:
            more = {"targets": terms.labels(source)} if takes_targets(weighting) else {}
            weight, rows = weighting(*source, **more).detach(), source[0].shape[:-1]
            if weight.shape != rows:
                raise UserError(
                    f"weighting: found {tuple(weight.shape)} weights from {self.weighting!r}, "
                    f"allowed is {tuple(rows)}, one for each row"
                )
            return entropies, self.spread(weight, terms)
        raise UserError(
            f"weighting: found {self.weighting!r} for a method whose terms tell no "
            "logits, allowed is uniform"
        )

    def _entropies(self, source: Source) -> Entropies | None:
        """At the weighting's own τ′, so that records show what the weight saw."""
        if isinstance(source, Entropies):
            return source
        if source[0] is None:
            return None
        reader = self.weighting if isinstance(self.weighting, Weighting) else Weighting("uniform")
        return reader.entropies(*source)
