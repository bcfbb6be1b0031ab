"""Data sets, one function each, and the pipeline that feeds them to a training loop."""

from eakd.data.base import Batch, ImageData
from eakd.data.digits import digits
from eakd.data.pipeline import Pipeline

__all__ = ["Batch", "ImageData", "Pipeline", "digits"]
