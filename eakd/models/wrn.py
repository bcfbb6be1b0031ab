"""WideResNets (Zagoruyko and Komodakis 2016): batch norm and ReLU come before each convolution.

Depth 6n + 4 means n blocks per group. Four stages: stem, block1, block2, block3. A feature is the
plain residual sum; its preactivation is that sum after the batch norm that the next block (or the
head) applies first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import conv1x1, conv3x3, init_convolutions, relu

# The published code computes the preactivations by calling the next batch norm a second time, in
# every training step and for every method. Two updates with momentum m move the running statistics
# as one with 1 - (1 - m)².
TWO_UPDATES = 1 - (1 - 0.1) ** 2


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each behind batch norm and ReLU, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        # Zoo name. Unlike the residual branch, an identity shortcut skips the first ReLU.
        self.convShortcut = (
            conv1x1(in_channels, channels, stride) if in_channels != channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        active, _ = relu(self.bn1(x))
        out, _ = relu(self.bn2(self.conv1(active)))
        out = self.conv2(out)
        out += x if self.convShortcut is None else self.convShortcut(active)
        return out


class WideResNet(StagedModel):
    """A WideResNet.

    Args:
        depth: 6n + 4.
        width: widening factor.
        num_classes: number of classes.
        published_bn_momentum: move the running statistics of the three batch norms behind the
            features as the published code does, with momentum 0.19 (see ``TWO_UPDATES``) rather
            than 0.1. Outputs in training are the same; evaluation differs slightly. FCFD's
            published networks use 0.1.
    """

    num_stages = 4
    stage_input = "pre"

    def __init__(
        self, depth: int, width: int, num_classes: int, published_bn_momentum: bool = True
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth: found {depth}, allowed is 6n + 4")
        self.conv1 = conv3x3(3, 16)
        self.block1 = self._group(16, 16 * width, blocks, stride=1)
        self.block2 = self._group(16 * width, 32 * width, blocks, stride=2)
        self.block3 = self._group(32 * width, 64 * width, blocks, stride=2)
        self.num_features = 64 * width
        self.bn1 = nn.BatchNorm2d(self.num_features)
        self.fc = nn.Linear(self.num_features, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)
        if published_bn_momentum:
            for index in (1, 2, 3):
                self._next_norm(index).momentum = TWO_UPDATES

    @staticmethod
    def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.ModuleDict:
        first = WideBlock(in_channels, channels, stride)
        rest = (WideBlock(channels, channels, 1) for _ in range(1, blocks))
        return nn.ModuleDict({"layer": nn.Sequential(first, *rest)})  # zoo: block1.layer.0.…

    def _next_norm(self, index: int) -> nn.BatchNorm2d:
        """The batch norm that the output of stage ``index`` meets first."""
        return self.bn1 if index == 3 else getattr(self, f"block{index + 1}")["layer"][0].bn1

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index == 0:
            return self.conv1(x), None
        x = getattr(self, f"block{index}")["layer"](x)
        return x, _normalise(self._next_norm(index), x) if preactivation else None

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(relu(self.bn1(x))[0], self.fc)

    def route_stage(self, index: int, x: Tensor) -> Tensor:
        x, _ = self.forward_stage(index, x)
        return self.bn1(x) if index == 3 else x

    def route_head(self, x: Tensor) -> Tensor:
        return classify(F.relu(x), self.fc)[0]


def _normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What ``norm`` returns, without moving its running statistics."""
    mean, var = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, norm.training, eps=norm.eps)


def wrn_16_1(num_classes: int = 100, published_bn_momentum: bool = True) -> WideResNet:
    """WRN-16-1."""
    return WideResNet(16, 1, num_classes, published_bn_momentum)


def wrn_16_2(num_classes: int = 100, published_bn_momentum: bool = True) -> WideResNet:
    """WRN-16-2."""
    return WideResNet(16, 2, num_classes, published_bn_momentum)


def wrn_28_4(num_classes: int = 100, published_bn_momentum: bool = True) -> WideResNet:
    """WRN-28-4."""
    return WideResNet(28, 4, num_classes, published_bn_momentum)


def wrn_40_1(num_classes: int = 100, published_bn_momentum: bool = True) -> WideResNet:
    """WRN-40-1."""
    return WideResNet(40, 1, num_classes, published_bn_momentum)


def wrn_40_2(num_classes: int = 100, published_bn_momentum: bool = True) -> WideResNet:
    """WRN-40-2."""
    return WideResNet(40, 2, num_classes, published_bn_momentum)
