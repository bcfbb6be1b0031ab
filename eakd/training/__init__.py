"""Training: the loop, its schedule, its checkpoints and its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eakd.training.device import Compute
    from eakd.training.evaluation import evaluate
    from eakd.training.loop import fit
    from eakd.training.record import RunRecord
    from eakd.training.schedule import Recipe
    from eakd.training.tracking import NoTracking, WandbTracking

_HOME = {
    "Compute": "device",
    "NoTracking": "tracking",
    "Recipe": "schedule",
    "RunRecord": "record",
    "WandbTracking": "tracking",
    "evaluate": "evaluation",
    "fit": "loop",
}

__all__ = ["Compute", "NoTracking", "Recipe", "RunRecord", "WandbTracking", "evaluate", "fit"]


def __getattr__(name: str) -> Any:
    """Import torch only when something needs it: planning and reports do not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
