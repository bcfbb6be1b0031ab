"""Data sets, one function each, and the pipeline that feeds them to a training loop."""

from eakd.data.base import Batch, ImageData
from eakd.data.cifar import cifar10, cifar100
from eakd.data.digits import digits
from eakd.data.folders import image_folder, tiny_imagenet
from eakd.data.normalization import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    CIFAR100_MEAN,
    CIFAR100_STD,
    DIGITS_MEAN,
    DIGITS_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    TINY_IMAGENET_MEAN,
    TINY_IMAGENET_STD,
)
from eakd.data.pipeline import Pipeline

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "DIGITS_MEAN",
    "DIGITS_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "TINY_IMAGENET_MEAN",
    "TINY_IMAGENET_STD",
    "Batch",
    "ImageData",
    "Pipeline",
    "cifar10",
    "cifar100",
    "digits",
    "image_folder",
    "tiny_imagenet",
]
