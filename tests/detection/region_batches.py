"""Small batches for detectors: grey noise with bright rectangles, whose colour is their class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from eakd.detection.detectors import frcnn_tiny, frcnn_tiny_teacher

CLASSES = 3


class Pictures(NamedTuple):
    """What the methods ask of a batch."""

    images: Tensor
    sizes: list[tuple[int, int]]
    targets: list[dict[str, Tensor]]
    index: Tensor
    start: int = 0


def pictures(seed: int = 0, objects: tuple[int, ...] = (2, 1), side: int = 64) -> Pictures:
    """One image for each number of objects; the second and every other one is less wide."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(objects), 3, side, side)
    sizes, targets = [], []
    for place, count in enumerate(objects):
        height, width = side, side - 14 * (place % 2)
        image = 0.3 + 0.1 * torch.rand(3, height, width, generator=draw)
        boxes, labels = torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64)
        for k in range(count):
            w, h = (int(x) for x in torch.randint(14, 28, (2,), generator=draw))
            x = int(torch.randint(0, width - w, (1,), generator=draw))
            y = int(torch.randint(0, height - h, (1,), generator=draw))
            colour = int(torch.randint(CLASSES, (1,), generator=draw))
            image[colour, y : y + h, x : x + w] = 1.0
            boxes[k] = torch.tensor([x, y, x + w, y + h])
            labels[k] = colour + 1
        images[place, :, :height, :width] = image
        sizes.append((height, width))
        targets.append({"boxes": boxes, "labels": labels})
    return Pictures(images, sizes, targets, torch.arange(len(objects)))


def student(seed: int = 0, **settings):
    """A tiny network with random weights."""
    torch.manual_seed(seed)
    return frcnn_tiny(CLASSES, width=8, **settings)


def teacher(seed: int = 1, **settings):
    """A wider one, whose logits differ from region to region."""
    torch.manual_seed(seed)
    model = frcnn_tiny_teacher(CLASSES, width=12, **settings)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)
    return model.eval()
