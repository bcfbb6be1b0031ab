"""EA-KD: Entropy-based Adaptive Knowledge Distillation.

The weighting for a training loop of your own::

    from eakd import ea_weight, entropy

and a network that ``eakd-export`` has written: ``eakd.load(FOLDER)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eakd.distillers.kd import kd_loss
    from eakd.hub.loading import load
    from eakd.weighting import Weighting, ea_weight, entropy

__version__ = "0.1.0"

__all__ = ["Weighting", "__version__", "ea_weight", "entropy", "kd_loss", "load"]

_HOME = {
    "Weighting": "eakd.weighting",
    "ea_weight": "eakd.weighting",
    "entropy": "eakd.weighting",
    "kd_loss": "eakd.distillers.kd",
    "load": "eakd.hub.loading",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import torch only when something needs it, so that ``--help`` answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
