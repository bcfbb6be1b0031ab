"""A frozen teacher's logits for every view of every training image, computed once.

A crop and a flip make few views of an image, so a teacher that is asked about all of them never has
to be asked again. `Table` tells how its answers lie on the disk: float32 numbers, view after view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eakd.data import Pipeline
from eakd.training.device import Compute
from eakd.training.table import Table, check_frozen, computed_by

# Images of a teacher pass. All passes have a multiple of 16, as most batches of a run do: kernels
# round the rest of a batch differently.
BATCH, MULTIPLE = 256, 16


def facts_of_table(
    weights: str, data: Pipeline, compute: Compute, folded: bool, network: str = ""
) -> dict[str, Any]:
    """What the numbers of a table depend on.

    Args:
        weights: digest of the teacher's weights.
        data: without a rotation, see `Pipeline.views`.
        folded: the teacher's batch norms are part of its convolutions.
        network: whatever else decides what the teacher computes, such as its input size; any text.
    """
    return {
        "weights": weights,
        "network": network,
        "data": data.fingerprint,
        "mean": data.mean,
        "std": data.std,
        "crop_padding": data.crop_padding,
        "flip": data.flip,
        "precision": compute.precision,
        "channels_last": compute.channels_last,
        "compile": compute.compile,
        "folded": folded,
        "place": computed_by(compute.device),
        "shape": [data.views, len(data.data.train_labels), data.num_classes],
    }


@dataclass(frozen=True)
class AnswerTable:
    """A table on the disk, be it there or not.

    Args:
        root: where tables lie.
        facts: of `facts_of_table`.
    """

    root: Path
    facts: dict[str, Any]

    @cached_property
    def table(self) -> Table:
        """The file behind it; a block is a view."""
        views, images, classes = self.facts["shape"]
        about = f"{views} views of {images:,} images"
        blocks = (4 * images * classes,) * views
        return Table(self.root, self.facts, blocks, "view", "logits.bin", about)

    @property
    def folder(self) -> Path:
        return self.table.folder

    @property
    def size(self) -> int:
        """Bytes."""
        return self.table.size

    def __str__(self) -> str:
        return str(self.table)

    def open(self) -> Tensor | None:
        """``(views * images, classes)`` on the disk, read as needed; ``None`` if not whole."""
        found = self.table.open()
        if found is None:
            return None
        return torch.from_numpy(found.view(np.float32)).view(-1, self.facts["shape"][2])

    def build(
        self, teacher: nn.Module, data: Pipeline, compute: Compute, show_bar: bool = False
    ) -> None:
        """Ask ``teacher`` for what is missing; see `Table.build`.

        Raises:
            UserError: see there and `check_frozen`.
        """
        check_frozen(teacher)
        images = self.facts["shape"][1]

        def view(number: int) -> bytes:
            rows = torch.arange(number * images, (number + 1) * images)
            return ask(teacher, data, compute, rows).cpu().numpy().tobytes()

        self.table.build(view, show_bar)


@torch.no_grad()
def ask(teacher: nn.Module, data: Pipeline, compute: Compute, rows: Tensor) -> Tensor:
    """The teacher's logits ``(N, classes)``, float32, for rows ``(N,)`` of a table."""
    count, found = len(data.data.train_labels), []
    filled = rows[torch.arange(-(-len(rows) // MULTIPLE) * MULTIPLE) % len(rows)]
    for some in filled.split(BATCH):
        with compute.autocast():
            output = teacher(data.view(some // count, some % count), features=False)
        found.append(output.logits.float())
    return torch.cat(found)[: len(rows)]


@torch.no_grad()
def answered_sizes(
    answers: Tensor | None,
    teacher: nn.Module,
    data: Pipeline,
    compute: Compute,
    doubled: bool = False,
) -> set[int]:
    """The sizes of a run's batches for which a table says what the teacher would, bit for bit.

    Kernels round by the size of a batch, each processor's in its own way. So on a CPU the teacher
    is asked once for a batch of every size. Elsewhere no bits are promised: all sizes but 1.

    Args:
        answers: ``None`` for a table that is yet to be built.
        doubled: the method asks for two views at once, in one batch.
    """
    sizes, count = {n for n in data.batch_sizes() if n > 1}, len(data.data.train_labels)
    if compute.device.type != "cpu" or not sizes:
        return sizes
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randint(data.views * count, (2 * max(sizes),), generator=drawn)
    known = ask(teacher, data, compute, rows) if answers is None else answers[rows]
    images = data.view(rows // count, rows % count)

    def same(size: int) -> bool:
        with compute.autocast():
            found = teacher(images[:size], features=False).logits
        return torch.equal(found, known[:size])

    return {n for n in sizes if same(n) and (not doubled or same(2 * n))}
