"""From image files to padded batches on the device.

Threads decode, and nothing else: Pillow lets others work meanwhile, so that a few threads are
enough, share what is known of the set, and cost no start. Resizing, mirroring and padding happen on
the device, image by image, into one buffer. All the randomness of an epoch follows from
``(seed, epoch)``, so an epoch can be entered at any step, whatever the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from eakd.data.pipeline import stream
from eakd.detection.boxes import BoxBatch, BoxData
from eakd.errors import UserError, check_boolean, check_choice, check_number, shortened
from eakd.workers import usable_cores

DIVISOR = 32  # of padded sides, so that all levels of a pyramid halve evenly; as published


class BoxPipeline:
    """Training and evaluation batches of a detection set.

    Training is one endless row of batches, pass after pass over the images in random order. Wide
    and tall images are collected apart, so that little of a batch is padding, and a batch comes
    when it is full: all of them have ``batch_size`` images, and what is left of a pass waits for
    the next.

    Args:
        data: the set.
        batch_size: images of a training step.
        accumulate: micro-batches that a step is cut into; with more than one, `epoch` gives lists.
        steps_per_epoch: batches that count as an epoch; ``None`` for one pass, rounded up.
        device: where batches are wanted.
        seed: of order, sizes and mirroring.
        short_sides: a training image's shorter side becomes one of these, at random.
        long_side: no side becomes longer, the other one is then shorter in proportion.
        test_short_side: the shorter side in evaluations.
        flip: mirror every other image, at random.
        keep_empty: train on images without boxes too.
        eval_batch_size: images of an evaluation step. Padding touches what a network sees near
            the edges, so that other sizes of batches may give slightly other detections.
        workers: threads that decode; 0 for none, ``None`` for one less than there are cores, at
            most 8.
        part: ``(rank, size)``: `epoch` gives part number ``rank`` of ``size`` of each batch.

    Attributes:
        members: ``(N,)`` int64, the images that are trained on.

    Raises:
        UserError: an argument out of range, or a batch that is too small for so many parts.
    """

    def __init__(
        self,
        data: BoxData,
        *,
        batch_size: int,
        accumulate: int = 1,
        steps_per_epoch: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        short_sides: Sequence[int] = (640, 672, 704, 736, 768, 800),
        long_side: int = 1333,
        test_short_side: int = 800,
        flip: bool = True,
        keep_empty: bool = False,
        eval_batch_size: int = 1,
        workers: int | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        self.data, self.part, self.device = data, part, torch.empty(0, device=device).device
        self.batch_size = check_number("batch_size", batch_size, at_least=1, integer=True)
        self.accumulate = check_number("accumulate", accumulate, at_least=1, integer=True)
        self.seed = check_number("seed", seed, at_least=0, integer=True)
        self.long_side = check_number("long_side", long_side, at_least=32, integer=True)
        self.short_sides = _check_sides(short_sides, self.long_side)
        self.test_short_side = check_number(
            "test_short_side", test_short_side, at_least=32, at_most=self.long_side, integer=True
        )
        check_boolean("flip", flip)
        check_boolean("keep_empty", keep_empty)
        self.flip = flip
        self.eval_batch_size = check_number(
            "eval_batch_size", eval_batch_size, at_least=1, integer=True
        )
        if workers is None:
            workers = min(8, max(1, len(usable_cores()) - 1))
        self.workers = check_number("workers", workers, at_least=0, at_most=256, integer=True)

        boxes = data.splits["train"]
        used = np.arange(len(boxes)) if keep_empty else np.unique(boxes.owners[boxes.trainable])
        self.members = torch.from_numpy(used)
        self._wide = torch.from_numpy(boxes.sizes[used, 1] > boxes.sizes[used, 0])
        if steps_per_epoch is None:
            steps_per_epoch = -(-len(used) // batch_size)
        self.steps_per_epoch = check_number(
            "steps_per_epoch", steps_per_epoch, at_least=1, integer=True
        )
        if part[1] > batch_size:  # a process without an image would have no loss
            raise UserError(
                f"batch_size: found {batch_size}, allowed with {part[1]} processes is at least "
                f"{part[1]} samples in every step"
            )

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def num_classes(self) -> int:
        """Without background."""
        return self.data.num_classes

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    @property
    def train_size(self) -> int:
        """Images that are trained on."""
        return len(self.members)

    @property
    def splits(self) -> tuple[str, ...]:
        """What `evaluation` knows."""
        return tuple(self.data.splits)

    def step_size(self, step: int) -> int:
        """Images of a training step, of all parts together."""
        return self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[BoxBatch | list[BoxBatch]]:
        """The training batches of an epoch, or this part of each; lists of micro-batches.

        Args:
            epoch: counted from 1.
            start: steps to leave out; the others are the same as without it.

        Raises:
            UserError: a number out of range, or, once it is needed, a damaged image.
        """
        epoch = check_number("epoch", epoch, at_least=1, integer=True)
        check_number("start", start, at_least=0, at_most=self.steps_per_epoch, integer=True)
        return self._epoch(epoch, start)

    def _epoch(self, epoch: int, start: int) -> Iterator[BoxBatch | list[BoxBatch]]:
        steps = slice((epoch - 1) * self.steps_per_epoch + start, epoch * self.steps_per_epoch)
        shape = self.steps_per_epoch, self.batch_size
        draw = stream(self.seed, epoch, "view")
        sides = torch.tensor(self.short_sides)[
            torch.randint(len(self.short_sides), shape, generator=draw)
        ]
        flips = (torch.rand(shape, generator=draw) < 0.5) & self.flip
        rows = [
            tuple(each.tensor_split(self.part[1])[self.part[0]] for each in row)
            for row in zip(self._batches(steps), sides[start:], flips[start:], strict=True)
        ]
        for row, images in zip(rows, self._decoded("train", [row[0] for row in rows]), strict=True):
            cut = torch.arange(len(row[0])).tensor_split(self.accumulate)
            made = [
                self._batch(
                    "train", *(each[p] for each in row), [images[i] for i in p.tolist()]
                )._replace(start=int(p[0]))
                for p in cut
                if len(p)
            ]
            yield made if self.accumulate > 1 else made[0]

    def _batches(self, steps: slice) -> Tensor:
        """``(steps, batch_size)``: the images of some batches of the endless row."""
        size, images = self.batch_size, len(self.members)
        # Up to so many images wait in the two groups when the last batch is full.
        needed = steps.stop * size + 2 * (size - 1)
        order = torch.cat(
            [
                torch.randperm(images, generator=stream(self.seed, each, "order"))
                for each in range(-(-needed // images))
            ]
        )
        wide = self._wide[order]
        groups = [group.nonzero()[:, 0] for group in (wide, ~wide)]
        full = torch.cat([group[: len(group) // size * size].view(-1, size) for group in groups])
        full = full[full[:, -1].argsort()]  # as they become full
        return self.members[order[full[steps]]]

    def evaluation(self, split: str, part: tuple[int, int] = (0, 1)) -> Iterator[BoxBatch]:
        """A split in its own order, all of its images, without mirroring.

        Args:
            split: one of `splits`.
            part: ``(rank, size)`` for part number ``rank`` of ``size`` of the split.
        """
        check_choice("split", split, self.splits)
        images = torch.arange(len(self.data.splits[split])).tensor_split(part[1])[part[0]]
        rows = [row for row in images.split(self.eval_batch_size) if len(row)]
        for row, decoded in zip(rows, self._decoded(split, rows), strict=True):
            sides, flips = torch.full_like(row, self.test_short_side), torch.zeros_like(row)
            yield self._batch(split, row, sides, flips, decoded)

    def _decoded(self, split: str, rows: Iterable[Tensor]) -> Iterator[list[np.ndarray]]:
        """The images of each row, read ahead by the workers."""
        if not self.workers:
            yield from ([self.data.read(split, i) for i in row.tolist()] for row in rows)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        waiting: deque = deque()
        try:
            for row in rows:
                waiting.append([pool.submit(self.data.read, split, i) for i in row.tolist()])
                # Two images for each worker besides the row that is used now.
                if sum(map(len, waiting)) > 2 * self.workers + len(waiting[0]):
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(
        self, split: str, index: Tensor, sides: Tensor, flips: Tensor, decoded: list[np.ndarray]
    ) -> BoxBatch:
        boxes = self.data.splits[split]
        original = [tuple(boxes.sizes[i].tolist()) for i in index.tolist()]
        sizes = [
            resized(*size, side, self.long_side)
            for size, side in zip(original, sides.tolist(), strict=True)
        ]
        flipped = flips.tolist()
        targets = []
        for position, old, (height, width), flip in zip(
            index.tolist(), original, sizes, flipped, strict=True
        ):
            corners, labels = boxes.training(position)
            corners = corners * (np.array([width, height] * 2) / np.array(old[::-1] * 2))
            if flip:
                left, top, right, bottom = corners.T
                corners = np.stack([width - right, top, width - left, bottom], axis=1)
            moved = move(corners.astype(np.float32), self.device), move(labels, self.device)
            targets.append(dict(zip(("boxes", "labels"), moved, strict=True)))
        images = assemble(decoded, sizes, flipped, self.device)
        return BoxBatch(images, sizes, targets, index.to(self.device), original)


def assemble(
    decoded: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    flips: Sequence[bool],
    device: torch.device,
) -> Tensor:
    """Images ``(H, W, 3)`` uint8, resized to ``sizes`` and mirrored, as `BoxBatch.images`."""
    padded = (-(-max(lengths) // DIVISOR) * DIVISOR for lengths in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, *padded, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    for place, image, (height, width), flip in zip(images, decoded, sizes, flips, strict=True):
        _draw(place[:, :height, :width], move(image, device), flip)
    return images


def move(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on the device; only pinned memory is copied while the device computes."""
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def resized(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width once the shorter side is ``short_side``, or the longer one ``long_side``
    where it would exceed that; at least one pixel."""
    scale = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _draw(place: Tensor, image: Tensor, flip: bool) -> None:
    """Resize an image ``(H, W, 3)`` uint8 into ``place`` ``(3, h, w)``, as values in [0, 1].

    On bytes and with a filter as wide as the reduction, as Pillow does: pixels differ from Pillow's
    by one grey level at most, where a plain float interpolation is up to 55 off.
    """
    from torchvision.transforms.v2 import functional as transforms

    image = transforms.resize(image.permute(2, 0, 1), list(place.shape[1:]), antialias=True)
    place.copy_(image.flip(-1) if flip else image).div_(255)


def _check_sides(sides: object, long_side: int) -> tuple[int, ...]:
    try:
        listed = list(sides)
        found = [check_number("", s, at_least=32, at_most=long_side, integer=True) for s in listed]
    except (UserError, TypeError):
        found = []
    if not found or isinstance(sides, str):
        raise UserError(
            f"short_sides: found {shortened(sides)}, allowed is a list of integers >= 32 and <= "
            "data.long_side"
        )
    return tuple(found)
