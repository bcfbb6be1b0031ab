"""The detectors of Table 5, and two tiny ones; each has a config of its name.

`frcnn_r101` and `frcnn_r50` are the paper's teachers, `frcnn_r18` and `frcnn_mobilenetv2` its
students, the tiny ones are for scenes of 128 pixels. All are built by `faster_rcnn`.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from eakd.detection.faster_rcnn import TwoStageDetector, faster_rcnn
from eakd.errors import UserError, check_number
from eakd.models.weights import load_weights


def with_settings_of(*inner: Callable) -> Callable[[Callable], Callable]:
    """Let a function's signature name what its ``**settings`` may be, for checks of configs."""

    def decorate(function: Callable) -> Callable:
        own = inspect.signature(function)
        known = {k: p for k, p in own.parameters.items() if p.kind is not p.VAR_KEYWORD}
        for each in inner:
            for key, parameter in inspect.signature(each).parameters.items():
                if parameter.default is not parameter.empty:
                    known.setdefault(key, parameter.replace(kind=parameter.KEYWORD_ONLY))
        ordered = sorted(known.values(), key=lambda parameter: parameter.kind)
        function.__signature__ = own.replace(parameters=ordered)
        return function

    return decorate


@with_settings_of(faster_rcnn)
def resnet(
    name: str,
    num_classes: int,
    backbone_weights: str | None = None,
    frozen_stages: int = 2,
    stride_in_1x1: bool = False,
    **settings: Any,
) -> TwoStageDetector:
    """A ResNet of torchvision's with frozen batch norms, P2 to P6 in 256 channels.

    Args:
        name: torchvision's.
        num_classes: without the background.
        backbone_weights: ``imagenet``: torchvision's, downloaded once; a file; ``None``: random.
        frozen_stages: of the stem and four stages, those that do not train.
        stride_in_1x1: a bottleneck strides in its first convolution, as in detectron2's networks,
            and not in its second.
        **settings: of `faster_rcnn`.
    """
    body = _classifier(name, backbone_weights)
    check_number("frozen_stages", frozen_stages, at_least=0, at_most=5, integer=True)
    stages = [[body.conv1, body.bn1], body.layer1, body.layer2, body.layer3, body.layer4]
    for stage in stages[:frozen_stages]:
        nn.ModuleList(stage).requires_grad_(False)
    if stride_in_1x1:
        for block in body.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    levels = {f"layer{k + 1}": str(k) for k in range(4)}
    width = body.fc.in_features
    channels = [width // 8, width // 4, width // 2, width]
    return faster_rcnn(BackboneWithFPN(body, levels, channels, 256), num_classes, **settings)


@with_settings_of(resnet)
def frcnn_r18(num_classes: int, **settings: Any) -> TwoStageDetector:
    """ResNet-18; see `resnet` and `faster_rcnn` for the settings."""
    return resnet("resnet18", num_classes, **settings)


@with_settings_of(resnet)
def frcnn_r50(num_classes: int, **settings: Any) -> TwoStageDetector:
    """ResNet-50; see `resnet` and `faster_rcnn` for the settings."""
    return resnet("resnet50", num_classes, **settings)


@with_settings_of(resnet)
def frcnn_r101(num_classes: int, **settings: Any) -> TwoStageDetector:
    """ResNet-101; see `resnet` and `faster_rcnn` for the settings."""
    return resnet("resnet101", num_classes, **settings)


@with_settings_of(faster_rcnn)
def frcnn_mobilenetv2(
    num_classes: int, backbone_weights: str | None = None, **settings: Any
) -> TwoStageDetector:
    """MobileNetV2 of full width with frozen batch norms, all of it trained.

    Args:
        num_classes: without the background.
        backbone_weights: as for `resnet`.
        **settings: of `faster_rcnn`.
    """
    body = _classifier("mobilenet_v2", backbone_weights).features[:-1]
    levels = {"3": "0", "6": "1", "13": "2", "17": "3"}  # the last block of each stride
    backbone = BackboneWithFPN(body, levels, [24, 32, 96, 320], 256)
    return faster_rcnn(backbone, num_classes, **settings)


def _classifier(name: str, weights: str | None) -> nn.Module:
    """A classifier of torchvision's with frozen batch norms."""
    published = None
    if weights == "imagenet":
        published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    try:
        body = torchvision.models.get_model(name, weights=published, norm_layer=FrozenBatchNorm2d)
    except (OSError, RuntimeError) as error:  # no network, or a damaged download
        reason = " ".join(str(error).split())
        raise UserError(
            f"backbone_weights: found no way to torchvision's {name} ({reason}), allowed is a file "
            "that was downloaded elsewhere, or null for random weights"
        ) from error
    if weights not in (None, "imagenet"):
        load_weights(body, weights)
    return body


@with_settings_of(faster_rcnn)
def frcnn_tiny(num_classes: int, width: int = 16, **settings: Any) -> TwoStageDetector:
    """For images of 128 pixels: three residual blocks with batch norms that train, P2 to P5.

    Args:
        num_classes: without the background.
        width: channels of the first block; the pyramid has twice, the head four times as many.
        **settings: of `faster_rcnn`.
    """
    check_number("width", width, at_least=1, integer=True)
    stem = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    blocks, channels = OrderedDict(stem=nn.Sequential(*stem)), [width, 2 * width, 4 * width]
    for k, (before, after) in enumerate(zip([width, *channels], channels, strict=False)):
        shortcut = nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after)
        blocks[f"layer{k + 1}"] = BasicBlock(before, after, 2, nn.Sequential(*shortcut))
    levels = {f"layer{k + 1}": str(k) for k in range(3)}
    backbone = BackboneWithFPN(nn.Sequential(blocks), levels, channels, 2 * width)
    given = {
        "anchor_sizes": (16, 32, 64, 128),
        "canonical_scale": 112,
        "head_features": 4 * width,
        "anchors_per_image": 128,
        "proposals": 100,
        "rois_per_image": 64,
    }
    return faster_rcnn(backbone, num_classes, **given | settings)


@with_settings_of(frcnn_tiny)
def frcnn_tiny_teacher(num_classes: int, width: int = 32, **settings: Any) -> TwoStageDetector:
    """`frcnn_tiny`, twice as wide."""
    return frcnn_tiny(num_classes, width, **settings)
