"""Image classification: the first domain. Its data sets and methods are in rooms of their own."""

from eakd.classification.build import evaluate_checkpoint
from eakd.classification.evaluation import evaluate
from eakd.classification.task import Classification

__all__ = ["Classification", "evaluate", "evaluate_checkpoint"]
