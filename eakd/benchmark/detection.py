"""The loops that are timed with detectors: fresh networks on the batches of a set of boxes.

All of them get their batches from the product's pipeline: what is compared is what happens to one.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss

from eakd.benchmark.loops import EA, FLOAT32, LIMIT, OURS, Block, Loop, passes_alone
from eakd.config import needs_teacher
from eakd.detection import Detection
from eakd.detection.build import build_data, build_detector
from eakd.detection.faster_rcnn import frozen_teacher
from eakd.detection.pipeline import BoxPipeline
from eakd.distillers.base import Distiller, Progress
from eakd.distillers.kd import kd_loss
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.loop import train_epoch
from eakd.training.meters import Meters
from eakd.training.optimizer import make_optimizer
from eakd.training.schedule import Recipe
from eakd.training.task import samples
from eakd.weighting import Weighting

LEAST_STEPS = 2  # a step of large images takes seconds
LACKS = ("methods", "table")  # what is not measured of detectors


def load_data(config: DictConfig) -> None:
    """Nothing: each loop has a pipeline of its own."""


def measure_more(
    config: DictConfig, data: None, compute: Compute
) -> tuple[dict[str, Any], list[str]]:
    """Nothing but the speed of training."""
    return {}, []


def build_loops(config: DictConfig, data: Any, compute: Compute) -> dict[str, Loop]:
    """Our loop, in float32 too, its EA form and the limit.

    Args:
        data: nothing, each loop has a pipeline of its own.
    """
    return {
        OURS: our_loop(config, compute, Weighting("uniform")),
        FLOAT32: our_loop(config, in_float32(compute), Weighting("uniform")),
        EA: our_loop(config, compute, Weighting("ea")),
        LIMIT: limit_loop(config, compute),
    }


def in_float32(compute: Compute) -> Compute:
    return replace(compute, precision="float32")


def build_pipeline(config: DictConfig, recipe: Recipe, compute: Compute) -> BoxPipeline:
    """The batches of ``config.data``."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    for key in ("mean", "std"):  # of noise; networks normalise these images
        config.data.pop(key, None)
    return build_data(config, config.seed, compute, recipe)


def make_recipe(config: DictConfig) -> Recipe:
    """An epoch of ``config.steps`` steps, at a rate that keeps random weights in bounds."""
    return Recipe(epochs=1, batch_size=config.batch_size, steps_per_epoch=config.steps, lr=1e-4)


def build_networks(
    config: DictConfig, data: BoxPipeline, compute: Compute, fold: bool
) -> tuple[nn.Module | None, nn.Module]:
    """Fresh teacher, if the method has one, and student, placed as a run places them."""
    torch.manual_seed(config.seed)
    node = config.student
    if "backbone_weights" in node:  # which cost no time once they are there
        node = OmegaConf.merge(node, {"backbone_weights": None})
    student, teacher = compute.place(build_detector(node, "student", data)), None
    if needs_teacher(config):
        teacher = build_detector(config.teacher, "teacher", data)
        teacher = frozen_teacher(compute.move(teacher), compute.dtype, fold)
        teacher = compute.place(teacher)
    return teacher, student


def build_method(
    config: DictConfig, compute: Compute, weighting: Weighting
) -> tuple[Distiller, BoxPipeline, Recipe, torch.optim.Optimizer]:
    """The method around fresh networks, its batches, a recipe and its optimiser."""
    recipe = make_recipe(config)
    data = build_pipeline(config, recipe, compute)
    teacher, student = build_networks(config, data, compute, config.fold_batchnorm)
    networks = {"student": student, "teacher": teacher, "weighting": weighting}
    distiller = compute.move(build(config.distiller, "distiller", Distiller, **networks))
    distiller.train()
    return distiller, data, recipe, make_optimizer(distiller, recipe, compute)


def our_loop(config: DictConfig, compute: Compute, weighting: Weighting) -> Loop:
    """`train_epoch` exactly as `fit` calls it."""
    task = Detection()
    distiller, data, recipe, optimizer = build_method(config, compute, weighting)
    for epoch in itertools.count(1):
        meters = Meters(compute.device, samples(data))
        progress = Progress(config.seed, epoch, step=0)
        for _ in train_epoch(task, distiller, data, recipe, compute, optimizer, meters, progress):
            yield


def limit_loop(config: DictConfig, compute: Compute) -> Loop:
    """The method's network passes alone, on one resident batch; see `loops.limit_loop`.

    The first stage's losses are among them: torchvision computes them with its proposals.
    """
    distiller, data, _, optimizer = build_method(config, compute, Weighting("uniform"))
    batch = next(data.epoch(1))
    yield from passes_alone(distiller, optimizer, batch, compute, config)


def plain_loop(config: DictConfig, compute: Compute) -> Block:
    """KD in float32 and NCHW, put together as the published detection code is.

    The student's second stage runs twice, once for its losses and once more on the same boxes for
    the distillation; the teacher, whose norms are not folded, gets its own normalised batch and its
    whole backbone and second stage; numbers are read on the CPU at every step.
    """
    compute = replace(in_float32(compute), compile=False, channels_last=False)
    recipe = make_recipe(config)
    data = build_pipeline(config, recipe, compute)
    teacher, student = build_networks(config, data, compute, fold=False)
    student.train()
    heads = student.roi_heads
    optimizer = torch.optim.SGD(
        [p for p in student.parameters() if p.requires_grad],
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    epochs = itertools.count(1)

    def block() -> float:
        began = time.perf_counter()
        for batch in data.epoch(next(epochs)):
            images, sizes = batch.images.contiguous(), list(batch.sizes)
            maps = student.maps(images, sizes)
            proposals, first = student.rpn(ImageList(images, sizes), maps, batch.targets)
            boxes, _, labels, goals = heads.select_training_samples(proposals, batch.targets)
            logits, offsets = student.regions(maps, boxes, sizes)
            losses = [*first.values(), *fastrcnn_loss(logits, offsets, labels, goals)]
            if teacher is not None:
                logits, _ = student.regions(maps, boxes, sizes)
                with torch.no_grad():
                    taught, _ = teacher.regions(teacher.maps(images, sizes), boxes, sizes)
                losses.append(kd_loss(logits, taught, 1.0).mean())
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            [loss.item() for loss in losses]
        return time.perf_counter() - began

    return block
