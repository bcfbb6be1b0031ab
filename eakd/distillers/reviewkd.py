"""ReviewKD (Chen et al., 2021): deep features of the student review the teacher's shallow ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.distillers.features import BatchNorm, difference, dry_run, mean_square
from eakd.distillers.kd import cross_entropy
from eakd.errors import UserError, check_number
from eakd.models.base import Output
from eakd.weighting import Weighting

POOLED_SIZES = (4, 2, 1)


def hcl_loss(x: Tensor, target: Tensor) -> Tensor:
    """Hierarchical context loss: the squared difference at several resolutions, per sample.

    The full maps count 1 and their average pools to 4×4, 2×2 and 1×1 count ½, ¼ and ⅛; sizes not
    below the map's own are left out, and the sum is divided by what counted. Source: ReviewKD's
    paper (HCL) and the authors' code.

    Args:
        x, target: ``(N, C, H, W)``.

    Returns:
        ``(N,)``; the mean over samples is the published loss of one level.
    """
    error = difference(x, target)
    loss, share, total = mean_square(error), 1.0, 1.0
    for size in POOLED_SIZES:
        if size < x.shape[2]:
            share /= 2
            total += share
            # Pooling is linear: the pool of the difference is the difference of the pools.
            pooled = F.adaptive_avg_pool2d(error, size)
            loss = loss + share * mean_square(pooled)
            # A pool of equal windows is what the next one, a divisor of it, can be made from.
            if all(side % size == 0 for side in error.shape[2:]):
                error = pooled
    return loss / total


class AttentionFusion(nn.Module):
    """Fuse a student's map with what the deeper levels left over (the paper's ABF).

    Args:
        channels: of the student's map.
        mid_channels: of the residual that runs from the deepest level to the shallowest.
        target_channels: of the teacher's map.
        fuse: false for the deepest level, which has no residual.
    """

    def __init__(self, channels: int, mid_channels: int, target_channels: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, mid_channels, 1, bias=False), BatchNorm(mid_channels)
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(mid_channels, target_channels, 3, padding=1, bias=False),
            BatchNorm(target_channels),
        )
        self.att_conv = (
            nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid()) if fuse else None
        )
        for conv in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(
        self, x: Tensor, residual: Tensor | None, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Return the map to compare with the teacher's, and the residual for the next level.

        Args:
            x: ``(N, channels, H, W)``.
            residual: ``(N, mid_channels, …)``, or ``None`` at the deepest level.
            size: height and width of the teacher's map.
        """
        x = self.conv1(x)
        if self.att_conv is not None:
            residual = F.interpolate(residual, x.shape[2:])
            attention = self.att_conv(torch.cat([x, residual], dim=1))
            x = x * attention[:, :1] + residual * attention[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.conv2(x), x


def levels(maps: list[Tensor], pooled: Tensor) -> list[Tensor]:
    """The maps to compare, deepest first: the pooled feature, then every stage but the stem."""
    return [pooled[..., None, None], *reversed(maps[1:])]


class ReviewKD(Distiller):
    """``ce_weight · CE + review_weight · warm-up · mean(weight · Σ_levels HCL)``.

    The student's features, fused from deep to shallow, learn the teacher's preactivations. Two
    networks with different numbers of stages are compared from the deepest one up.

    Args:
        student, teacher, weighting: see `Distiller`.
        ce_weight, review_weight: coefficients ≥ 0.
        warmup_epochs: ``review_weight`` grows linearly until this epoch; 0 for none.
        max_mid_channels: bound on the residual's channels, else as many as the student's pooled
            feature has.
        image_size: side in pixels of the one blank image that tells the channels of all maps.

    Raises:
        UserError: a value outside its range, or a network without a pyramid of feature maps.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        weighting: Weighting | None = None,
        ce_weight: float = 1.0,
        review_weight: float = 5.0,
        warmup_epochs: int = 20,
        max_mid_channels: int = 512,
        image_size: int = 32,
    ):
        super().__init__(student, teacher, weighting)
        max_mid_channels = check_number(
            "max_mid_channels", max_mid_channels, at_least=1, integer=True
        )
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.review_weight = check_number("review_weight", review_weight, at_least=0)
        self.warmup_epochs = check_number("warmup_epochs", warmup_epochs, at_least=0)

        outputs: dict[str, Output] = {
            role: dry_run(model, image_size, model.forward)
            for role, model in (("student", student), ("teacher", teacher))
        }
        sizes = {role: [x.shape[-1] for x in out.features] for role, out in outputs.items()}
        for role, model in (("student", student), ("teacher", teacher)):
            # A transformer's maps are of one size: no pyramid to review, unless the user chose as
            # many of them as the other network has.
            flat = len(sizes[role]) < 2 or sizes[role][0] <= sizes[role][-1]
            if flat and (not sizes[role] or len(sizes["student"]) != len(sizes["teacher"])):
                raise UserError(
                    f"{role}: found a {type(model).__name__} with maps of {sizes[role]} pixels, "
                    "allowed in ReviewKD is a network whose maps shrink from stage to stage"
                )
        channels = [
            [x.shape[1] for x in levels(out.features, out.pooled)] for out in outputs.values()
        ]
        mid_channels = min(max_mid_channels, channels[0][0])
        self.fusions = nn.ModuleList(
            AttentionFusion(source, mid_channels, target, fuse=depth > 0)
            for depth, (source, target) in enumerate(zip(*channels, strict=False))
        )

    def fuse(self, student: Output, teacher: Output) -> list[tuple[Tensor, Tensor]]:
        """The fused map and its target at each level, of both networks on the same images."""
        sources = levels(student.features, student.pooled)
        targets = levels(teacher.preactivations, teacher.pooled)
        pairs, residual = [], None
        for fusion, x, target in zip(self.fusions, sources, targets, strict=False):
            fused, residual = fusion(x, residual, target.shape[2:])
            pairs.append((fused, target))
        return pairs

    def passes(
        self, batch: Batch, progress: Progress
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """The student's and the teacher's logits ``(N, C)``, and what `fuse` returns."""
        teacher = self.teach(batch.images, features=True)
        student = self.student(batch.images)
        return student.logits, teacher.logits, self.fuse(student, teacher)

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        student_logits, teacher_logits, pairs = self.passes(batch, progress)
        warmup = min(progress.epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        review = sum(hcl_loss(fused, target) for fused, target in pairs)
        losses = {
            "ce": self.ce_weight * cross_entropy(student_logits, batch.targets),
            "review": self.review_weight * warmup * review,
        }
        return Terms(losses, student_logits, teacher_logits, targets=batch.targets)
