"""Object detection: two-stage detectors, and distillation on the regions that they look at."""

from eakd.detection.boxes import BoxBatch, BoxData, Boxes
from eakd.detection.build import evaluate_checkpoint
from eakd.detection.coco import coco
from eakd.detection.pipeline import BoxPipeline
from eakd.detection.scenes import scenes
from eakd.detection.task import Detection

__all__ = [
    "BoxBatch",
    "BoxData",
    "BoxPipeline",
    "Boxes",
    "Detection",
    "coco",
    "evaluate_checkpoint",
    "scenes",
]
