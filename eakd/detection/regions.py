"""Regions of images: what a detector says of them, and what that adds up to."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eakd.detection.parts import box_loss
from eakd.distillers.base import Terms


class Regions(NamedTuple):
    """What the student says of the ``R`` regions that it sampled in ``n`` images.

    Attributes:
        logits: ``(R, C + 1)`` float32, background first.
        offsets: ``(R, 4 (C + 1))``.
        labels: ``(R,)``, 0 is background.
        image: ``(R,)``, which of the batch's images each lies in.
        boxes: of each image, ``(k, 4)`` in the batch's pixels.
    """

    logits: Tensor
    offsets: Tensor
    labels: Tensor
    image: Tensor
    boxes: list[Tensor]


class RegionTerms(Terms):
    """`Terms` whose rows are regions.

    Attributes:
        boxes: of each image, ``(k, 4)`` in the batch's pixels, in the order of the rows.
        foreground: ``(U,)`` bool, regions that lie on an object.
        weight: ``(U,)``, once `Detector.total` has seen the terms; ``None`` without a row term.
    """

    def __init__(
        self,
        losses: dict[str, Tensor],
        regions: Regions,
        teacher_logits: Tensor | None = None,
        entropy_logits: dict[str, tuple[Tensor, Tensor]] | None = None,
    ):
        super().__init__(
            losses,
            regions.logits,
            teacher_logits,
            entropy_logits,
            sample=regions.image,
            targets=regions.labels,
        )
        self.boxes, self.foreground = regions.boxes, regions.labels > 0
        self.weight: Tensor | None = None


def region_losses(regions: Regions, goals: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and box loss of the second stage, both divided by all regions; 0 without any.

    Args:
        regions: the student's.
        goals: ``(R, 4)`` offsets to the object of each; of background rows, anything.
        beta: see `BETAS`.
    """
    labels, count = regions.labels, max(len(regions.labels), 1)
    classes = F.cross_entropy(regions.logits, labels, reduction="sum")
    of_class = labels[:, None, None].expand(-1, 1, 4)
    offsets = regions.offsets.unflatten(1, (-1, 4)).gather(1, of_class)[:, 0]
    return classes / count, box_loss(offsets, goals, labels > 0, beta) / count


def on_foreground(
    regions: Regions, teacher: tuple[Tensor, Tensor]
) -> tuple[Regions, tuple[Tensor, Tensor]]:
    """Both networks' answers of the regions that lie on an object."""
    keep = regions.labels > 0
    parts = keep.split([len(x) for x in regions.boxes])
    boxes = [x[part] for x, part in zip(regions.boxes, parts, strict=True)]
    rows = Regions(*(x[keep] for x in regions[:4]), boxes)
    return rows, (teacher[0][keep], teacher[1][keep])


def mean_of_images(rows: Tensor, image: Tensor, count: int) -> Tensor:
    """Mean of the rows of each of ``count`` images: ``(U,) -> (count,)``, 0 without any."""
    sums = rows.new_zeros(2, count)
    sums = sums.index_add(1, image, torch.stack([rows, torch.ones_like(rows)]))
    return sums[0] / sums[1].clamp(min=1)


@torch.no_grad()
def region_statistics(terms: RegionTerms) -> dict[str, Tensor]:
    """Of each image ``(n,)``: its regions, and how much of them and of their weight is foreground.

    ``rois`` counts regions, ``foreground_share`` is the part of them that lies on objects, and
    ``foreground_weight``, if the terms are weighted, the part of the sum of weights that those
    have. Both are 0 for an image without regions.
    """
    count, foreground = len(terms.boxes), terms.foreground.float()
    one = torch.ones_like(foreground)
    columns = [one, foreground]
    if terms.weight is not None:
        columns += [terms.weight.float(), terms.weight.float() * foreground]
    sums = one.new_zeros(len(columns), count).index_add(1, terms.sample, torch.stack(columns))
    found = {"rois": sums[0], "foreground_share": sums[1] / sums[0].clamp(min=1)}
    if terms.weight is not None:
        tiny = torch.finfo(sums.dtype).tiny  # weights may all be 0
        found["foreground_weight"] = sums[3] / sums[2].clamp(min=tiny)
    return found
