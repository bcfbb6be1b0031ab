"""Networks for small images in one contract: `eakd.models.base`. One builder per architecture."""

from eakd.models.base import Output, StagedModel
from eakd.models.mobilenetv2 import mobilenetv2, mobilenetv2_tiny
from eakd.models.resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from eakd.models.resnet_imagenet import resnet18, resnet50
from eakd.models.shufflenetv1 import shufflenetv1
from eakd.models.shufflenetv2 import shufflenetv2
from eakd.models.timm_models import timm_model
from eakd.models.vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from eakd.models.wrn import wrn_16_1, wrn_16_2, wrn_28_4, wrn_40_1, wrn_40_2

__all__ = [
    "Output",
    "StagedModel",
    "mobilenetv2",
    "mobilenetv2_tiny",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "shufflenetv1",
    "shufflenetv2",
    "timm_model",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_28_4",
    "wrn_40_1",
    "wrn_40_2",
]
