"""Distillation of two-stage detectors: both networks judge the same regions.

The student proposes regions and samples some of them for its losses. Teacher and student say of
these, each from its own feature maps, which class they hold; the methods for images then compare
the two answers region by region. A region is a row of the loss, and has a weight of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from eakd.detection.parts import BETAS
from eakd.detection.regions import (
    Regions,
    RegionTerms,
    mean_of_images,
    on_foreground,
    region_losses,
)
from eakd.distillers.base import Distiller, Progress, Terms, Total
from eakd.distillers.dkd import non_target_class_loss, target_class_loss
from eakd.distillers.kd import kd_loss
from eakd.errors import UserError, check_choice, check_number
from eakd.weighting import Weighting, at_least_float32

if TYPE_CHECKING:
    from eakd.detection.boxes import BoxBatch


class Detector(Distiller):
    """The detector's own four losses: teachers, and the student's baseline (``distiller=none``).

    ``rpn_class + rpn_box + roi_class + roi_box``, all with coefficient 1.

    Args:
        student: a `TwoStageDetector`.
        teacher: another with the same classes, or ``None``.
        weighting: see `Distiller`.
        box_loss: ``l1``, as in detectron2, or ``smooth_l1`` with β = 1/9, as in torchvision; of
            both stages.

    Raises:
        UserError: networks with other classes, or a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        weighting: Weighting | None = None,
        box_loss: str = "l1",
    ):
        super().__init__(student, teacher, weighting)
        check_choice("box_loss", box_loss, BETAS)
        if teacher is not None and teacher.num_classes != student.num_classes:
            raise UserError(
                f"teacher: found {teacher.num_classes} classes, allowed are the student's "
                f"{student.num_classes}"
            )
        self.box_beta = student.rpn.beta = BETAS[box_loss]

    def proposed(
        self, batch: BoxBatch, progress: Progress
    ) -> tuple[Regions, Tensor, dict[str, Tensor]]:
        """The student's regions, the offsets ``(R, 4)`` they should have, and the first stage's
        losses, which torchvision computes with its proposals.

        Args:
            batch: a `BoxBatch`: ``images`` (n, 3, H, W), ``sizes``, ``targets``.
            progress: decides what is sampled, with the rank of this process and the micro-batch.
        """
        student = self.student
        # torchvision samples by the global generators; so what it draws depends on nothing else.
        seed = progress.generator().initial_seed() % 2**62 + 1_000_003 * rank()
        torch.manual_seed(seed + 998_244_353 * batch.start)
        sizes, targets = list(batch.sizes), [dict(target) for target in batch.targets]
        maps = student.maps(batch.images, sizes)
        proposals, first = student.rpn(ImageList(batch.images, sizes), maps, targets)
        boxes, _, labels, goals = student.roi_heads.select_training_samples(proposals, targets)
        logits, offsets = student.regions(maps, boxes, sizes)
        labels = torch.cat(labels)
        image = torch.cat(
            [torch.full_like(x[:, 0], i, dtype=torch.int64) for i, x in enumerate(boxes)]
        )
        losses = {"rpn_class": first["loss_objectness"], "rpn_box": first["loss_rpn_box_reg"]}
        return Regions(logits, offsets, labels, image, boxes), torch.cat(goals), losses

    def student_pass(
        self, batch: BoxBatch, progress: Progress
    ) -> tuple[Regions, dict[str, Tensor]]:
        """The student's regions and its own losses, from one pass; see `proposed`."""
        regions, goals, losses = self.proposed(batch, progress)
        classes, distances = region_losses(regions, goals, self.box_beta)
        return regions, {**losses, "roi_class": classes, "roi_box": distances}

    def passes(self, batch: BoxBatch, progress: Progress) -> tuple[Tensor, ...]:
        regions, _, losses = self.proposed(batch, progress)
        return regions.logits, regions.offsets, *losses.values()

    def forward(self, batch: BoxBatch, progress: Progress) -> RegionTerms:
        regions, losses = self.student_pass(batch, progress)
        return RegionTerms(losses, regions)

    def total(self, terms: Terms, progress: Progress | None = None) -> Total:
        total = super().total(terms, progress)
        if isinstance(terms, RegionTerms):
            terms.weight = total.weight
        return total


class RegionDistiller(Detector):
    """What the methods on regions share. Subclasses implement `row_terms`.

    Args:
        student, teacher, weighting, box_loss: see `Detector`.
        sample: ``roi``: each region has its own weight; ``image``: the mean of its image's.
        rois: regions that are distilled and averaged over: ``all``, or those on the ``foreground``.
        classes: whose logits the weight sees: ``with_background``, or of the ``foreground`` alone.
        box_weight: coefficient ≥ 0 of the mean squared difference of a region's box offsets, of all
            classes; weighted like the others.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        box_loss: str = "l1",
        sample: str = "roi",
        rois: str = "all",
        classes: str = "with_background",
        box_weight: float = 0.0,
    ):
        super().__init__(student, teacher, weighting, box_loss)
        check_choice("sample", sample, ("roi", "image"))
        check_choice("rois", rois, ("all", "foreground"))
        check_choice("classes", classes, ("with_background", "foreground"))
        self.sample, self.rois, self.classes = sample, rois, classes
        self.box_weight = check_number("box_weight", box_weight, at_least=0)

    def row_terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """The method's terms ``(U,)`` from the logits ``(U, C + 1)`` of both, and the labels."""
        raise NotImplementedError

    def forward(self, batch: BoxBatch, progress: Progress) -> RegionTerms:
        regions, losses = self.student_pass(batch, progress)
        return self.judge(batch, regions, losses, progress)

    def judge(
        self, batch: BoxBatch, regions: Regions, losses: dict[str, Tensor], progress: Progress
    ) -> RegionTerms:
        """Ask the teacher of the student's regions, and `compare` those that are distilled."""
        teacher = self.teacher_pass(batch, regions.boxes)
        if self.rois == "foreground":
            regions, teacher = on_foreground(regions, teacher)
        return self.compare(regions, teacher, losses, progress)

    def passes(self, batch: BoxBatch, progress: Progress) -> tuple[Tensor, ...]:
        regions, _, losses = self.proposed(batch, progress)
        teacher = self.teacher_pass(batch, regions.boxes)
        return regions.logits, regions.offsets, *losses.values(), *teacher

    @torch.no_grad()
    def teacher_pass(self, batch: BoxBatch, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The teacher's logits and offsets of the student's boxes; it proposes none of its own."""
        sizes = list(batch.sizes)
        maps = self.teacher.maps(batch.images, sizes, teaching=True)
        return self.teacher.regions(maps, boxes, sizes)

    def compare(
        self,
        regions: Regions,
        teacher: tuple[Tensor, Tensor],
        losses: dict[str, Tensor],
        progress: Progress,
    ) -> RegionTerms:
        """``losses`` and what both networks' answers add to them.

        Args:
            regions: with the student's answers.
            teacher: its logits and offsets of the same regions.
            losses: the student's own.
            progress: for a method that ramps up.
        """
        logits, offsets = teacher
        rows = self.row_terms(regions.logits, logits, regions.labels, progress)
        if self.box_weight:
            apart = (regions.offsets - offsets)[:, 4:]  # the background has no box
            rows["box"] = self.box_weight * at_least_float32(apart).square().mean(dim=-1)
        sources = {}
        if self.classes == "foreground":
            sources = dict.fromkeys(rows, (regions.logits[:, 1:], logits[:, 1:]))
        return RegionTerms(losses | rows, regions, logits, sources)

    def spread(self, weight: Tensor, terms: RegionTerms) -> Tensor:
        if self.sample == "roi":
            return weight
        return mean_of_images(weight, terms.sample, len(terms.boxes))[terms.sample]


class RoIKD(RegionDistiller):
    """``kd_weight · mean over regions of weight · KL(τ) · τ²``, beside the detector's own losses.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: τ > 0.
        kd_weight: coefficient ≥ 0.
        box_loss, sample, rois, classes, box_weight: see `RegionDistiller`.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        box_loss: str = "l1",
        sample: str = "roi",
        rois: str = "all",
        classes: str = "with_background",
        box_weight: float = 0.0,
    ):
        super().__init__(student, teacher, weighting, box_loss, sample, rois, classes, box_weight)
        self.temperature = check_number("temperature", temperature, above=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)

    def row_terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        return {"kd": self.kd_weight * kd_loss(student, teacher, self.temperature)}


class RoIDKD(RegionDistiller):
    """``kd_weight · mean over regions of weight · (alpha · TCKD + beta · NCKD)``.

    The target of a region without an object is the background.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: τ > 0.
        alpha, beta: coefficients ≥ 0 of both parts.
        kd_weight: scales both, ≥ 0.
        box_loss, sample, rois, classes, box_weight: see `RegionDistiller`.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        temperature: float = 1.0,
        alpha: float = 1.0,
        beta: float = 0.25,
        kd_weight: float = 1.0,
        box_loss: str = "l1",
        sample: str = "roi",
        rois: str = "all",
        classes: str = "with_background",
        box_weight: float = 0.0,
    ):
        super().__init__(student, teacher, weighting, box_loss, sample, rois, classes, box_weight)
        self.temperature = check_number("temperature", temperature, above=0)
        self.alpha = check_number("alpha", alpha, at_least=0)
        self.beta = check_number("beta", beta, at_least=0)
        self.kd_weight = check_number("kd_weight", kd_weight, at_least=0)

    def row_terms(
        self, student: Tensor, teacher: Tensor, labels: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        pair = student, teacher, labels, self.temperature
        return {
            "tckd": self.kd_weight * self.alpha * target_class_loss(*pair),
            "nckd": self.kd_weight * self.beta * non_target_class_loss(*pair),
        }


def rank() -> int:
    """This process's number among those that train together: each samples by itself."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_rank() if together else 0
