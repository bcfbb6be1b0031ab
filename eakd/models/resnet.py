"""ResNets for small images: three groups of basic blocks (He et al. 2016, section 4.2).

Depth 6n + 2 means n blocks per group. Four stages: stem, layer1, layer2, layer3.
"""

from __future__ import annotations

from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import conv3x3, init_convolutions, projection, relu, run_blocks


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or in_channels != channels
        self.downsample = projection(in_channels, channels, stride) if changes else nn.Identity()

    def forward(self, x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
        """``(feature, the residual sum before the ReLU if wanted)``."""
        out, _ = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return relu(out, preactivation)


class ResNet(StagedModel):
    """A CIFAR-style ResNet.

    Args:
        depth: 6n + 2.
        widths: channels of the stem and of the three groups.
        num_classes: number of classes.
    """

    num_stages = 4

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth: found {depth}, allowed is 6n + 2")
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._group(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._group(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._group(widths[2], widths[3], blocks, stride=2)
        self.num_features = widths[3]
        self.fc = nn.Linear(self.num_features, num_classes)
        init_convolutions(self)

    @staticmethod
    def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(1, blocks)))

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return relu(self.bn1(self.conv1(x)))
        return run_blocks(getattr(self, f"layer{index}"), x, preactivation)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(x, self.fc)


NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


def resnet8(num_classes: int = 100) -> ResNet:
    """ResNet-8."""
    return ResNet(8, NARROW, num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    """ResNet-14."""
    return ResNet(14, NARROW, num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    """ResNet-20."""
    return ResNet(20, NARROW, num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    """ResNet-32."""
    return ResNet(32, NARROW, num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    """ResNet-44."""
    return ResNet(44, NARROW, num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    """ResNet-56."""
    return ResNet(56, NARROW, num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    """ResNet-110."""
    return ResNet(110, NARROW, num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    """ResNet8×4: ResNet-8 with groups four times as wide and a stem twice as wide."""
    return ResNet(8, WIDE, num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    """ResNet32×4: ResNet-32 with groups four times as wide and a stem twice as wide."""
    return ResNet(32, WIDE, num_classes)
