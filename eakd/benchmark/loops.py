"""The loops that are timed, over fresh networks and noise: weights and content cost nothing."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from eakd.classification import Classification
from eakd.classification.build import build_distiller, build_model, strong_view, why_no_table
from eakd.composing import compose
from eakd.data import Pipeline
from eakd.data.base import Batch, ImageData
from eakd.distillers.base import Distiller, Progress
from eakd.distillers.kd import kd_loss
from eakd.errors import UserError, check_number
from eakd.models.inference import prepare_teacher
from eakd.training.device import Compute
from eakd.training.loop import train_epoch
from eakd.training.meters import Meters
from eakd.training.optimizer import make_optimizer
from eakd.training.schedule import Recipe
from eakd.training.table import placed
from eakd.training.task import samples
from eakd.weighting import Weighting

Block = Callable[[], float]  # runs one block of steps and returns its seconds
Loop = Iterator[None]  # each ``next`` runs one step

OURS, EA, LIMIT, PLAIN = "ours", "ours, EA weighting", "limit", "plain"
FLOAT32 = "ours, float32"
TABLE, STUDENT = "ours, teacher's table", "student alone"


# Of a block at least: an accelerator is waited for after ten steps only.
LEAST_STEPS = 10


def load_data(config: DictConfig) -> ImageData:
    """Noise for an epoch of ``config.steps`` steps."""
    return random_images(config, config.steps)


def random_images(config: DictConfig, steps: int) -> ImageData:
    """Noise with the shape of a real set, enough for an epoch of ``steps`` steps.

    Raises:
        UserError: a size out of range.
    """
    for key in ("batch_size", "image_size", "num_classes"):
        check_number(key, config[key], at_least=1, integer=True)
    count, size = steps * config.batch_size, config.image_size
    rng = np.random.default_rng(config.seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, config.num_classes, count, dtype=np.int64)
    return ImageData(
        name="noise",
        classes=tuple(map(str, range(config.num_classes))),
        train_images=images,
        train_labels=labels,
        test_images=images[:1],
        test_labels=labels[:1],
        fingerprint="noise",
    )


def build_networks(config: DictConfig, compute: Compute, fold: bool) -> tuple[nn.Module, nn.Module]:
    """Fresh teacher and student, placed as a run places them.

    Args:
        fold: fold the teacher's batch norms into its convolutions.
    """
    torch.manual_seed(config.seed)
    teacher, student = (
        compute.place(build_model(config[role], role, config.num_classes))
        for role in ("teacher", "student")
    )
    teacher.eval().requires_grad_(False)
    if fold:
        example = torch.rand(2, 3, config.image_size, config.image_size, device=compute.device)
        teacher = prepare_teacher(teacher, example, compute.dtype, compute.channels_last)
        teacher = compute.place(teacher)
    return teacher, student


def build_method(
    config: DictConfig, compute: Compute, weighting: Weighting
) -> tuple[Distiller, Recipe, torch.optim.Optimizer]:
    """The method around fresh networks, as a run builds it, a recipe, and its optimiser.

    Raises:
        UserError: a wrong value, named.
    """
    recipe = Recipe(epochs=1, batch_size=config.batch_size)
    fold = config.fold_batchnorm and get_object(config.distiller._target_).folds_teacher
    teacher, student = build_networks(config, compute, fold)
    distiller = build_distiller(config, student, teacher, weighting, config.image_size, compute)
    distiller.train()
    return distiller, recipe, make_optimizer(distiller, recipe, compute)


def build_loops(config: DictConfig, data: ImageData, compute: Compute) -> dict[str, Loop]:
    """Our loop, its EA form and the limit; each builds its networks at its first step."""
    return {
        OURS: our_loop(config, data, compute, Weighting("uniform")),
        EA: our_loop(config, data, compute, Weighting("ea")),
        LIMIT: limit_loop(config, compute),
    }


def build_table_loops(config: DictConfig, data: ImageData, compute: Compute) -> dict[str, Loop]:
    """Our loop with a table in the teacher's place, our loop, and what then cannot be avoided."""
    alone = config.copy()
    alone.distiller = compose(["distiller=none"], "benchmark").distiller
    return {
        TABLE: our_loop(config, data, compute, Weighting("uniform"), table=True),
        OURS: our_loop(config, data, compute, Weighting("uniform")),
        STUDENT: limit_loop(alone, compute),
    }


def our_loop(
    config: DictConfig,
    data: ImageData,
    compute: Compute,
    weighting: Weighting,
    table: bool = False,
) -> Loop:
    """`train_epoch` exactly as `fit` calls it, and thus with all that `fit` records of a step.

    Args:
        table: a table of noise answers for the teacher.

    Raises:
        UserError: at the first step, a method for which no table can answer.
    """
    task = Classification()
    distiller, recipe, optimizer = build_method(config, compute, weighting)
    pipeline = Pipeline(
        data,
        batch_size=config.batch_size,
        device=compute.device,
        seed=config.seed,
        mean=list(config.data.mean),
        std=list(config.data.std),
        strong_view=strong_view(recipe, type(distiller)),
    )
    if table:
        reason = why_no_table(distiller, pipeline)
        if reason is not None:
            raise UserError(f"table: found true, allowed is false: {reason}")
        answers = torch.randn(pipeline.views * len(data.train_labels), config.num_classes)
        pipeline.answers = placed(answers, compute.device)
    for epoch in itertools.count(1):
        meters = Meters(compute.device, samples(pipeline))
        progress = Progress(config.seed, epoch, step=0)
        for _ in train_epoch(
            task, distiller, pipeline, recipe, compute, optimizer, meters, progress
        ):
            yield


def limit_loop(config: DictConfig, compute: Compute) -> Loop:
    """What the method cannot avoid, on one resident batch.

    Its network passes (`Distiller.passes`), forward, and backward from ready-made gradients, and
    the optimiser: no loss, no weight, no augmentation, no metric.

    Raises:
        UserError: at the first step, a method without ``passes``.
    """
    distiller, _, optimizer = build_method(config, compute, Weighting("uniform"))
    yield from passes_alone(distiller, optimizer, one_batch(config, compute), compute, config)


def one_batch(config: DictConfig, compute: Compute) -> Batch:
    """A batch of noise on the device, with two views."""
    count, size = config.batch_size, config.image_size
    views = torch.rand(2, count, 3, size, size, device=compute.device)
    # In the memory format in which the pipeline leaves its batches.
    weak, strong = (view.to(memory_format=torch.channels_last) for view in views)
    targets = torch.zeros(count, dtype=torch.int64, device=compute.device)
    return Batch(images=weak, targets=targets, index=targets, strong=strong)


def passes_alone(
    distiller: Distiller,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    compute: Compute,
    config: DictConfig,
) -> Loop:
    """`limit_loop` of a method that is built, on a batch or micro-batches of any domain."""
    gradients: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # the same work, but random gradients do not blow the weights up
    for done in itertools.count():
        # Methods that sample take the same samples as in `our_loop`.
        epoch, step = divmod(done, config.steps)
        for each in batch if isinstance(batch, list) else [batch]:
            with compute.autocast():
                made = tree_leaves(distiller.passes(each, Progress(config.seed, epoch + 1, step)))
            ends = [x for x in made if isinstance(x, Tensor) and x.requires_grad]
            for x in ends:
                if (x.shape, x.dtype) not in gradients:
                    gradients[x.shape, x.dtype] = torch.randn_like(x)
            torch.autograd.backward(ends, [gradients[x.shape, x.dtype] for x in ends])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


class PlainImages(Dataset):
    """What torchvision's users write: a PIL image and a chain of transforms for each sample."""

    def __init__(self, data: ImageData, mean: list[float], std: list[float]):
        self.data = data
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.train_images.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.data.train_images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data.train_images[index])
        return self.transform(image), int(self.data.train_labels[index])


def plain_loop(config: DictConfig, compute: Compute, data: ImageData | None = None) -> Block:
    """Float32, NCHW, a DataLoader with PIL transforms, numbers read on the CPU at every step."""
    data = load_data(config) if data is None else data
    images = PlainImages(data, list(config.data.mean), list(config.data.std))
    loader = DataLoader(
        images, config.batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
    plain = Compute(compute.device, "float32", compile=False, channels_last=False)
    teacher, student = build_networks(config, plain, fold=False)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def block() -> float:
        batches = iter(loader)
        # The workers fill their queue while the other loops run; what they prepared is not timed.
        for _ in range(loader.num_workers * 2 + 1):
            next(batches)
        began, seen = time.perf_counter(), 0
        for images, targets in batches:
            images, targets = images.to(plain.device), targets.to(plain.device)
            with torch.no_grad():
                taught = teacher(images).logits
            logits = student(images).logits
            loss = 0.1 * F.cross_entropy(logits, targets) + 0.9 * kd_loss(logits, taught).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            top5 = logits.cpu().topk(5).indices == targets.cpu()[:, None]
            top5[:, :1].float().sum().item(), top5.float().sum().item()
            seen += len(targets)
        # Scaled to the samples of one whole block.
        return (time.perf_counter() - began) * len(data.train_images) / seen

    return block


@contextmanager
def plain_process(
    config: DictConfig,
    compute: Compute,
    build: Callable[[DictConfig, Compute], Block] = plain_loop,
) -> Iterator[Block]:
    """A plain loop in a process of its own, one block for each call."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_plain_loop, args=(config, compute, theirs, build))
    process.start()
    theirs.close()  # so that a dead process is an error here, not a wait for ever

    def block() -> float:
        ours.send(True)
        return ours.recv()

    try:
        yield block
    finally:
        with suppress(BrokenPipeError):  # it died and has said why
            ours.send(False)
        process.join()


def _serve_plain_loop(
    config: DictConfig,
    compute: Compute,
    pipe: Connection,
    build: Callable[[DictConfig, Compute], Block],
) -> None:
    if config.threads is not None:  # torch's own setting is not inherited
        torch.set_num_threads(config.threads)
    block = build(config, compute)
    while pipe.recv():
        pipe.send(block())
