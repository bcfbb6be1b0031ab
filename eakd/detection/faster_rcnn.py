"""Faster R-CNN with a feature pyramid, on torchvision's public parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from eakd.data.normalization import IMAGENET_MEAN, IMAGENET_STD
from eakd.detection.parts import (
    AlignedPool,
    Anchors,
    Predictor,
    ProposalHead,
    ProposalNetwork,
    UnroundedAnchors,
)
from eakd.errors import UserError, check_choice, check_number, check_numbers
from eakd.models.inference import prepare_teacher

# Of ImageNet, RGB in [0, 1]: torchvision's backbones. detectron2's are 255 times the same.
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD
RATIOS = (0.5, 1.0, 2.0)  # of anchors, height / width
SIDE = 64  # of the dry run's image: the coarsest map is one pixel, of stride 64


class TwoStageDetector(FasterRCNN):
    """torchvision's ``FasterRCNN``, called on batches that are resized and padded already.

    Its own ``forward`` takes a list of images, as always. Built by `faster_rcnn`.

    Args:
        swapped_means: as a teacher, see ``channel_means`` of `faster_rcnn`.
        **kwargs: of ``FasterRCNN``.
    """

    def __init__(self, *args: Any, swapped_means: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.swapped_means = swapped_means
        for name, values in (
            ("mean", self.transform.image_mean),
            ("std", self.transform.image_std),
        ):
            # On the device, but no weights: torchvision's names are kept.
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @property
    def num_classes(self) -> int:
        """Classes without the background."""
        return self.roi_heads.box_predictor.cls_score.out_features - 1

    def normalized(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], teaching: bool = False
    ) -> Tensor:
        """``(n, 3, H, W)`` RGB in [0, 1] as the backbone takes it, with zeros around each image.

        Args:
            sizes: (height, width) of each image within the padded batch.
            teaching: for a student, which is when means may be swapped.
        """
        mean = self.mean.flip(0) if teaching and self.swapped_means else self.mean
        x = (images - mean) / self.std
        for image, (height, width) in zip(x, sizes, strict=True):
            image[:, height:].zero_()
            image[:, :, width:].zero_()
        return x

    def maps(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], teaching: bool = False
    ) -> dict[str, Tensor]:
        """The feature pyramid of a batch, the finest level first; see `normalized`."""
        return self.backbone(self.normalized(images, sizes, teaching))

    def regions(
        self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """What the second stage says of boxes, of all images together.

        Args:
            maps: from `maps`.
            boxes: ``(k, 4)`` of each image, x1 y1 x2 y2 in the batch's pixels.
            sizes: as for `normalized`.

        Returns:
            Class logits ``(R, C + 1)``, the background first, and box offsets ``(R, 4 (C + 1))``.
        """
        heads = self.roi_heads
        return heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, list(sizes))))

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """What is in each image, surest first. In eval mode.

        Args:
            images, sizes: as for `normalized`.

        Returns:
            For each image ``boxes`` (k, 4) in the batch's pixels, ``scores`` (k,) in [0, 1] and
            ``labels`` (k,), 1 to C.
        """
        maps, sizes = self.maps(images, sizes), list(sizes)
        proposals, _ = self.rpn(ImageList(images, sizes), maps)
        return self.roi_heads(maps, proposals, sizes)[0]


def faster_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    parts: str = "detectron2",
    anchor_sizes: Sequence[float] = (32, 64, 128, 256, 512),
    canonical_scale: int = 224,
    head_features: int = 1024,
    anchors_per_image: int = 256,
    proposals: int = 1000,
    rois_per_image: int = 512,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    channel_means: str = "as_trained",
) -> TwoStageDetector:
    """A Faster R-CNN around any pyramid of feature maps.

    Args:
        backbone: images to an ordered dict of maps with ``out_channels`` channels, each of half the
            side of the one before. A map called ``pool`` is for proposals only.
        num_classes: without the background.
        parts: ``detectron2``: aligned pooling, anchors that are not rounded, and its initial
            weights of the heads; ``torchvision``: what torchvision's own networks have.
        anchor_sizes: in pixels, one for each map.
        canonical_scale: side in pixels of the regions that are pooled from stride 16.
        head_features: width of the second stage's two layers.
        anchors_per_image, rois_per_image: sampled for the losses.
        proposals: kept of the first stage. With torchvision's parts twice as many in training.
        mean, std: of the normalisation, RGB in [0, 1].
        channel_means: ``as_published`` subtracts red's mean from blue and blue's from red while the
            network teaches, but not while it detects, as the published distillation does with its
            ResNet-101 teacher. See ``docs/paper-notes.md``.

    Raises:
        UserError: a value outside its range, or maps that do not fit.
    """
    check_number("num_classes", num_classes, at_least=1, integer=True)
    check_choice("parts", parts, ("detectron2", "torchvision"))
    check_choice("channel_means", channel_means, ("as_trained", "as_published"))
    check_numbers("anchor_sizes", anchor_sizes, above=0)
    for name, number in {
        "canonical_scale": canonical_scale,
        "head_features": head_features,
        "anchors_per_image": anchors_per_image,
        "proposals": proposals,
        "rois_per_image": rois_per_image,
    }.items():
        check_number(name, number, at_least=1, integer=True)
    mean, std = check_numbers("mean", mean, 3), check_numbers("std", std, 3, above=0)
    maps = _dry_run(backbone, len(anchor_sizes))
    names = [name for name in maps if name != "pool"]
    strides = [SIDE // x.shape[-1] for x in maps.values()]
    if parts == "detectron2":
        anchors = UnroundedAnchors(anchor_sizes, RATIOS, strides)
        pool = AlignedPool(names, 7, strides[: len(names)], canonical_scale)
    else:
        anchors = Anchors(tuple((s,) for s in anchor_sizes), (RATIOS,) * len(strides))
        pool = MultiScaleRoIAlign(names, 7, 2, canonical_scale=canonical_scale)
        # It infers its strides from the first images that it sees, and small ones mislead it.
        pool(maps, [torch.tensor([[0.0, 0.0, SIDE, SIDE]])], [(SIDE, SIDE)])
    channels = backbone.out_channels
    model = TwoStageDetector(
        backbone,
        image_mean=mean,
        image_std=std,
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(channels, len(RATIOS)),
        box_roi_pool=pool,
        box_head=TwoMLPHead(channels * 7**2, head_features),
        box_predictor=Predictor(head_features, num_classes + 1),
        box_batch_size_per_image=rois_per_image,
        swapped_means=channel_means == "as_published",
    )
    kept = {"training": proposals * (1 if parts == "detectron2" else 2), "testing": proposals}
    model.rpn = ProposalNetwork(
        anchors,
        model.rpn.head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * proposals, "testing": proposals},  # of each level
        post_nms_top_n=kept,
        nms_thresh=0.7,
    )
    if parts == "detectron2":
        _initialize_heads(model)
    return model


def _dry_run(backbone: nn.Module, levels: int) -> dict[str, Tensor]:
    """The maps of an image of `SIDE` pixels.

    Raises:
        UserError: their number or strides do not fit.
    """
    with torch.no_grad():
        maps = backbone.eval()(torch.zeros(1, 3, SIDE, SIDE))
    backbone.train()
    if len(maps) != levels:
        raise UserError(
            f"anchor_sizes: found {levels} sizes, allowed is one for each of {len(maps)} maps"
        )
    sides = [x.shape[-1] for x in maps.values()]
    if any(a != 2 * b for a, b in itertools.pairwise(sides)):
        raise UserError(
            f"backbone: found maps of {sides} pixels for an image of {SIDE}, allowed are maps of "
            "half the side each"
        )
    return maps


def _initialize_heads(model: TwoStageDetector) -> None:
    """detectron2's initial weights of the second stage."""
    heads = model.roi_heads
    for layer in (heads.box_head.fc6, heads.box_head.fc7):
        nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.normal_(heads.box_predictor.cls_score.weight, std=0.01)
    nn.init.normal_(heads.box_predictor.bbox_pred.weight, std=0.001)
    for layer in (heads.box_head.fc6, heads.box_head.fc7, *heads.box_predictor.children()):
        nn.init.zeros_(layer.bias)


def frozen_teacher(
    model: TwoStageDetector, dtype: torch.dtype | None = None, fold: bool = True
) -> TwoStageDetector:
    """``model``, on its device, as a teacher: its norms folded into the backbone's convolutions.

    Args:
        model: trained; it is changed.
        dtype: of the autocast that it will run under, see `prepare_teacher`.
        fold: false leaves it as it is but for modes and gradients.
    """
    model.eval().requires_grad_(False)
    if fold:
        example = torch.linspace(-1, 1, 3 * SIDE**2, device=model.mean.device)
        model.backbone = prepare_teacher(model.backbone, example.view(1, 3, SIDE, SIDE), dtype)
    return model
