"""Entropy, the reweighting factors of EA-KD (paper, Eqs. 1 and 8-13, Tables 1 and 8), and rivals.

Every function maps logits ``(..., C)`` to values ``(...)``: ``(N, C)`` for image samples,
``(N, L, C)`` for tokens, ``(R, C)`` for proposals. Entropies and weights are in nats, computed in
float32 at least, and never part of the gradient.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eakd.errors import UserError, check_choice, check_number
from eakd.factors import BASES, FACTORS, GAMMAS, KINDS, MATCHED, RESCALED, RULES, SHUFFLED
from eakd.seen import Seen, at_least_float32, probabilities

__all__ = ["FACTORS", "KINDS", "RULES", "Entropies", "Seen", "Weighting", "ea_weight", "entropy"]


def check_same_shape(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise `UserError` unless both are ``(..., C)`` of one shape: broadcasting hides mistakes."""
    shape = student_logits.shape
    if shape != teacher_logits.shape or not shape:
        raise UserError(
            f"student_logits, teacher_logits: found shapes {tuple(shape)} and "
            f"{tuple(teacher_logits.shape)}, allowed are equal shapes, the classes last"
        )


def check_temperature(
    temperature: float | Tensor, logits: Tensor, name: str = "temperature"
) -> float | Tensor:
    """Raise `UserError` unless ``temperature`` can divide ``logits`` ``(..., C)``.

    A number must be positive. Of a tensor only type and shape are looked at, because its value may
    still be computed on the device: one temperature, or one for each row (``(K, 1, 1)``).

    Returns:
        The temperature; Python's own number where it is a number.
    """
    if not isinstance(temperature, Tensor):
        return check_number(name, temperature, above=0)
    shape = tuple(temperature.shape)
    pairs = zip(reversed(shape), reversed(logits.shape), strict=False)
    if (
        temperature.is_complex()
        or temperature.dtype == torch.bool
        or shape[-1:] not in ((), (1,))
        or any(a != b and a != 1 and b != 1 for a, b in pairs)
    ):
        raise UserError(
            f"{name}: found a tensor {shape} of {temperature.dtype} for logits "
            f"{tuple(logits.shape)}, allowed are real numbers of shape () or (..., 1) that "
            "broadcasts against the logits"
        )
    return temperature


@torch.no_grad()
def entropy(logits: Tensor, temperature: float | Tensor = 3.0) -> Tensor:
    """Entropy of the softened prediction, ``H = -Σ_c p_c log p_c`` with ``p = softmax(z / τ′)``.

    Source: Eqs. 1 and 8.

    Args:
        logits: ``(..., C)``; half-precision input is computed in float32, float64 stays float64.
            A class masked with −inf has no probability.
        temperature: τ′ > 0.

    Returns:
        ``(...)`` in nats, within ``[0, log C]`` for any finite logits, without gradient.

    Raises:
        UserError: a temperature that is not positive.
    """
    temperature = check_temperature(temperature, logits)
    # entr(0) = 0, so one-hot needs no epsilon.
    h = torch.special.entr(probabilities(logits, temperature)).sum(dim=-1)
    return h.clamp(max=math.log(logits.shape[-1]))


@torch.no_grad()
def ea_weight(
    student_logits: Tensor,
    teacher_logits: Tensor,
    entropy_temperature: float = 3.0,
    max_entropy: float | None = None,
) -> Tensor:
    """EA-KD's weight of each sample, ``w = ½ (H_T + H_T · H_S / H_max)``.

    Multiply it into a distillation loss before the mean over samples::

        loss = (ea_weight(student_logits, teacher_logits) * kd_per_sample).mean()

    Source: Eqs. 9-12. The base term ``H_T`` is not divided by the bound, as in the released code.

    Args:
        student_logits, teacher_logits: ``(..., C)`` of the same shape.
        entropy_temperature: τ′ of Eq. 8 for both entropies.
        max_entropy: the bound ``H_max`` in nats. Default: ``log C``, as in the paper. The authors'
            released KD and DKD code uses 100 on CIFAR-100.

    Returns:
        ``(...)`` in ``[0, log C]`` with the default bound, without gradient.

    Raises:
        UserError: logits whose shapes differ, a temperature or bound that is not positive.
    """
    return Weighting("ea", entropy_temperature, max_entropy)(student_logits, teacher_logits)


class Entropies(NamedTuple):
    """What a weight is made of, for rows of one shape ``(...)``.

    Attributes:
        teacher: in nats, or ``None`` without a teacher.
        student: in nats.
        bound: the largest value either can have, ``log C`` of the ``C`` classes they are over,
            masked ones included.
        judged: what a rule makes of the predictions, or ``None`` for a weighting by entropies.
    """

    teacher: Tensor | None
    student: Tensor
    bound: float
    judged: Tensor | None = None


class Weighting:
    """A named weighting: ``(student_logits, teacher_logits) -> weight``.

    ========================  ==========================  ==================================
    kind                      weight                      source
    ========================  ==========================  ==================================
    ``uniform``               1                           the plain method
    ``teacher``               H_T                         Eq. 9 (base), Tables 1 and 8
    ``student``               H_S                         Table 1
    ``interaction``           H_T · H_S / H_max           Eq. 10, Table 8
    ``ea``                    (base + interaction) / 2    Eqs. 11-12
    ``inverted_teacher``      H_max - H_T                 Table 1
    ``inverted_student``      H_max - H_S                 Table 1
    ``matched``               batch mean of ``ea``        control: same scale, no selection
    ``shuffled``              ``ea`` of another sample    control: same scale and spread, at random
    ``confidence``            max p_T                     after Furlanello et al., 2018
    ``inverted_confidence``   1 - max p_T
    ``true_class``            p_T of the label            after Zhang et al., 2022
    ``margin``                1st - 2nd largest p_T       of active learning
    ``inverted_margin``       1 - margin
    ``focal``                 (1 - p_S of the label)^γ    after Lin et al., 2017
    ``power_sum``             Σ p_T^γ                     Zheng & Yang, 2024
    ``KIND_rescaled``         KIND · mean ea / mean KIND  control: same selection, EA's scale
    ========================  ==========================  ==================================

    The formulas are the tables of `eakd.factors`; ``docs/weightings.md`` says more of the rivals.
    A subclass may replace `combine`, to weigh by entropies in another way, or ``__call__``, to
    weigh by logits.

    ``shuffled`` deals the weights out by a random permutation of the rows that are weighed
    together: those of a batch, of a micro-batch, or of one process's part of a batch.

    Args:
        kind: a name from the table.
        entropy_temperature: τ′ > 0 of Eq. 8.
        max_entropy: bound ``H_max`` in nats, ``None`` for ``log C``. Below ``log C`` weights can
            leave their range (a warning says so).
        batch_mean: mean of ``matched`` and ``KIND_rescaled``, a scalar. Where several processes
            share a batch, it must be one over all of them.
        temperature: τ > 0 of the predictions that a rule looks at (the entropies have τ′). Default:
            1, as in the rules' sources.
        gamma: exponent γ > 0 of ``focal`` and ``power_sum``. Default: that of `eakd.factors`.

    Raises:
        UserError: unknown kind, non-positive temperature, bound or exponent; on call, logits whose
            shapes differ, or no labels for a rule that looks at them.
    """

    def __init__(
        self,
        kind: str = "ea",
        entropy_temperature: float = 3.0,
        max_entropy: float | None = None,
        batch_mean: Callable[[Tensor], Tensor] = torch.mean,
        temperature: float = 1.0,
        gamma: float | None = None,
    ):
        check_choice("kind", kind, (*FACTORS, *RULES, *BASES))
        if max_entropy is not None:
            max_entropy = check_number("max_entropy", max_entropy, above=0)
        self.kind = kind
        self.entropy_temperature = check_number("entropy_temperature", entropy_temperature, above=0)
        self.max_entropy = max_entropy
        self.batch_mean = batch_mean
        self.temperature = check_number("temperature", temperature, above=0)
        base = BASES.get(kind, kind)
        if gamma is not None and base not in GAMMAS:
            raise UserError(
                f"gamma: found {gamma!r} for {kind}, allowed is an exponent of {', '.join(GAMMAS)}"
            )
        gamma = GAMMAS.get(base) if gamma is None else check_number("gamma", gamma, above=0)
        self.gamma, self._rule = gamma, RULES.get(base)
        self._warned = False

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        targets: Tensor | None = None,
    ) -> Tensor:
        entropies = self.entropies(student_logits, teacher_logits)
        judged = self.judge(student_logits, teacher_logits, targets)
        if judged is not None:
            entropies = entropies._replace(judged=judged)
        return self.deal(self.combine(entropies))

    @property
    def judges(self) -> bool:
        """Whether a rule looks at the predictions: entropies alone are not enough."""
        return self._rule is not None

    def judge(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        targets: Tensor | None = None,
    ) -> Tensor | None:
        """What the kind's rule makes of the predictions, ``(..., C) -> (...)``.

        Args:
            targets: ``(...)`` labels, for a rule that looks at them. A row without one (−100) gets
                no weight: nothing can be said of it.

        Returns:
            ``None`` for a kind that is made of entropies.

        Raises:
            UserError: the rule needs labels or a teacher, and there are none.
        """
        if self._rule is None:
            return None
        if student_logits.shape[-1] == 1:  # nothing to tell apart, as for entropies
            return torch.zeros_like(at_least_float32(student_logits)[..., 0])
        seen = Seen(student_logits, teacher_logits, targets, self.temperature, self.gamma)
        try:
            with torch.no_grad():
                weight = self._rule(seen)
        except UserError as error:
            raise UserError(f"weighting.kind={self.kind}: {error}") from error
        return weight if seen.unlabelled is None else weight.masked_fill(seen.unlabelled, 0.0)

    def entropies(self, student_logits: Tensor, teacher_logits: Tensor | None) -> Entropies:
        """Both entropies at this weighting's τ′, ``(..., C) -> (...)``.

        Raises:
            UserError: logits whose shapes differ.
        """
        bound = math.log(student_logits.shape[-1])
        student = entropy(student_logits, self.entropy_temperature)
        if teacher_logits is None:
            return Entropies(None, student, bound)
        check_same_shape(student_logits, teacher_logits)
        return Entropies(entropy(teacher_logits, self.entropy_temperature), student, bound)

    def combine(self, entropies: Entropies) -> Tensor:
        """What the kind's formula makes of known entropies, ``(...)``.

        Raises:
            UserError: a kind that needs the teacher's entropy, or the predictions, and there are
                none.
        """
        self._check_bound(entropies.bound)
        with torch.no_grad():  # as a decorator, it breaks the graph of a compiled `ea_weight`
            weight = self._apply(BASES.get(self.kind, self.kind), entropies)
            if self.kind not in RESCALED:
                return weight
            mean, target = map(self.batch_mean, (weight, self._apply("ea", entropies)))
            # Where a rule finds nothing in a whole batch, every sample gets EA's mean.
            return torch.where(mean > 0, weight / mean, 1.0) * target

    def _apply(self, base: str, entropies: Entropies) -> Tensor:
        """The factor or rule ``base`` at its own scale; see `combine`."""
        teacher, student, bound, judged = entropies
        if base in RULES:
            if judged is None:
                raise UserError(
                    f"weighting.kind: found {self.kind!r} for a method that tells no logits, "
                    "allowed is a weighting by entropies"
                )
            return judged
        factor, limit = FACTORS[base], self.max_entropy or bound
        if teacher is not None:
            if bound == 0 and base != "uniform":  # one class: no 0 / 0
                return torch.zeros_like(student)
            return factor(teacher, student, limit)
        # A factor that needs none works without: try, rather than list the names.
        with contextlib.suppress(TypeError):
            weight = factor(None, student, limit)
            if weight is not None:
                return weight
        raise UserError(
            f"weighting.kind: found {self.kind!r} for a method without a teacher, allowed is "
            "what needs no teacher's entropy: uniform, student or inverted_student"
        )

    def deal(
        self, weight: Tensor, generator: Callable[[], torch.Generator] | None = None
    ) -> Tensor:
        """Give each row of a batch its weight: its own, or what a control deals to it.

        Args:
            weight: from `combine`.
            generator: makes a CPU generator of what is drawn, such as `Progress.generator`;
                torch's own by default.
        """
        if self.kind in MATCHED:
            return self.batch_mean(weight).expand_as(weight)
        if self.kind in SHUFFLED:
            order = torch.randperm(weight.numel(), generator=generator and generator())
            # No wait: what is copied from ordinary memory is read before the call returns.
            order = order.to(weight.device, non_blocking=True)
            return weight.flatten()[order].view_as(weight)
        return weight

    def _check_bound(self, bound: float) -> None:
        if self.max_entropy is None or self._warned or torch.compiler.is_compiling():
            return
        if self.max_entropy < bound * (1 - 1e-6):  # a rounded log C is no reason
            self._warned = True
            warnings.warn(
                f"max_entropy: found {self.max_entropy:g}, allowed is log C = {bound:.6g} or more "
                "for weights that stay in their range: entropies can be larger",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        bound = "log C" if self.max_entropy is None else f"{self.max_entropy:g}"
        return f"Weighting({self.kind}, τ′={self.entropy_temperature:g}, H_max={bound})"


class WeightFunction(ABC):
    """What ``weighting=`` may name: a `Weighting`, or any class whose objects are called alike.

    One with an argument ``targets`` is also given the labels ``(...)``, or ``None``.
    """

    @abstractmethod
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The weight ``(...)`` of each row of logits ``(..., C)``."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        calls = (each.__dict__["__call__"] for each in other.__mro__ if "__call__" in each.__dict__)
        call, words = next(calls, None), ("self", "student_logits", "teacher_logits")
        try:
            labels = {"targets": "targets"} if takes_targets(call) else {}
            inspect.signature(call).bind(*words, **labels)
        except TypeError:  # no such method, or one that is called in another way
            return False
        return True


def takes_targets(function: Callable[..., Tensor]) -> bool:
    """Whether a weighting looks at labels: it has an argument ``targets``."""
    try:
        return "targets" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # no function, or none of Python's
        return False
