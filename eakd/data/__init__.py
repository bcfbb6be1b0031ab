"""Data sets, one function each, and the pipeline that feeds them to a training loop."""

from eakd.data.base import Batch, ImageData
from eakd.data.cifar import cifar10, cifar100
from eakd.data.digits import digits
from eakd.data.folders import image_folder, tiny_imagenet
from eakd.data.pipeline import Pipeline

__all__ = [
    "Batch",
    "ImageData",
    "Pipeline",
    "cifar10",
    "cifar100",
    "digits",
    "image_folder",
    "tiny_imagenet",
]
