"""Training: the loop, its schedule, its checkpoints and its records."""

from eakd.training.device import Compute
from eakd.training.evaluation import evaluate
from eakd.training.loop import fit
from eakd.training.record import RunRecord
from eakd.training.schedule import Recipe
from eakd.training.tracking import NoTracking, WandbTracking

__all__ = [
    "Compute",
    "NoTracking",
    "Recipe",
    "RunRecord",
    "WandbTracking",
    "evaluate",
    "fit",
]
