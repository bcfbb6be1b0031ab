"""FCFD (Liu et al., 2023): features that act like the teacher's in the teacher's later stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.distillers.features import BatchNorm, difference, dry_run, mean_square, temporarily
from eakd.distillers.kd import cross_entropy, kd_loss
from eakd.errors import UserError, check_choice, check_number
from eakd.models.base import StagedModel
from eakd.weighting import Weighting

TEACHER_BATCHNORM = ("batch", "frozen")


class Path(NamedTuple):
    """A way through both networks.

    Attributes:
        start: ``"student"`` or ``"teacher"``: who runs the stages before ``switch``.
        switch: the first stage that the other network runs, which also classifies.
    """

    start: str
    switch: int


class Passes(NamedTuple):
    """What the networks and bridges make of one batch.

    Attributes:
        student_logits, teacher_logits: ``(N, C)``.
        appearance: stage → the student's map, bridged into the teacher's space.
        function: stage and map for every stage of the teacher that a path from the student ran.
        mixed_logits: ``(N, C)`` at the end of each path.
        teacher_maps: the teacher's map after each stage, the target of both.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    appearance: dict[int, Tensor]
    function: list[tuple[int, Tensor]]
    mixed_logits: list[Tensor]
    teacher_maps: list[Tensor]


def candidate_paths(num_stages: int) -> list[Path]:
    """Every path that changes the network once, after stage 1 at the earliest (authors' code)."""
    switches = range(2, num_stages)
    return [Path(start, switch) for start in ("teacher", "student") for switch in switches]


def stage_maps(model: StagedModel, images: Tensor) -> list[Tensor]:
    """The map after each stage, where FCFD cuts the network: see `StagedModel.route_stage`."""
    maps, x = [], images
    for stage in range(model.num_stages):
        x = model.route_stage(stage, x)
        maps.append(x)
    return maps


def matching_loss(x: Tensor, target: Tensor, last: bool = False) -> Tensor:
    """Squared difference of two maps, ``(N, C, H, W) -> (N,)``; its mean is the usual MSE.

    Args:
        x, target: maps of one shape; ``target`` takes no gradient.
        last: for the last stage, which is compared a second time as the classifier sees it, after
            ReLU and average pool.

    Raises:
        UserError: the shapes differ.
    """
    if x.shape != target.shape:
        raise UserError(
            f"image_size: found maps {tuple(x.shape[1:])} and {tuple(target.shape[1:])} where one "
            "shape was expected, allowed is the size of the images"
        )
    target = target.detach()
    loss = mean_square(difference(x, target))
    if last:
        loss = loss + mean_square(difference(_pool(x), _pool(target)))
    return loss


def _pool(x: Tensor) -> Tensor:
    return F.relu(x).mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def bridge(source: list[int], target: list[int], post: bool) -> nn.Sequential:
    """What turns one network's map into the other's: a convolution and a batch norm.

    Args:
        source, target: ``[C, H, W]``; the sizes are equal or differ by a factor of two.
        post: the target network expects maps after their activation (`StagedModel.stage_input`),
            so a LeakyReLU follows.

    Raises:
        UserError: other sizes.
    """
    channels = source[0], target[0]
    if source[1:] == target[1:]:
        conv = nn.Conv2d(*channels, 3, padding=1, bias=False)
    elif source[1:] == [2 * side for side in target[1:]]:
        conv = nn.Conv2d(*channels, 3, stride=2, padding=1)
    elif target[1:] == [2 * side for side in source[1:]]:
        conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    else:
        raise UserError(
            f"target: found {target} for a source {source} (channels, height, width), allowed are "
            "equal sizes or a factor of 2"
        )
    if isinstance(conv, nn.Conv2d):  # as published; the transposed one keeps PyTorch's default
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(
        conv, BatchNorm(target[0]), *([nn.LeakyReLU(0.1, inplace=True)] if post else [])
    )


class FCFD(Distiller):
    """Function-consistent feature distillation: student and teacher stages stitched together.

    ``ce_weight · CE + mean(weight · (kl_weight · KL + mixed_kl_weight · Σ_paths KL
    + l2_weight · ramp · (appearance + function)))``, where the student's maps reach the teacher's
    space through trained bridges and

    - *appearance* compares each of them with the teacher's map of that stage,
    - *function* sends one of them through the teacher's later stages and compares what comes out,
    - the logits at the end of each mixed path, from student to teacher or from teacher to student,
      are compared with the teacher's (KL).

    The weight of EA-FCFD, which was never published, multiplies all of these; it comes from the
    plain logits, so it does not depend on the sampled paths.

    Batch norms keep separate running statistics per path in the published code. Training never
    reads them, so here a mixed pass simply moves none, and the student's are its own pass's.

    Args:
        student, teacher, weighting: see `Distiller`.
        temperature: τ > 0 of all KL terms.
        ce_weight, kl_weight, mixed_kl_weight, l2_weight: coefficients ≥ 0.
        ramp_epochs: ``l2_weight`` grows linearly until this epoch; 0 for none.
        mixed_paths: how many of `candidate_paths` each step samples, a function of (seed, epoch,
            step) alone.
        teacher_batchnorm: ``"batch"``, as published, normalises the teacher with the statistics of
            the batch (its running statistics, which the published code lets drift without using
            them, stay as trained); ``"frozen"`` with its running statistics, as in evaluation.
        image_size: side in pixels of the one blank image that tells the shapes of all maps; it
            must be that of the training images.

    Raises:
        UserError: a value outside its range, networks that do not run stage by stage or whose maps
            cannot be bridged, or a teacher without batch norms under ``"batch"``.
    """

    # Batch statistics need the batch norms, and the paths run through maps that folding may change.
    folds_teacher = False

    def __init__(
        self,
        student: StagedModel,
        teacher: StagedModel,
        weighting: Weighting | None = None,
        temperature: float = 4.0,
        ce_weight: float = 1.0,
        kl_weight: float = 1.0,
        mixed_kl_weight: float = 1.0,
        l2_weight: float = 5.0,
        ramp_epochs: int = 20,
        mixed_paths: int = 2,
        teacher_batchnorm: str = "batch",
        image_size: int = 32,
    ):
        super().__init__(student, teacher, weighting)
        check_choice("teacher_batchnorm", teacher_batchnorm, TEACHER_BATCHNORM)
        self.temperature = check_number("temperature", temperature, above=0)
        self.ce_weight = check_number("ce_weight", ce_weight, at_least=0)
        self.kl_weight = check_number("kl_weight", kl_weight, at_least=0)
        self.mixed_kl_weight = check_number("mixed_kl_weight", mixed_kl_weight, at_least=0)
        self.l2_weight = check_number("l2_weight", l2_weight, at_least=0)
        self.ramp_epochs = check_number("ramp_epochs", ramp_epochs, at_least=0)

        source, target = (
            _stage_shapes(role, model, image_size)
            for role, model in (("student", student), ("teacher", teacher))
        )
        if len(source) != len(target):
            raise UserError(
                f"student: found {len(source)} stages and {len(target)} of the teacher, allowed is "
                "a pair with equally many"
            )
        self.num_stages = len(source)
        self.paths = candidate_paths(self.num_stages)
        self.mixed_paths = check_number(
            "mixed_paths", mixed_paths, at_least=0, at_most=len(self.paths), integer=True
        )

        self.to_teacher, self.to_student = nn.ModuleDict(), nn.ModuleDict()
        for stage in range(1, self.num_stages):
            pair = source[stage], target[stage]
            try:
                self.to_teacher[str(stage)] = bridge(*pair, teacher.stage_input == "post")
                if stage < self.num_stages - 1:  # no path switches after the last stage
                    reverse = bridge(*pair[::-1], student.stage_input == "post")
                    self.to_student[str(stage)] = reverse
            except UserError:
                raise UserError(
                    f"student: found a map {pair[0]} after stage {stage} against the teacher's "
                    f"{pair[1]} (channels, height, width), allowed are equal sizes or a factor of 2"
                ) from None

        # Plain lists, so that the teacher's stay hidden.
        self._student_norms = _batch_norms(student)
        self._teacher_norms = _batch_norms(teacher) if teacher_batchnorm == "batch" else []
        if teacher_batchnorm == "batch" and not self._teacher_norms:
            raise UserError(
                "teacher_batchnorm: found 'batch' for a teacher without batch norms, allowed is "
                "frozen"
            )

    def sample_paths(self, progress: Progress) -> list[Path]:
        """The mixed paths of one step, without replacement."""
        order = torch.randperm(len(self.paths), generator=progress.generator())
        return [self.paths[index] for index in order[: self.mixed_paths].tolist()]

    def passes(
        self, batch: Batch, progress: Progress, paths: Sequence[Path] | None = None
    ) -> Passes:
        """Both networks on their own, the bridges, and the mixed paths of one step."""
        paths = self.sample_paths(progress) if paths is None else paths
        with self._teacher_statistics():
            with torch.no_grad():
                teacher_maps = stage_maps(self.teacher, batch.images)
                teacher_logits = self.teacher.route_head(teacher_maps[-1])
            student_maps = stage_maps(self.student, batch.images)
            student_logits = self.student.route_head(student_maps[-1])
            bridged = {
                stage: self.to_teacher[str(stage)](student_maps[stage])
                for stage in range(1, self.num_stages)
            }
            function, mixed_logits = [], []
            for path in paths:
                if path.start == "student":
                    maps, logits = self._continue(self.teacher, path, bridged[path.switch - 1])
                    function += maps.items()
                else:
                    x = self.to_student[str(path.switch - 1)](teacher_maps[path.switch - 1])
                    _, logits = self._continue(self.student, path, x)
                mixed_logits.append(logits)
        return Passes(student_logits, teacher_logits, bridged, function, mixed_logits, teacher_maps)

    def forward(
        self, batch: Batch, progress: Progress, paths: Sequence[Path] | None = None
    ) -> Terms:
        """The terms of one step; ``paths`` replaces the sampled ones."""
        made = self.passes(batch, progress, paths)
        student_logits, teacher_logits = made.student_logits, made.teacher_logits
        last = self.num_stages - 1

        def matched(maps: Iterable[tuple[int, Tensor]]) -> Tensor:
            losses = (matching_loss(x, made.teacher_maps[i], i == last) for i, x in maps)
            return sum(losses, torch.zeros_like(student_logits[:, 0]))

        appearance, function = matched(made.appearance.items()), matched(made.function)
        mixed_kl = torch.zeros_like(appearance)
        for logits in made.mixed_logits:
            mixed_kl = mixed_kl + kd_loss(logits, teacher_logits, self.temperature)

        ramp = min(progress.epoch / self.ramp_epochs, 1.0) if self.ramp_epochs else 1.0
        losses = {
            "ce": self.ce_weight * cross_entropy(student_logits, batch.targets),
            "kl": self.kl_weight * kd_loss(student_logits, teacher_logits, self.temperature),
            "mixed_kl": self.mixed_kl_weight * mixed_kl,
            "appearance": self.l2_weight * ramp * appearance,
            "function": self.l2_weight * ramp * function,
        }
        return Terms(losses, student_logits, teacher_logits, targets=batch.targets)

    def _continue(
        self, network: StagedModel, path: Path, x: Tensor
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Run the stages of ``network`` after the switch on ``x``: their maps, and the logits."""
        maps = {}
        with temporarily(self._student_norms, track_running_stats=False):
            for stage in range(path.switch, self.num_stages):
                maps[stage] = x = network.route_stage(stage, x)
            return maps, network.route_head(x)

    def _teacher_statistics(self) -> AbstractContextManager[None]:
        """Within it, the teacher's batch norms use (and keep) what ``teacher_batchnorm`` says."""
        return temporarily(self._teacher_norms, training=True, track_running_stats=False)


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _stage_shapes(role: str, model: nn.Module, image_size: int) -> list[list[int]]:
    """``[C, H, W]`` of the map after each stage."""
    if not isinstance(model, StagedModel) or model.num_stages < 2:
        raise UserError(
            f"{role}: found a {type(model).__name__}, which does not run in stages, allowed is a "
            "StagedModel"
        )

    def run(image: Tensor) -> list[list[int]]:
        maps = stage_maps(model, image)
        model.route_head(maps[-1])
        return [list(x.shape[1:]) for x in maps]

    return dry_run(model, image_size, run)
