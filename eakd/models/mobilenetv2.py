"""MobileNetV2 (Sandler et al. 2018) in the two variants that distillation papers call by that name.

- `mobilenetv2`: half width, for CIFAR: 0.81 M parameters at 100 classes.
- `mobilenetv2_tiny`: full width, for Tiny-ImageNet: 2.50 M parameters at 200 classes.

They share no weights and not even layer names, so print the parameter count with the name. Five
stages each; features 1 to 3 are linear bottlenecks, without an activation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import conv1x1, conv3x3, depthwise3x3, init_classifier, init_convolutions


class InvertedResidual(nn.Module):
    """Widen by a 1×1, filter by a depthwise 3×3, narrow by a linear 1×1; shortcut if it fits."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            conv1x1(in_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            depthwise3x3(hidden, stride),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            conv1x1(hidden, channels),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """The linear bottleneck."""
        return x + self.conv(x) if self.residual else self.conv(x)


# Expansion, channels at full width, blocks, stride of the first block.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(StagedModel):
    """The CIFAR variant at half width: five halvings, so a 16 pixel image ends as one 1×1 map."""

    num_stages = 5
    num_features = 1280
    stage_input = "pre"
    stage_groups = ((), (0, 1), (2,), (3, 4), (5, 6))

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        in_channels = 16
        self.conv1 = nn.Sequential(
            conv3x3(3, in_channels, stride=2), nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList()
        for expansion, full_width, depth, stride in GROUPS:
            group = []
            for number in range(depth):
                first_stride = stride if number == 0 else 1
                group.append(
                    InvertedResidual(in_channels, full_width // 2, first_stride, expansion)
                )
                in_channels = full_width // 2
            self.blocks.append(nn.Sequential(*group))
        self.conv2 = nn.Sequential(
            conv1x1(in_channels, self.num_features),
            nn.BatchNorm2d(self.num_features),
            nn.ReLU(inplace=True),
        )
        linear = nn.Linear(self.num_features, num_classes)
        self.classifier = nn.Sequential(linear)  # zoo: classifier.0
        init_convolutions(self)
        init_classifier(linear)

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return self.conv1(x), None
        for group in self.stage_groups[index]:
            x = self.blocks[group](x)
        return x, None

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(self.conv2(x), self.classifier[0])

    def route_stage(self, index: int, x: Tensor) -> Tensor:
        x, _ = self.forward_stage(index, x)  # linear maps: nothing to activate in between
        if index == 4:
            conv, norm, _ = self.conv2
            x = norm(conv(x))
        return x

    def route_head(self, x: Tensor) -> Tensor:
        return classify(F.relu(x), self.classifier[0])[0]


def mobilenetv2(num_classes: int = 100) -> MobileNetV2:
    """MobileNetV2 at half width: 812,836 parameters at 100 classes."""
    return MobileNetV2(num_classes)


class TinyBlock(nn.Module):
    """An inverted residual with biases and ReLU6."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """The linear bottleneck."""
        return self.residual(x) + x if self.shortcut else self.residual(x)


class MobileNetV2Tiny(StagedModel):
    """The Tiny-ImageNet variant."""

    num_stages = 5
    num_features = 1280
    stage_input = "pre"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # A 1×1 convolution with padding: the border of the 66×66 map holds only biases.
        self.pre = nn.Sequential(
            nn.Conv2d(3, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)
        )
        self.stage1 = TinyBlock(32, 16, 1, expansion=1)
        self.stage2 = self._group(16, 24, 2, stride=2)
        self.stage3 = self._group(24, 32, 3, stride=2)
        self.stage4 = self._group(32, 64, 4, stride=2)
        self.stage5 = self._group(64, 96, 3, stride=1)
        self.stage6 = self._group(96, 160, 3, stride=1)
        self.stage7 = TinyBlock(160, 320, 1)
        self.conv1 = nn.Sequential(
            nn.Conv2d(320, self.num_features, 1),
            nn.BatchNorm2d(self.num_features),
            nn.ReLU6(inplace=True),
        )
        self.conv2 = nn.Conv2d(self.num_features, num_classes, 1)

    @staticmethod
    def _group(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
        first = TinyBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(TinyBlock(channels, channels, 1) for _ in range(1, depth)))

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return self.pre(x), None
        if index == 1:
            return self.stage2(self.stage1(x)), None
        if index == 2:
            return self.stage3(x), None
        if index == 3:
            return self.stage4(x), None
        return self.conv1(self.stage7(self.stage6(self.stage5(x)))), None

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(x, self.conv2)

    def route_stage(self, index: int, x: Tensor) -> Tensor:
        return self.forward_stage(index, x)[0]  # linear maps: nothing to activate in between

    def route_head(self, x: Tensor) -> Tensor:
        return self.head(x)[0]


def mobilenetv2_tiny(num_classes: int = 200) -> MobileNetV2Tiny:
    """MobileNetV2 as the public zoo trains it on Tiny-ImageNet.

    It differs from `mobilenetv2` in more than width: a padded 1×1 stem without stride, biases in
    every convolution, ReLU6, strides in groups 2, 3 and 4, a convolution as the classifier, and
    PyTorch's default initialisation. Its last feature is the 1280-channel map after the last 1×1
    convolution.
    """
    return MobileNetV2Tiny(num_classes)
