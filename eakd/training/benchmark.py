"""How fast the shipped loop is, beside a plain loop and beside the bare limit.

All loops alternate in short blocks, so that a busy machine slows each alike. The plain loop has a
process of its own that sleeps while the others run: our loop changes settings of its whole process
(`keep_freed_memory`) that a plain loop would not have.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eakd.data import Pipeline
from eakd.data.base import ImageData
from eakd.distillers.base import Progress
from eakd.distillers.kd import kd_loss
from eakd.errors import check_number
from eakd.files import write_json
from eakd.models.inference import prepare_teacher
from eakd.training.device import Compute
from eakd.training.loop import Meters, make_optimizer, train_epoch
from eakd.training.run import build_compute, build_distiller, build_model, strong_view
from eakd.training.schedule import Recipe
from eakd.weighting import Weighting

Block = Callable[[], float]  # runs one block of steps and returns its seconds


def random_images(count: int, size: int, classes: int, seed: int) -> ImageData:
    """A set of noise with the shape of a real one."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, count, dtype=np.int64)
    names = tuple(map(str, range(classes)))
    return ImageData("noise", names, images, labels, images[:1], labels[:1], "noise")


def our_loop(config: DictConfig, data: ImageData, compute: Compute, weighting: Weighting) -> Block:
    """`train_epoch` exactly as `fit` calls it, one epoch a block."""
    recipe = Recipe(epochs=1, batch_size=config.batch_size)
    method = get_object(config.distiller._target_)
    fold = config.fold_batchnorm and method.folds_teacher
    teacher, student = models(config, compute, fold)
    pipeline = Pipeline(
        data,
        batch_size=config.batch_size,
        device=compute.device,
        seed=config.seed,
        mean=list(config.data.mean),
        std=list(config.data.std),
        strong_view=strong_view(recipe, method),
    )
    distiller = build_distiller(config, student, teacher, weighting, config.image_size, compute)
    distiller.train()
    samples = len(data.train_labels)
    optimizer = make_optimizer(distiller, recipe, compute)

    def block() -> float:
        meters = Meters(compute.device, samples)
        began = time.perf_counter()
        for _ in train_epoch(
            *(distiller, pipeline, recipe, compute, optimizer, meters, Progress(0, 1, 0))
        ):
            pass
        meters.read()
        return time.perf_counter() - began

    return block


def limit_loop(config: DictConfig, data: ImageData, compute: Compute) -> Block:
    """Teacher forward, student forward and backward, optimiser, on one resident batch."""
    teacher, student = models(config, compute, config.fold_batchnorm)
    images = torch.rand(config.batch_size, 3, config.image_size, config.image_size)
    if compute.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    images = images.to(compute.device)
    targets = torch.zeros(config.batch_size, dtype=torch.int64, device=compute.device)
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        fused=compute.device.type in ("cuda", "cpu"),
    )

    def block() -> float:
        began = time.perf_counter()
        for _ in range(config.steps):
            with compute.autocast():
                with torch.no_grad():
                    taught = teacher(images, features=False).logits
                logits = student(images, features=False).logits
                loss = F.cross_entropy(logits, targets) + kd_loss(logits, taught).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # wait for the device
        return time.perf_counter() - began

    return block


class PlainImages(Dataset):
    """What torchvision's users write: a PIL image and a chain of transforms for each sample."""

    def __init__(self, data: ImageData, size: int, mean: list[float], std: list[float]):
        from torchvision import transforms

        self.data = data
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
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


def plain_loop(config: DictConfig, data: ImageData, compute: Compute) -> Block:
    """Float32, NCHW, a DataLoader with PIL transforms, numbers read on the CPU at every step."""
    images = PlainImages(data, config.image_size, list(config.data.mean), list(config.data.std))
    loader = DataLoader(
        images, config.batch_size, shuffle=True, num_workers=2, persistent_workers=True
    )
    plain = Compute(compute.device, "float32", compile=False, channels_last=False)
    teacher, student = models(config, plain, fold=False)
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


def _serve_plain_loop(config: DictConfig, compute: Compute, pipe: Connection) -> None:
    samples = config.steps * config.batch_size
    data = random_images(samples, config.image_size, config.num_classes, config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    block = plain_loop(config, data, compute)
    while pipe.recv():
        pipe.send(block())


@contextmanager
def plain_process(config: DictConfig, compute: Compute) -> Iterator[Block]:
    """`plain_loop` in a process of its own, one block for each call."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_plain_loop, args=(config, compute, theirs))
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


def models(config: DictConfig, compute: Compute, fold: bool) -> tuple[nn.Module, nn.Module]:
    """Fresh teacher and student, placed as `run` places them."""
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


def benchmark(config: DictConfig) -> str:
    """Measure and return a Markdown table; also writes JSON to ``config.output``."""
    compute = build_compute(config)
    check_number("steps", config.steps, at_least=10, integer=True)
    check_number("rounds", config.rounds, at_least=1, integer=True)
    samples = config.steps * config.batch_size
    data = random_images(samples, config.image_size, config.num_classes, config.seed)
    with plain_process(config, compute) as plain:
        loops: dict[str, Block] = {
            "ours": our_loop(config, data, compute, Weighting("uniform")),
            "ours, EA weighting": our_loop(config, data, compute, Weighting("ea")),
            "limit": limit_loop(config, data, compute),
            "plain": plain,
        }
        for block in loops.values():
            block()  # warm-up: compilation, worker start, allocator
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        order = list(loops)
        for _ in range(config.rounds):
            for name in order:
                seconds[name].append(loops[name]())
            # Each loop follows each other in turn: the one after the plain loop finds cold caches.
            order.append(order.pop(0))
    return report(config, compute, seconds, samples)


def report(
    config: DictConfig, compute: Compute, seconds: dict[str, list[float]], samples: int
) -> str:
    def ratio(numerator: str, denominator: str) -> float:
        """Median of the ratios of neighbouring blocks."""
        pairs = zip(seconds[numerator], seconds[denominator], strict=True)
        return statistics.median(top / bottom for top, bottom in pairs)

    speeds = {name: samples / statistics.median(values) for name, values in seconds.items()}
    numbers: dict[str, Any] = {
        "method": config.distiller.name,
        "teacher": config.teacher.name,
        "student": config.student.name,
        "batch_size": config.batch_size,
        "device": str(compute.device),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
        "samples_per_second": speeds,
        "ours_over_plain": ratio("plain", "ours"),
        "ours_over_limit": ratio("limit", "ours"),
        "ea_over_uniform_time": ratio("ours, EA weighting", "ours"),
        "peak_memory_bytes": compute.peak_memory(),
        "blocks_seconds": seconds,
    }
    if config.output:
        write_json(Path(config.output), numbers)
    lines = [
        f"{config.distiller.name}, {config.teacher.name} → {config.student.name}, "
        f"batch {config.batch_size}, {compute.device.type}, ours in {compute.precision}",
        "",
        "| loop | samples/s |",
        "|---|---|",
        *(f"| {name} | {speed:.0f} |" for name, speed in speeds.items()),
        "",
        f"ours / plain: {numbers['ours_over_plain']:.2f}",
        f"ours / limit: {numbers['ours_over_limit']:.3f}",
        f"EA step / uniform step: {numbers['ea_over_uniform_time']:.4f}",
    ]
    return "\n".join(lines)
