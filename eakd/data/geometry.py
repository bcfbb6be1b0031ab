"""Where an image is cut, turned and mirrored: random geometry as data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def crop(images: Tensor, offsets: Tensor, padding: int, flips: Tensor | None = None) -> Tensor:
    """Pad with black, cut windows of the original size, then mirror some of them.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        offsets: ``(N, 2)`` int64, row and column of the window in the padded image, each in
            ``[0, 2 * padding]``.
        padding: pixels on each side.
        flips: ``(N,)`` bool, the windows to mirror; ``None`` for none.

    Returns:
        ``(N, H, W, 3)``: `torchvision.transforms.RandomCrop` for given offsets, and its mirror.
    """
    n, height, width, channels = images.shape
    samples = torch.arange(n, device=images.device)
    rows, columns = offsets.unbind(dim=1)
    if flips is None:
        padded = F.pad(images, (0, 0, *[padding] * 4))
    else:
        # Every image and its mirror: a window of one of them is all that is copied, where to
        # mirror the windows and choose would go over all of them twice more.
        inside = slice(padding, padding + height), slice(padding, padding + width)
        both = images.new_zeros(2, n, height + 2 * padding, width + 2 * padding, channels)
        both[(0, slice(None), *inside)] = images
        both[(1, slice(None), *inside)] = images.flip(2)
        padded = both.flatten(0, 1)
        samples = samples + n * flips
        columns = torch.where(flips, 2 * padding - columns, columns)
    # The windows that begin at every pixel, as a view of overlapping rows. Not indexed by brackets:
    # `index_select` copies a window row by row, where those go byte by byte, ten times as slow.
    across = width + 2 * padding
    begins = (samples * (height + 2 * padding) + rows) * across + columns
    count = padded.numel() // channels - (height - 1) * across - width + 1
    strides = (channels, across * channels, 1)
    windows = padded.as_strided((count, height, width * channels), strides)
    return windows.index_select(0, begins).view(images.shape)


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
