"""Parts of a Faster R-CNN that differ from torchvision's own.

Two reasons: detectron2's networks, whose weights are the paper's teachers, place anchors, pool
regions and measure boxes in another way; and under autocast, boxes and logits stay in float32,
because a bfloat16 coordinate near 1,000 is only known to 4 pixels. No part holds weights of other
names than torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align

from eakd.weighting import at_least_float32

# Where |x| of the box loss becomes x² / 2β: detectron2 never, torchvision below 1/9.
BETAS = {"l1": 0.0, "smooth_l1": 1 / 9}


class Anchors(AnchorGenerator):
    """torchvision's anchors: whole pixels, strides of image side // map side."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """``(A, 4)`` for each image, in float32 also where the maps are not.

        Of the maps only size, type and device are looked at: views without memory take their place.
        """
        like = [
            torch.empty((), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
            for x in feature_maps
        ]
        sizes = (x.shape[-2:] for x in feature_maps)
        views = [x.expand(size) for x, size in zip(like, sizes, strict=True)]
        return super().forward(image_list, views)


class UnroundedAnchors(Anchors):
    """detectron2's anchors: not rounded, strides that do not depend on the image's size.

    Args:
        sizes: of each level, in pixels.
        aspect_ratios: height / width.
        strides: of each level, in pixels.
    """

    def __init__(
        self, sizes: Sequence[float], aspect_ratios: Sequence[float], strides: Sequence[int]
    ):
        super().__init__(tuple((s,) for s in sizes), (tuple(aspect_ratios),) * len(sizes))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        scales = torch.as_tensor(scales, dtype=dtype, device=device)
        roots = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        half_width, half_height = (scales / roots).flatten() / 2, (scales * roots).flatten() / 2
        return torch.stack([-half_width, -half_height, half_width, half_height], dim=1)

    def grid_anchors(self, grid_sizes: list, strides: list) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [[s, s] for s in self.strides])


class AlignedPool(MultiScaleRoIAlign):
    """detectron2's region pooling: aligned to pixel centres, as many samples as a cell has pixels.

    A region of side s is pooled from level ⌊level₀ + log₂(s / s₀ + 1e-8)⌋, among those there are
    (Lin et al., 2017, Eq. 1).

    Args:
        featmap_names: the levels, the finest first.
        output_size: cells of a side.
        strides: of the levels, in pixels, each twice the one before.
        canonical_scale, canonical_level: s₀ in pixels, level₀; level k has stride 2^k.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int,
        strides: Sequence[int],
        canonical_scale: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__(
            featmap_names,
            output_size,
            sampling_ratio=0,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.strides = tuple(strides)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool ``R`` boxes of all images together: ``(R, channels, side, side)``."""
        maps = [x[name] for name in self.featmap_names]
        images = [torch.full_like(each[:, :1], place) for place, each in enumerate(boxes)]
        rois = torch.cat([torch.cat(images), torch.cat(boxes)], dim=1)
        levels = self.levels(rois[:, 1:])
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for level, (features, stride) in enumerate(zip(maps, self.strides, strict=True)):
            rows = torch.where(levels == level)[0]
            found = roi_align(
                at_least_float32(features),
                rois[rows],
                self.output_size,
                spatial_scale=1 / stride,
                sampling_ratio=self.sampling_ratio,
                aligned=True,
            )
            pooled.index_copy_(0, rows, found.to(pooled.dtype))
        return pooled

    def levels(self, boxes: Tensor) -> Tensor:
        """Which of the levels, counted from 0, each box ``(R, 4)`` is pooled from: ``(R,)``."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = (self.canonical_level + (side / self.canonical_scale + 1e-8).log2()).floor()
        finest = round(math.log2(self.strides[0]))
        return (level - finest).clamp(0, len(self.strides) - 1).to(torch.int64)


class ProposalHead(RPNHead):
    """torchvision's head of the region proposal network, whose answers are float32 at least."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [*map(at_least_float32, objectness)], [*map(at_least_float32, deltas)]


class Predictor(FastRCNNPredictor):
    """torchvision's classifier and box regression of regions, outside autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(R, D) -> (R, C + 1), (R, 4 (C + 1))``, background first."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.cls_score.weight.dtype))


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with a choice of box loss, which waits for no number.

    Attributes:
        beta: of the box loss, see `BETAS`.
    """

    beta = BETAS["smooth_l1"]

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Both losses as sums over the sampled anchors, divided by their number."""
        positive, negative = (torch.cat(each).bool() for each in self.fg_bg_sampler(labels))
        sampled = (positive | negative).to(objectness.dtype)
        count = sampled.sum().clamp(min=1)
        is_object = torch.cat(labels).clamp(min=0).to(objectness.dtype)  # -1: between thresholds
        classes = F.binary_cross_entropy_with_logits(
            objectness.flatten(), is_object, weight=sampled, reduction="sum"
        )
        boxes = box_loss(pred_bbox_deltas, torch.cat(regression_targets), positive, self.beta)
        return classes / count, boxes / count


def box_loss(deltas: Tensor, targets: Tensor, positive: Tensor, beta: float) -> Tensor:
    """Sum of the (smooth) L1 distance over the rows that are ``positive``: ``()``.

    Args:
        deltas, targets: ``(R, 4)``. Targets of other rows may be infinite: those of an image
            without boxes are logarithms of 0.
        positive: ``(R,)`` bool.
        beta: see `BETAS`.
    """
    targets = torch.where(positive[:, None], targets, deltas.detach())
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="sum")
