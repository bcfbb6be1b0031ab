"""EA-KD for users of timm's training script: the same loss, their loop."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers import DKD, KD
from eakd.distillers.base import Distiller, Progress
from eakd.errors import UserError, nearest
from eakd.models.base import Output
from eakd.weighting import WeightFunction, Weighting

log = logging.getLogger(__name__)

NEEDED = "1.0.27"  # the first version whose tasks are what `EAKDTask` builds on

try:
    from timm.task import LogitDistillationTask
except ImportError as error:
    import timm

    raise UserError(
        f"timm: found version {timm.__version__} without timm.task, allowed is {NEEDED} or later: "
        f"pip install 'timm>={NEEDED}'"
    ) from error

METHODS: dict[str, tuple[type[Distiller], dict[str, Any]]] = {
    "kd": (KD, {}),
    "kd_ls": (KD, {"standardize": True}),
    "dkd": (DKD, {}),
    "dkd_ls": (DKD, {"standardize": True}),
}
# timm has settings of its own for these.
TIMMS = {
    "temperature": "temperature (--kd-temperature)",
    "ce_weight": "task_loss_weight (--task-loss-weight)",
    "kd_weight": "distill_loss_weight (--distill-loss-weight)",
}


class Asked(nn.Module):
    """Stands for a student that timm's task has run: the batch's images are its logits."""

    def forward(self, logits: Tensor, features: bool = True) -> Output:
        return Output(logits, [], [], logits)


class Untold(Progress):
    """Where training stands, as long as nobody has said which epoch it is."""

    @property
    def epoch(self) -> int:  # type: ignore[override]
        raise UserError(
            "epoch: found none, which this method needs: set task.epoch to 1, 2, … where an epoch "
            "begins"
        )


class EAKDTask(LogitDistillationTask):
    """timm's logit distillation with a method and a weighting of ours.

    Only the distillation loss is replaced. timm's criterion, with its smoothing and mixing, stands
    for the method's cross-entropy; teacher, normalisation, weights of the two losses, compilation,
    processes and checkpoints are timm's. The result of a step also has ``weight``: ``(N,)``,
    without gradient.

    Args:
        student_model, teacher_model: as timm takes them: the teacher may be a model's name.
        method: ``kd``, ``kd_ls``, ``dkd``, ``dkd_ls``, or a `Distiller` of your own that compares
            logits of one view and trains nothing but the student.
        weighting: a kind of `eakd.Weighting`, or an object that is called as one.
        settings: further arguments of the method, such as ``{"beta": 2.0}``.
        temperature: τ > 0 of the distillation loss.
        **arguments: of ``LogitDistillationTask``: ``criterion``, ``task_loss_weight``, ….

    Attributes:
        epoch: counted from 1, for methods that ramp up (DKD); set it where an epoch begins.

    Raises:
        UserError: an unknown method or weighting, a wrong setting, or a method that cannot work
            here; in a step of DKD, targets that are no labels, or an epoch that nobody has set.
    """

    epoch: int | None = None

    def __init__(
        self,
        student_model: nn.Module,
        teacher_model: str | nn.Module,
        *,
        method: str | type[Distiller] = "kd",
        weighting: str | WeightFunction = "ea",
        settings: Mapping[str, Any] | None = None,
        temperature: float = 4.0,
        **arguments: Any,
    ):
        # First: a wrong value should not wait for the teacher's download.
        built = build_method(method, weighting, {**(settings or {})}, temperature)
        super().__init__(student_model, teacher_model, temperature=temperature, **arguments)
        self.method = built
        self._steps = 0
        if self.verbose:
            log.info("EAKDTask: %s, %r", type(built).__name__, built.weighting)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses of one batch.

        Args:
            input: ``(N, C, H, W)``, in the student's normalisation.
            target: labels ``(N,)``, or whatever else the criterion and the method take.

        Returns:
            ``loss`` to differentiate, its parts ``task_loss`` and ``kd_loss``, ``output`` (the
            student's logits) and ``weight``.
        """
        logits = self.trainable_module(input)
        task_loss = self.criterion(logits, target)
        with torch.no_grad():
            images = self.teacher.normalize_input(input, self.student_mean, self.student_std)
            teacher_logits = self.teacher(images)
        progress = (Progress if self.epoch else Untold)(0, self.epoch or 0, self._steps)
        self._steps += 1
        index = torch.empty(0, dtype=torch.int64)  # timm's loaders do not tell it
        terms = self.method(Batch(logits, target, index, None, teacher_logits), progress)
        terms.pop("ce", None)
        total = self.method.total(terms)
        return {
            "loss": self.task_loss_weight * task_loss + self.distill_loss_weight * total.loss,
            "output": logits,
            "task_loss": task_loss,
            "kd_loss": total.loss,
            "weight": total.weight,
        }


def build_method(
    method: str | type[Distiller],
    weighting: str | WeightFunction,
    settings: dict[str, Any],
    temperature: float,
) -> Distiller:
    """The method around logits that are known already.

    Raises:
        UserError: see `EAKDTask`.
    """
    if isinstance(method, str) and method not in METHODS:
        raise UserError(f"method: found {method!r}, allowed {nearest(method, METHODS)}")
    kind, given = METHODS[method] if isinstance(method, str) else (method, {})
    if isinstance(weighting, str):
        try:
            weighting = Weighting(weighting)
        except UserError as error:
            raise UserError(f"weighting.{error}") from error
    parameters = inspect.signature(kind).parameters
    for name in settings:
        if name in TIMMS:
            raise UserError(f"settings.{name}: found a setting of timm's, allowed is {TIMMS[name]}")
        if name not in parameters or name in ("student", "teacher", "weighting"):
            known = [k for k in parameters if k not in (*TIMMS, "student", "teacher", "weighting")]
            raise UserError(
                f"settings.{name}: found a key that {kind.__name__} does not take, allowed "
                f"{nearest(name, known)}"
            )
    own = {"temperature": temperature, "kd_weight": 1.0}
    own = {name: value for name, value in own.items() if name in parameters}
    built = kind(Asked(), None, weighting, **given, **own, **settings)
    if not built.takes_answers or built.needs_strong_view or any(True for _ in built.parameters()):
        raise UserError(
            f"method: found {kind.__name__}, allowed in timm's loop is one that compares logits of "
            f"one view and trains the student alone, such as {', '.join(METHODS)}"
        )
    return built
