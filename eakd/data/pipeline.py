"""From decoded images to augmented, normalised batches on the device.

Images stay uint8 until the last moment and are augmented in batches, on their device. All the
randomness of an epoch is drawn on the CPU before its first step, from ``(seed, epoch)`` alone: so
an epoch can be entered at any step, and every device sees the same batches.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from eakd.data.base import Batch, ImageData
from eakd.data.geometry import View, crop
from eakd.data.randaugment import rotate
from eakd.data.split import stratified
from eakd.errors import UserError, check_choice, check_number, check_numbers

# Sets up to this size are kept on the device: Tiny-ImageNet-200 (1.35 GB) is, ImageNet is not.
RESIDENT_BYTES = 2 << 30

# Steps whose strong views are made at once: many small kernels cost the same for any number of
# images, and more images than these would leave the processor's cache.
STRONG_STEPS = 4


class StrongView(Protocol):
    """A strong augmentation, in two halves: what is random, and what that does to images."""

    def draw(self, n: int, height: int, width: int, generator: torch.Generator) -> NamedTuple:
        """A named tuple of tensors ``(n, …)`` on the CPU, drawn from a CPU generator."""

    def apply(self, images: Tensor, parameters: NamedTuple) -> Tensor:
        """Strong views of ``(N, H, W, 3)`` uint8, cropped and flipped already, on any device.

        Each depends on its own parameters alone.
        """


def stream(*key: object) -> torch.Generator:
    """A CPU random stream for ``key``; streams of different keys are unrelated."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


class Pipeline:
    """Training and evaluation batches of a data set.

    Args:
        data: the set.
        batch_size: samples of a training step. One step sees the whole training set where that
            is smaller.
        accumulate: micro-batches that a step is cut into; with more than one, `epoch` gives lists.
        steps_per_epoch: leave out the steps of an epoch after this many; ``None`` for none.
        device: where batches are wanted.
        seed: of the order and the augmentation.
        mean, std: per channel, of pixels in [0, 1].
        crop_padding: pixels of black around a random crop; 0 for none.
        flip: mirror every other image, at random.
        rotation: largest random rotation in degrees, either way; 0 for none.
        eval_batch_size: samples of an evaluation step.
        val_fraction: part of each training class that becomes the split ``"val"``, is evaluated
            but never trained on; 0 for none.
        val_seed: of that choice, which is the same for every ``seed``.
        drop_last: leave out the last training step of an epoch if it is not full.
        resident: keep the images on the device: ``True``, ``False`` (batches are moved one by
            one) or ``"auto"``, for sets up to `RESIDENT_BYTES`.
        strong_view: what makes `Batch.strong`, from a crop and flip of its own; ``None`` for no
            such view.
        part: ``(rank, size)``: `epoch` gives part number ``rank`` of ``size`` of each batch. The
            parts make up the batch, augmentation included, and their sizes differ by 1 at most.

    Attributes:
        answers: ``(views * M, C)`` float32, on the device or on the CPU: a teacher's logits for
            each view of each of the ``M`` training images, view after view (see `view`). If set,
            training batches bring theirs along, as `Batch.teacher_logits`.
        answered: the sizes of batches that do. A single image takes other kernels than several, so
            that a teacher's logits for it round differently.

    Raises:
        UserError: an argument out of range, or a batch that is too small for so many parts.
    """

    answers: Tensor | None = None
    answered: Container[int] = range(2, sys.maxsize)

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        accumulate: int = 1,
        steps_per_epoch: int | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 4,
        flip: bool = True,
        rotation: float = 0.0,
        eval_batch_size: int = 500,
        val_fraction: float = 0.0,
        val_seed: int = 0,
        drop_last: bool = False,
        resident: bool | str = "auto",
        strong_view: StrongView | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        batch_size = check_number("batch_size", batch_size, at_least=1, integer=True)
        accumulate = check_number("accumulate", accumulate, at_least=1, integer=True)
        eval_batch_size = check_number("eval_batch_size", eval_batch_size, at_least=1, integer=True)
        seed = check_number("seed", seed, at_least=0, integer=True)
        val_seed = check_number("val_seed", val_seed, at_least=0, at_most=2**32 - 1, integer=True)
        crop_padding = check_number("crop_padding", crop_padding, at_least=0, integer=True)
        rotation = check_number("rotation", rotation, at_least=0, at_most=180)
        val_fraction = check_number("val_fraction", val_fraction, at_least=0, at_most=0.9)
        check_choice("flip", flip, (True, False))
        check_choice("drop_last", drop_last, (True, False))
        check_choice("resident", resident, (True, False, "auto"))
        mean = check_numbers("mean", mean, 3)  # one a channel
        std = check_numbers("std", std, 3, above=0)

        self.data = data
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.crop_padding, self.flip, self.rotation = crop_padding, flip, rotation
        self.mean, self.std = list(map(float, mean)), list(map(float, std))
        self.drop_last = drop_last
        self.strong_view = strong_view
        self.part = part

        val, train = np.empty(0, np.int64), np.arange(len(data.train_labels))
        if val_fraction:
            val, train = stratified(
                data.train_labels, lambda count: int(val_fraction * count + 0.5), val_seed
            )
            if not len(val):
                raise UserError(
                    f"val_fraction: found {val_fraction:g}, allowed is 0 or enough for one sample "
                    f"of a class ({np.bincount(data.train_labels).max()} samples)"
                )
        self._members = {"train": train, "val": val, "test": np.arange(len(data.test_labels))}
        self._members = {name: torch.from_numpy(m) for name, m in self._members.items() if len(m)}
        if drop_last and batch_size > self.train_size:
            raise UserError(
                f"batch_size: found {batch_size}, allowed is at most {self.train_size}, the size "
                f"of the training set, because drop_last would leave no step"
            )

        self.steps_per_epoch = self._steps_of_a_pass()
        if steps_per_epoch is not None:
            check_number(
                "steps_per_epoch",
                steps_per_epoch,
                at_least=1,
                at_most=self.steps_per_epoch,
                integer=True,
            )
            self.steps_per_epoch = steps_per_epoch

        # Another number of steps in one process than in another would be a deadlock.
        smallest = self.step_size(self.steps_per_epoch - 1)
        if part[1] > 1 and smallest < part[1]:
            raise UserError(
                f"batch_size: found {batch_size}, with {smallest} of {self.train_size} samples in "
                f"the last step of an epoch, allowed with {part[1]} processes is at least "
                f"{part[1]} samples in every step"
            )

        size = data.train_images.nbytes + data.test_images.nbytes
        # On the device, a batch is an index; from the host it is a copy that the step waits for.
        keep = size <= RESIDENT_BYTES if resident == "auto" else resident
        self._images, self._labels = {}, {}
        for split, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        ):
            tensor = _as_tensor(images)
            self._images[split] = tensor.to(device) if keep else tensor
            self._labels[split] = _as_tensor(labels).to(device)
        # The same memory: "val" is a choice of rows, not a copy.
        self._images["val"], self._labels["val"] = self._images["train"], self._labels["train"]
        self.device = self._labels["train"].device  # "cuda" has become "cuda:0"

        # Whole rows of pixels: an inner dimension of three would be slow on a CPU.
        width = data.train_images.shape[2]
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32).repeat(width).to(device)
            for values in (mean, std)
        )

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return self.data.train_images.shape[1]

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    @property
    def train_size(self) -> int:
        """Samples of the training split."""
        return len(self._members["train"])

    @property
    def splits(self) -> tuple[str, ...]:
        """What `evaluation` knows: ``"train"``, ``"test"`` and, if set aside, ``"val"``."""
        return tuple(self._members)

    @property
    def views(self) -> int | None:
        """How many augmented views an image has; ``None`` with a rotation, which has no end."""
        return None if self.rotation else self._places**2 * (2 if self.flip else 1)

    @property
    def _places(self) -> int:
        return 2 * self.crop_padding + 1

    def _steps_of_a_pass(self) -> int:
        if self.drop_last:
            return self.train_size // self.batch_size
        return -(-self.train_size // self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def step_size(self, step: int) -> int:
        """Samples of a training step (counted from 0), of all parts together."""
        return min(self.batch_size, self.train_size - step * self.batch_size)

    def batch_sizes(self) -> set[int]:
        """Those of all training batches that `epoch` gives, micro-batches and parts alike."""
        last = self.steps_per_epoch - 1  # all before are full
        wholes = {self.step_size(step) for step in (0, last)}
        pieces = (p for n in wholes for p in _pieces(_part(n, self.part), self.accumulate))
        return {piece.stop - piece.start for piece in pieces}

    def has_split(self, split: str) -> bool:
        """Whether `evaluation` knows ``split``."""
        return split in self._members

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch | list[Batch]]:
        """The training batches of an epoch, or this part of each; lists of micro-batches.

        Args:
            epoch: counted from 1.
            start: steps to leave out; the others are the same as without it.

        Raises:
            UserError: a number out of range.
        """
        epoch = check_number("epoch", epoch, at_least=1, integer=True)
        check_number("start", start, at_least=0, at_most=self.steps_per_epoch, integer=True)
        return self._epoch(epoch, start)

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch | list[Batch]]:
        n = self.train_size
        order = self._members["train"][
            torch.randperm(n, generator=stream(self.seed, epoch, "order"))
        ]
        # On both sides: images that stay on the host are indexed there, without asking the device.
        index = order.to(self.device)
        weak = self._draw_view(epoch, "weak")
        strong = None
        if self.strong_view is not None:
            strong = self._strong_views(epoch, start, order, index)
        rows = None
        if self.answers is not None:  # looked up where they lie
            rows = (self._number(weak) * len(self._labels["train"]) + index).to(self.answers.device)
        for step in range(start, self.steps_per_epoch):
            made = []
            for at in self._micro_batches(step):
                images = self._fetch("train", order[at], index[at])
                made.append(
                    Batch(
                        images=self._normalize(self._apply(weak, at, images)),
                        targets=self._labels["train"][index[at]],
                        index=index[at],
                        strong=None if strong is None else next(strong),
                        teacher_logits=None if rows is None else self._look_up(rows[at]),
                    )
                )
            yield made if self.accumulate > 1 else made[0]

    def _micro_batches(self, step: int) -> list[slice]:
        """Where this part's micro-batches of a step lie in the epoch's order."""
        first = step * self.batch_size
        pieces = _pieces(_part(self.step_size(step), self.part), self.accumulate)
        return [slice(first + piece.start, first + piece.stop) for piece in pieces]

    def _strong_views(
        self, epoch: int, start: int, order: Tensor, index: Tensor
    ) -> Iterator[Tensor]:
        """Those of each micro-batch in turn."""
        geometry = self._draw_view(epoch, "strong")
        height, width = self.data.train_images.shape[1:3]
        for first in range(start, self.steps_per_epoch, STRONG_STEPS):
            pieces, draws = [], []
            for step in range(first, min(first + STRONG_STEPS, self.steps_per_epoch)):
                # Of the whole step, so that all parts and pieces together get its numbers.
                generator = stream(self.seed, epoch, step, "strong_view")
                drawn = self.strong_view.draw(self.step_size(step), height, width, generator)
                at = self._micro_batches(step)
                own = slice(*(end - step * self.batch_size for end in (at[0].start, at[-1].stop)))
                draws.append([values[own] for values in drawn])
                pieces += at
            parameters = type(drawn)(*map(torch.cat, zip(*draws, strict=True)))
            members, places = (torch.cat([x[at] for at in pieces]) for x in (order, index))
            view = View(*(torch.cat([x[at] for at in pieces]) for x in geometry))
            images = self._fetch("train", members, places)
            images = self.strong_view.apply(self._apply(view, slice(None), images), parameters)
            sizes = [at.stop - at.start for at in pieces]
            yield from map(self._normalize, images.split(sizes))

    def evaluation(self, split: str, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """A split in its own order, without augmentation.

        Args:
            split: ``"train"``, ``"test"``, or ``"val"`` where there is one.
            part: ``(rank, size)`` for part number ``rank`` of ``size`` of the split.

        Returns:
            Batches. `Batch.index` counts in the test set for ``"test"``, else in the training set.
        """
        check_choice("split", split, self._members)
        return self._evaluation(split, part)

    def _evaluation(self, split: str, part: tuple[int, int]) -> Iterator[Batch]:
        # In the set's own order: sums in another order would round to other digits.
        members_of_part = self._members[split][_part(len(self._members[split]), part)]
        for members in members_of_part.split(self.eval_batch_size):
            index = members.to(self.device)
            images = self._normalize(self._fetch(split, members, index))
            yield Batch(images, self._labels[split][index], index)

    def _fetch(self, split: str, members: Tensor, index: Tensor) -> Tensor:
        """``(N, H, W, 3)`` uint8 on the device; ``index`` is the device's copy of ``members``."""
        images = self._images[split]
        # Not indexed by brackets: this copies whole images, where those go byte by byte.
        if images.device == self.device:
            return images.index_select(0, index)
        batch = images.index_select(0, members)
        # Only pinned memory is copied while the device computes.
        if self.device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self.device, non_blocking=True)

    def view(self, numbers: Tensor, members: Tensor) -> Tensor:
        """Images of the training set, augmented as wanted.

        Args:
            numbers: ``(N,)`` int64 in ``[0, views)``: row of the crop, then column, then flip.
            members: ``(N,)`` int64 on the CPU, positions in the training set.

        Returns:
            ``(N, 3, H, W)`` as in `Batch.images`.
        """
        places, flips = numbers // (2 if self.flip else 1), numbers % 2 == 1
        offsets = torch.stack((places // self._places, places % self._places), dim=1)
        geometry = View(*(x.to(self.device) for x in (torch.zeros(len(places)), offsets, flips)))
        images = self._fetch("train", members, members.to(self.device))
        return self._normalize(self._apply(geometry, slice(None), images))

    def _number(self, view: View) -> Tensor:
        """``(N,)`` int64, the number of each image's view."""
        place = view.offsets[:, 0] * self._places + view.offsets[:, 1]
        return 2 * place + view.flips if self.flip else place

    def _look_up(self, rows: Tensor) -> Tensor | None:
        if len(rows) not in self.answered:
            return None
        found = self.answers.index_select(0, rows)
        if found.device != self.device and self.device.type == "cuda":
            found = found.pin_memory()
        return found.to(self.device, non_blocking=True)

    def _draw_view(self, epoch: int, name: str) -> View:
        """Everything is drawn, used or not: switching the flips off leaves the crops alone."""
        # The whole epoch at once, on the CPU: what a step draws depends neither on the device nor
        # on the steps before it, so that an epoch can be entered anywhere.
        generator = stream(self.seed, epoch, name)
        n = self.train_size
        angles = self.rotation * (2 * torch.rand(n, dtype=torch.float64, generator=generator) - 1)
        if self.device.type == "mps":  # which has no float64
            angles = angles.float()
        offsets = torch.randint(2 * self.crop_padding + 1, (n, 2), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        return View(*(draws.to(self.device) for draws in (angles, offsets, flips)))

    def _apply(self, view: View, at: slice, images: Tensor) -> Tensor:
        """Rotation, crop, flip: the order of the published recipes, which rotate or crop."""
        angles, offsets, flips = (draws[at] for draws in view)
        if self.rotation:
            images = rotate(images, angles)
        flips = flips if self.flip else None
        if self.crop_padding:
            return crop(images, offsets, self.crop_padding, flips)
        if flips is not None:
            images = torch.where(flips[:, None, None, None], images.flip(2), images)
        return images

    def _normalize(self, images: Tensor) -> Tensor:
        """The operations of torchvision's ToTensor and Normalize, so to the last bit on a CPU."""
        rows = images.flatten(2).float().div_(255).sub_(self._mean).div_(self._std)
        return rows.view(images.shape).permute(0, 3, 1, 2)


def _part(count: int, part: tuple[int, int]) -> slice:
    """Where part ``(rank, size)`` of ``count`` samples lies."""
    rank, size = part
    return slice(rank * count // size, (rank + 1) * count // size)


def _pieces(whole: slice, count: int) -> list[slice]:
    """``whole`` in ``count`` pieces, without empty ones."""
    length = whole.stop - whole.start
    parts = (_part(length, (place, count)) for place in range(count))
    return [slice(whole.start + p.start, whole.start + p.stop) for p in parts if p.stop > p.start]


def _as_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the same memory (a cached set stays on disk until it is read)."""
    return torch.from_numpy(np.require(array, requirements="W"))
