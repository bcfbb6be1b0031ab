"""VGG with batch norm and one linear classifier, for small images (Simonyan and Zisserman 2015).

Five stages of 3×3 convolutions with max pools between them. The zoo pools before the fifth stage at
64 pixels but not at 32; here the map itself decides: it is pooled if larger than 4×4. That agrees
with the zoo at 32 and 64 pixels, and leaves 2×2 maps at 16.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eakd.models.base import StagedModel, classify
from eakd.models.layers import init_classifier, init_convolutions, relu

WIDTHS = (64, 128, 256, 512, 512)


class VGG(StagedModel):
    """A VGG.

    Args:
        depths: convolutions in each of the five stages.
        num_classes: number of classes.
    """

    num_stages = 5
    num_features = WIDTHS[-1]
    stage_input = "pre"

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        in_channels = 3
        for index, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True)):
            layers = []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(in_channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                in_channels = width
            # The last ReLU is applied by `forward_stage`, which may have to keep its input.
            setattr(self, f"block{index}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(self.num_features, num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if index in (1, 2, 3) or (index == 4 and min(x.shape[2:]) > 4):
            x = F.max_pool2d(x, 2)
        # As in the zoo, the first stage has no preactivation of its own.
        return relu(getattr(self, f"block{index}")(x), preactivation and index > 0)

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return classify(x, self.classifier)


def vgg8(num_classes: int = 100) -> VGG:
    """VGG-8."""
    return VGG((1, 1, 1, 1, 1), num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    """VGG-11."""
    return VGG((1, 1, 2, 2, 2), num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    """VGG-13."""
    return VGG((2, 2, 2, 2, 2), num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    """VGG-16."""
    return VGG((2, 2, 3, 3, 3), num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    """VGG-19."""
    return VGG((2, 2, 4, 4, 4), num_classes)
