"""Training: the loop, its schedule, its checkpoints and its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eakd.training.device import Compute
    from eakd.training.loop import fit
    from eakd.training.record import RunRecord
    from eakd.training.recording import Recording
    from eakd.training.schedule import Recipe
    from eakd.training.task import Built, Data, Task
    from eakd.training.tensorboard import TensorBoardTracking
    from eakd.training.tracking import NoTracking, WandbTracking

_HOME = {
    "Built": "eakd.training.task",
    "Compute": "eakd.training.device",
    "Data": "eakd.training.task",
    "NoTracking": "eakd.training.tracking",
    "Recipe": "eakd.training.schedule",
    "Recording": "eakd.training.recording",
    "RunRecord": "eakd.training.record",
    "Task": "eakd.training.task",
    "TensorBoardTracking": "eakd.training.tensorboard",
    "WandbTracking": "eakd.training.tracking",
    "evaluate": "eakd.classification.evaluation",  # where it was before
    "fit": "eakd.training.loop",
}

__all__ = [
    "Built",
    "Compute",
    "Data",
    "NoTracking",
    "Recipe",
    "Recording",
    "RunRecord",
    "Task",
    "TensorBoardTracking",
    "WandbTracking",
    "evaluate",
    "fit",
]


def __getattr__(name: str) -> Any:
    """Import torch only when something needs it: planning and reports do not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
