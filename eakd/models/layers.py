"""Small pieces that several families share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution without bias that keeps the map size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """1×1 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)


def depthwise3x3(channels: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution without bias that looks at each channel alone."""
    return nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a residual block whose shape changes."""
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def relu(x: Tensor, preactivation: bool = False) -> tuple[Tensor, Tensor | None]:
    """``(relu(x), x)``, or in place and ``(relu(x), None)`` if nobody wants ``x`` itself."""
    return (F.relu(x), x) if preactivation else (F.relu(x, inplace=True), None)


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, preactivation: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Run residual blocks; only the last one is asked for its preactivation."""
    *first, last = blocks
    for block in first:
        x, _ = block(x)
    return last(x, preactivation)


def init_convolutions(model: nn.Module) -> None:
    """He et al.'s normal initialisation over the fan-out, and zero biases, as in the public zoo."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(classifier: nn.Linear) -> None:
    """The zoo's VGG and MobileNetV2: weights from N(0, 0.01²), zero bias."""
    nn.init.normal_(classifier.weight, 0, 0.01)
    nn.init.zeros_(classifier.bias)


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Channel ``i`` of group ``g`` moves to ``i * groups + g``; keeps the memory format.

    The textbook reshape of a channels-last map would silently return the other format, and every
    later convolution would convert it back.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).unflatten(-1, (groups, -1))
        return x.transpose(-1, -2).flatten(-2).permute(0, 3, 1, 2)
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
