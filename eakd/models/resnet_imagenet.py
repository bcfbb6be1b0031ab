"""ResNet-18 and ResNet-50: ImageNet's four groups behind a 3×3 stem that keeps small images large.

He et al. 2016, table 1, without its strided 7×7 stem and its max pool. The public zoo writes these
"ResNet18" and "ResNet50". Five stages: stem, layer1 … layer4.
"""

from __future__ import annotations

from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import (
    conv1x1,
    conv3x3,
    init_convolutions,
    projection,
    relu,
    run_blocks,
)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return projection(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
        """``(feature, the residual sum before the ReLU if wanted)``."""
        out, _ = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return relu(out, preactivation)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut; the stride is the 3×3's."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
        """``(feature, the residual sum before the ReLU if wanted)``."""
        out, _ = relu(self.bn1(self.conv1(x)))
        out, _ = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return relu(out, preactivation)


class ImageNetResNet(StagedModel):
    """ImageNet's ResNet behind a stem for small images.

    Args:
        block: the residual block's class.
        depths: blocks in each of the four groups.
        num_classes: number of classes.
    """

    num_stages = 5

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        in_channels = 64
        for group, depth in enumerate(depths):
            channels = 64 * 2**group
            layers = []
            for number in range(depth):
                stride = 2 if group > 0 and number == 0 else 1
                layers.append(block(in_channels, channels, stride))
                in_channels = channels * block.expansion
            setattr(self, f"layer{group + 1}", nn.Sequential(*layers))
        self.num_features = in_channels
        self.linear = nn.Linear(self.num_features, num_classes)
        init_convolutions(self)

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return relu(self.bn1(self.conv1(x)))
        return run_blocks(getattr(self, f"layer{index}"), x, preactivation)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(x, self.linear)


def resnet18(num_classes: int = 100) -> ImageNetResNet:
    """ResNet-18 with a 3×3 stem."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 100) -> ImageNetResNet:
    """ResNet-50 with a 3×3 stem."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3), num_classes)
