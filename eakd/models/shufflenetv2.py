"""ShuffleNetV2 (Ma et al. 2018) at width 1, behind a 1×1 stem for small images.

Four stages: stem, layer1, layer2, layer3. PyTorch's default initialisation, as in the public zoo.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import conv1x1, depthwise3x3, relu, run_blocks, shuffle_channels


class DownUnit(nn.Module):
    """Halve the map along two branches and shuffle them together."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = depthwise3x3(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv1x1(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = depthwise3x3(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """``(feature, None)``: never the last unit of a stage."""
        left, _ = relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right, _ = relu(self.bn3(self.conv3(x)))
        right, _ = relu(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        return shuffle_channels(torch.cat((left, right), dim=1), 2), None


class ShuffleUnit(nn.Module):
    """Pass half of the channels on, transform the other half, and shuffle them together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = depthwise3x3(half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
        """``(feature, the map before ReLU and channel shuffle if wanted)``.

        The zoo's preactivations are not shuffled, so their channels are ordered differently from
        the feature's.
        """
        passed, out = x.chunk(2, dim=1)
        out, _ = relu(self.bn1(self.conv1(out)))
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        out, pre = relu(out, preactivation)
        if pre is not None:
            pre = torch.cat((passed, pre), dim=1)
        return shuffle_channels(torch.cat((passed, out), dim=1), 2), pre


class ShuffleNetV2(StagedModel):
    """ShuffleNetV2 with 116, 232 and 464 channels, and 1024 before the classifier."""

    num_stages = 4
    num_features = 1024

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, 24)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = self._group(24, 116, 3)
        self.layer2 = self._group(116, 232, 7)
        self.layer3 = self._group(232, 464, 3)
        self.conv2 = conv1x1(464, self.num_features)
        self.bn2 = nn.BatchNorm2d(self.num_features)
        self.linear = nn.Linear(self.num_features, num_classes)

    @staticmethod
    def _group(in_channels: int, channels: int, depth: int) -> nn.Sequential:
        units = (ShuffleUnit(channels) for _ in range(depth))
        return nn.Sequential(DownUnit(in_channels, channels), *units)

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return relu(self.bn1(self.conv1(x)))
        return run_blocks(getattr(self, f"layer{index}"), x, preactivation)

    def _last(self, x: Tensor) -> Tensor:
        return relu(self.bn2(self.conv2(x)))[0]

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(self._last(x), self.linear)

    def route_stage(self, index: int, x: Tensor) -> Tensor:
        x, _ = self.forward_stage(index, x)
        return self._last(x) if index == 3 else x

    def route_head(self, x: Tensor) -> Tensor:
        return classify(x, self.linear)[0]


def shufflenetv2(num_classes: int = 100) -> ShuffleNetV2:
    """ShuffleNetV2 1×: 1.36 M parameters at 100 classes."""
    return ShuffleNetV2(num_classes)
