"""Where an image is cut, turned and mirrored: random geometry as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad with black, then cut windows of the original size.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        offsets: ``(N, 2)`` int64, row and column of the window in the padded image, each in
            ``[0, 2 * padding]``.
        padding: pixels on each side.

    Returns:
        ``(N, H, W, 3)``: `torchvision.transforms.RandomCrop` for given offsets.
    """
    n, height, width, channels = images.shape
    padded = F.pad(images, (0, 0, *[padding] * 4))
    # Every possible window of every image, as a view; one index then copies the wanted ones.
    sample, row, column, _ = padded.stride()
    places = 2 * padding + 1
    windows = padded.as_strided(
        (n, places, places, height, width * channels), (sample, row, column, row, 1)
    )
    samples = torch.arange(n, device=images.device)
    return windows[samples, offsets[:, 0], offsets[:, 1]].view(images.shape)


class View(NamedTuple):
    """The random geometry of ``N`` images; a slice of it is the geometry of some of them.

    Attributes:
        angles: ``(N,)`` degrees, counter-clockwise.
        offsets: ``(N, 2)`` int64, see `crop`.
        flips: ``(N,)`` bool.
    """

    angles: Tensor
    offsets: Tensor
    flips: Tensor
