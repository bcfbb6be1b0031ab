"""EA-KD: Entropy-based Adaptive Knowledge Distillation.

The weighting for a training loop of your own::

    from eakd import Weighting, kd_loss

    loss = (Weighting("ea")(student_logits, teacher_logits) * kd_loss(…)).mean()

The losses of all logit methods are functions of logits that return ``(N,)``: `kd_loss`, `dkd_loss`,
`mld_losses`, with `standardize` before them, or `curriculum_temperature` as their temperature.

A network that ``eakd-export`` has written: ``eakd.load(FOLDER)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eakd.distillers.ctkd import cosine_lambda, curriculum_temperature
    from eakd.distillers.dkd import dkd_loss, non_target_class_loss, target_class_loss
    from eakd.distillers.kd import kd_loss
    from eakd.distillers.mld import mld_losses
    from eakd.distillers.standardization import standardize
    from eakd.hub.loading import load
    from eakd.topk import accuracy
    from eakd.weighting import Weighting, ea_weight, entropy

__version__ = "0.1.0"

_HOME = {
    "Weighting": "eakd.weighting",
    "accuracy": "eakd.topk",
    "cosine_lambda": "eakd.distillers.ctkd",
    "curriculum_temperature": "eakd.distillers.ctkd",
    "dkd_loss": "eakd.distillers.dkd",
    "ea_weight": "eakd.weighting",
    "entropy": "eakd.weighting",
    "kd_loss": "eakd.distillers.kd",
    "load": "eakd.hub.loading",
    "mld_losses": "eakd.distillers.mld",
    "non_target_class_loss": "eakd.distillers.dkd",
    "standardize": "eakd.distillers.standardization",
    "target_class_loss": "eakd.distillers.dkd",
}

__all__ = [
    "Weighting",
    "__version__",
    "accuracy",
    "cosine_lambda",
    "curriculum_temperature",
    "dkd_loss",
    "ea_weight",
    "entropy",
    "kd_loss",
    "load",
    "mld_losses",
    "non_target_class_loss",
    "standardize",
    "target_class_loss",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when something needs it, so that ``--help`` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
