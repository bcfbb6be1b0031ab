"""ShuffleNetV1 (Zhang et al. 2018), three groups, behind a 1×1 stem for small images.

Four stages: stem, layer1, layer2, layer3. PyTorch's default initialisation, as in the public zoo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import conv1x1, depthwise3x3, relu, run_blocks, shuffle_channels

GROUPS = 3
STEM = 24


class ShuffleUnit(nn.Module):
    """Grouped 1×1, channel shuffle, depthwise 3×3, grouped 1×1, beside a shortcut.

    At stride 2 the shortcut is an average pool, and is concatenated instead of added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        if stride == 2:
            channels -= in_channels  # the pooled shortcut brings the rest
        hidden = channels // 4
        # The stem's few channels are not grouped.
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = conv1x1(in_channels, hidden, groups=self.groups)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = depthwise3x3(hidden, stride)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, channels, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
        """``(feature, the map before the ReLU if wanted)``."""
        out, _ = relu(self.bn1(self.conv1(x)))
        if self.groups > 1:
            out = shuffle_channels(out, self.groups)
        out, _ = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            out = torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), dim=1)
        else:
            out += x
        return relu(out, preactivation)


class ShuffleNetV1(StagedModel):
    """ShuffleNetV1 with 240, 480 and 960 channels."""

    num_stages = 4
    num_features = 960
    stage_input = "pre"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = self._group(STEM, 240, 4)
        self.layer2 = self._group(240, 480, 8)
        self.layer3 = self._group(480, self.num_features, 4)
        self.linear = nn.Linear(self.num_features, num_classes)

    @staticmethod
    def _group(in_channels: int, channels: int, depth: int) -> nn.Sequential:
        first = ShuffleUnit(in_channels, channels, 2)
        return nn.Sequential(first, *(ShuffleUnit(channels, channels, 1) for _ in range(1, depth)))

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return relu(self.bn1(self.conv1(x)))
        return run_blocks(getattr(self, f"layer{index}"), x, preactivation)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(x, self.linear)


def shufflenetv1(num_classes: int = 100) -> ShuffleNetV1:
    """ShuffleNetV1, g = 3: 0.95 M parameters at 100 classes."""
    return ShuffleNetV1(num_classes)
