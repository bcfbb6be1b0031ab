"""How fast the shipped loop is, beside a plain loop and beside the bare limit.

Our loop, its EA form and the limit alternate step by step, so that a busy machine slows each alike,
and are compared step by step. The plain loop has a process of its own that sleeps while the others
run: our loop changes settings of its whole process (`keep_freed_memory`) that a plain loop would
not have.
"""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from eakd.config import compose
from eakd.data import Pipeline
from eakd.data.base import Batch, ImageData
from eakd.distillers.base import Distiller, Progress
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
Loop = Iterator[None]  # each ``next`` runs one step

WARMUP_STEPS = 10

OURS, EA, LIMIT, PLAIN = "ours", "ours, EA weighting", "limit", "plain"

log = logging.getLogger(__name__)


def random_images(count: int, size: int, classes: int, seed: int) -> ImageData:
    """A set of noise with the shape of a real one."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, classes, count, dtype=np.int64)
    names = tuple(map(str, range(classes)))
    return ImageData("noise", names, images, labels, images[:1], labels[:1], "noise")


def build_method(
    config: DictConfig, compute: Compute, weighting: Weighting
) -> tuple[Distiller, Recipe, torch.optim.SGD]:
    """The method around fresh networks, as `run` builds it, and its optimiser."""
    recipe = Recipe(epochs=1, batch_size=config.batch_size)
    fold = config.fold_batchnorm and get_object(config.distiller._target_).folds_teacher
    teacher, student = models(config, compute, fold)
    distiller = build_distiller(config, student, teacher, weighting, config.image_size, compute)
    distiller.train()
    return distiller, recipe, make_optimizer(distiller, recipe, compute)


def our_loop(config: DictConfig, data: ImageData, compute: Compute, weighting: Weighting) -> Loop:
    """`train_epoch` exactly as `fit` calls it."""
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
    for epoch in itertools.count(1):
        meters = Meters(compute.device, len(data.train_labels))
        progress = Progress(config.seed, epoch, 0)
        for _ in train_epoch(distiller, pipeline, recipe, compute, optimizer, meters, progress):
            yield


def limit_loop(config: DictConfig, compute: Compute) -> Loop:
    """What the method cannot avoid, on one resident batch.

    Its network passes (`Distiller.passes`), forward, and backward from ready-made gradients, and
    the optimiser: no loss, no weight, no augmentation, no metric.
    """
    distiller, _, optimizer = build_method(config, compute, Weighting("uniform"))
    shape = config.batch_size, 3, config.image_size, config.image_size
    # In the memory format in which the pipeline leaves its batches.
    views = torch.rand(2, *shape, device=compute.device)
    weak, strong = (view.to(memory_format=torch.channels_last) for view in views)
    targets = torch.zeros(config.batch_size, dtype=torch.int64, device=compute.device)
    batch = Batch(weak, targets, targets, strong)
    gradients: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # the same work, but random gradients do not blow the weights up
    for step in itertools.count():
        # Methods that sample take the same samples as in `our_loop`.
        epoch, step = step // config.steps + 1, step % config.steps
        with compute.autocast():
            made = tree_leaves(distiller.passes(batch, Progress(config.seed, epoch, step)))
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


class Times(NamedTuple):
    """Seconds of one step, in turn: ``wall`` on the clock, ``cpu`` of all threads of the process.

    CPU time suffers less from other programs. On an accelerator it is the time to launch the work.
    """

    wall: list[float]
    cpu: list[float]


class Ratio(NamedTuple):
    """The median of several measurements of a ratio, and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} to {self.high:.4f})"


def paired_ratio(rounds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """The ratio of two loops' step times, from the (numerators, denominators) of each round.

    A round gives the median of ``numerators[i] / denominators[i]``, and the rounds give the result:
    two equal loops differ by up to a percent all through a round, but not in the next one, when
    they are built afresh. The interval lies between two order statistics of the rounds, as the sign
    test puts it; it assumes only that they are independent. Below six rounds it is their whole
    range, which is less than 95 %.
    """
    ratios = sorted(statistics.median(n / d for n, d in zip(*pair, strict=True)) for pair in rounds)
    # The binomial distribution's 2.5 % quantile, by the normal one.
    rank = max(int((len(ratios) - 1.96 * len(ratios) ** 0.5) / 2), 0)
    return Ratio(statistics.median(ratios), ratios[rank], ratios[-1 - rank])


def alternate(loops: dict[str, Loop], steps: int, device: torch.device) -> dict[str, Times]:
    """Time ``steps`` steps of each loop, all loops in turn, in all orders in turn."""
    times = {name: Times([], []) for name in loops}
    # An accelerator works through a queue; waiting after each step would leave it idle.
    stretch = 1 if device.type == "cpu" else 10
    orders = itertools.cycle(itertools.permutations(loops))
    for order in itertools.islice(orders, -(-steps // stretch)):
        for name in order:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(stretch):
                next(loops[name])
            torch.zeros((), device=device).item()  # wait for the device
            times[name].wall.append((time.perf_counter() - wall) / stretch)
            times[name].cpu.append((time.process_time() - cpu) / stretch)
    return times


def seconds_per_step(config: DictConfig, steps: int) -> float:
    """Median of ``steps`` steps of our loop, after as many to warm up, for plans."""
    check_number("steps", steps, at_least=1, integer=True)
    compute = build_compute(config)
    data = random_images(4 * config.batch_size, config.image_size, config.num_classes, config.seed)
    loops = {"ours": our_loop(config, data, compute, Weighting("uniform"))}
    alternate(loops, steps, compute.device)
    return statistics.median(alternate(loops, steps, compute.device)["ours"].wall)


def peak_memory(loop: Loop, compute: Compute, steps: int = 4) -> int:
    """Bytes of tensors at the worst moment of a fresh loop's first steps, weights included."""
    gc.collect()  # what earlier loops left must not be freed meanwhile
    if compute.device.type == "cuda":
        before = torch.cuda.memory_allocated(compute.device)
        torch.cuda.reset_peak_memory_stats(compute.device)
        for _ in range(steps):
            next(loop)
        return torch.cuda.max_memory_allocated(compute.device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        for _ in range(steps):
            next(loop)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def one_round(config: DictConfig, data: ImageData, compute: Compute, turn: int) -> dict[str, Times]:
    """Build our loop, its EA form and the limit afresh, in an order of that turn, and time them."""
    loops = {
        OURS: our_loop(config, data, compute, Weighting("uniform")),
        EA: our_loop(config, data, compute, Weighting("ea")),
        LIMIT: limit_loop(config, compute),
    }
    orders = list(itertools.permutations(loops))
    loops = {name: loops[name] for name in orders[turn % len(orders)]}
    alternate(loops, WARMUP_STEPS, compute.device)
    return alternate(loops, config.steps, compute.device)


def benchmark(config: DictConfig) -> str:
    """Measure and return a Markdown table; also writes JSON to ``config.output``.

    One method beside the plain loop, or every method of ``config.methods`` without it.
    """
    check_number("steps", config.steps, at_least=10, integer=True)
    check_number("rounds", config.rounds, at_least=1, integer=True)
    compute = build_compute(config)
    measure = measure_method if config.methods is None else measure_methods
    numbers, lines = measure(config, compute)
    if config.output:
        write_json(Path(config.output), numbers)
    title = (
        f"{config.teacher.name} → {config.student.name}, batch {config.batch_size}, "
        f"{compute.device.type}, ours in {compute.precision}"
    )
    if config.methods is None:
        title = f"{config.distiller.name}, {title}"
    return "\n".join([title, "", *lines])


def measure_method(config: DictConfig, compute: Compute) -> tuple[dict[str, Any], list[str]]:
    """Samples per second of our loop, the plain one and the limit."""
    samples = config.steps * config.batch_size
    data = random_images(samples, config.image_size, config.num_classes, config.seed)
    with plain_process(config, compute) as plain:
        plain()  # warm-up: compilation, worker start, allocator
        rounds, plain_seconds = [], []
        for turn in range(config.rounds):
            rounds.append(one_round(config, data, compute, turn))
            plain_seconds.append(plain() / config.steps)
    seconds = {name: steps(rounds, name).wall for name in (OURS, EA, LIMIT)}
    seconds[PLAIN] = plain_seconds
    speeds = {
        name: config.batch_size / statistics.median(values) for name, values in seconds.items()
    }
    numbers = {
        **describe(config, compute),
        **compare(rounds),
        "samples_per_second": speeds,
        "ours_over_plain": speeds[OURS] / speeds[PLAIN],
        "peak_memory_bytes": compute.peak_memory(),
        "step_seconds": seconds,
    }
    lines = [
        "| loop | samples/s |",
        "|---|---|",
        *(f"| {name} | {speed:.0f} |" for name, speed in speeds.items()),
        "",
        f"ours / plain: {numbers['ours_over_plain']:.2f}",
        f"ours / limit: {1 / numbers['step_over_limit'].median:.3f}",
        f"EA step / uniform step: {numbers['ea_over_uniform_time']}",
    ]
    return numbers, lines


def measure_methods(config: DictConfig, compute: Compute) -> tuple[dict[str, Any], list[str]]:
    """Each method against its limit, and its EA form against it."""
    samples = config.steps * config.batch_size
    data = random_images(samples, config.image_size, config.num_classes, config.seed)
    numbers = {**describe(config, compute), "methods": {}}
    lines = [
        "| method | step ms | CPU ms | limit ms | step / limit | CPU / limit CPU | EA step / step "
        "| EA CPU / CPU | EA memory / memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in config.methods:
        one = config.copy()
        one.distiller = compose([f"distiller={name}"], "benchmark").distiller
        rounds = [one_round(one, data, compute, turn) for turn in range(config.rounds)]
        plain, ea = (
            peak_memory(our_loop(one, data, compute, Weighting(kind)), compute)
            for kind in ("uniform", "ea")
        )
        found = compare(rounds)
        medians = {
            "step_ms": 1000 * statistics.median(steps(rounds, OURS).wall),
            "cpu_ms": 1000 * statistics.median(steps(rounds, OURS).cpu),
            "limit_ms": 1000 * statistics.median(steps(rounds, LIMIT).wall),
        }
        memory = {"step_memory_bytes": plain, "ea_step_memory_bytes": ea}
        numbers["methods"][name] = {**medians, **found, **memory}
        cells = [
            *(f"{value:.2f}" for value in medians.values()),
            *(str(found[key]) for key in found),
            f"{ea / plain:.4f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        log.info(lines[-1])
    return numbers, lines


def describe(config: DictConfig, compute: Compute) -> dict[str, Any]:
    return {
        "method": config.distiller.name if config.methods is None else None,
        "teacher": config.teacher.name,
        "student": config.student.name,
        "batch_size": config.batch_size,
        "device": str(compute.device),
        "precision": compute.precision,
        "threads": torch.get_num_threads(),
    }


def steps(rounds: list[dict[str, Times]], name: str) -> Times:
    """All steps of one loop."""
    parts = zip(*(times[name] for times in rounds), strict=True)
    return Times(*(list(itertools.chain.from_iterable(part)) for part in parts))


def compare(rounds: list[dict[str, Times]]) -> dict[str, Ratio]:
    def ratio(top: str, bottom: str, clock: str) -> Ratio:
        return paired_ratio(
            [(getattr(times[top], clock), getattr(times[bottom], clock)) for times in rounds]
        )

    return {
        "step_over_limit": ratio(OURS, LIMIT, "wall"),
        "step_over_limit_cpu": ratio(OURS, LIMIT, "cpu"),
        "ea_over_uniform_time": ratio(EA, OURS, "wall"),
        "ea_over_uniform_cpu": ratio(EA, OURS, "cpu"),
    }
