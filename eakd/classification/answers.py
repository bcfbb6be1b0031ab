"""A frozen teacher's logits for every view of every training image, computed once.

A crop and a flip make few views of an image, so a teacher that is asked about all of them never has
to be asked again. A table is a folder: ``logits.bin`` holds float32 numbers, view after view, and
``table.json`` what they are of and a CRC-32 of each view that is finished. A view is recorded after
it lies on the disk, so building can be killed anywhere and goes on; opening reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eakd.data import Pipeline
from eakd.errors import UserError
from eakd.files import write_json
from eakd.training.device import Compute
from eakd.training.lock import Locked, RunLock
from eakd.training.protocol import duration
from eakd.training.reading import read_json

log = logging.getLogger(__name__)

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
    place = compute.device.type
    if place == "cpu":  # where bits are promised
        place = f"cpu {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"
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
        "place": place,
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

    @property
    def folder(self) -> Path:
        """Digests of weights, data and everything else, and the precision."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        weights, data = self.facts["weights"][:16], self.facts["data"][:16]
        return self.root / f"{weights}-{data}-{self.facts['precision']}-{digest[:8]}"

    @property
    def size(self) -> int:
        """Bytes."""
        return 4 * int(np.prod(self.facts["shape"]))

    def __str__(self) -> str:
        views, images, _ = self.facts["shape"]
        return f"{views} views of {images:,} images, {self.size / 1e6:,.1f} MB in {self.folder}"

    def missing(self) -> list[int]:
        """The views that are not there, or are not what was written: every byte is read."""
        views = self.facts["shape"][0]
        checksums, path = self._checksums(), self.folder / "logits.bin"
        try:
            if path.stat().st_size != self.size or not any(checksums):
                return list(range(views))
            rows = np.memmap(path, np.uint8, "r").reshape(views, -1)
        except OSError:
            return list(range(views))
        return [
            v for v in range(views) if checksums[v] is None or zlib.crc32(rows[v]) != checksums[v]
        ]

    def _checksums(self) -> list[int | None]:
        record, views = read_json(self.folder / "table.json"), self.facts["shape"][0]
        found = record.get("checksums") if isinstance(record, dict) else None
        whole = isinstance(found, list) and len(found) == views
        return found if whole and record.get("facts") == self.facts else [None] * views

    def open(self) -> Tensor | None:
        """``(views * images, classes)`` on the disk, read as needed; ``None`` if not whole."""
        if self.missing():
            return None
        # "c": torch wants memory that may be written to; the file is not.
        logits = np.memmap(self.folder / "logits.bin", np.float32, "c")
        return torch.from_numpy(logits).view(-1, self.facts["shape"][2])

    def build(
        self, teacher: nn.Module, data: Pipeline, compute: Compute, show_bar: bool = False
    ) -> None:
        """Ask ``teacher`` for what is missing.

        One process at a time builds; others wait until it is done.

        Raises:
            UserError: it has no room on the disk, its folder cannot be written, or the teacher is
                in training mode, in which it says something else each time.
        """
        if in_training_mode(teacher):
            raise UserError("teacher: found it in training mode, allowed is teacher.eval()")
        self._check_room()
        log.info("teacher.table: building %s", self)
        try:
            lock = self._lock()
            try:
                self._fill(teacher, data, compute, lock, show_bar)
            finally:
                lock.release()
        except OSError as error:
            raise UserError(
                f"teacher.table: found {self.folder}, which cannot be written "
                f"({error.strerror or error}), allowed is true with another checkpoint_root, or "
                "false"
            ) from error

    def _check_room(self) -> None:
        """Before anything is written: a full disk would stop other runs too."""
        folder = self.folder.absolute()
        needed = len(self.missing()) * self.size // self.facts["shape"][0]
        place = next(each for each in (folder, *folder.parents) if each.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"teacher.table: found {free / 1e6:,.1f} MB free for {needed / 1e6:,.1f} MB of "
                f"{self}, allowed is true with room for it, or false"
            )

    def _lock(self) -> RunLock:
        waiting = False
        while True:
            try:
                return RunLock(self.folder).acquire()
            except Locked as error:
                if not waiting:
                    log.info("teacher.table: waiting for the process that builds it (%s)", error)
                waiting = True
                time.sleep(1)

    def _fill(
        self, teacher: nn.Module, data: Pipeline, compute: Compute, lock: RunLock, show_bar: bool
    ) -> None:
        """Ask for what is missing now that no one else writes."""
        missing, checksums = self.missing(), self._checksums()
        for view in missing:
            checksums[view] = None
        images, path = self.facts["shape"][1], self.folder / "logits.bin"
        began = time.perf_counter()
        bar = tqdm(missing, desc="teacher.table", unit="view", disable=not show_bar)
        with bar, path.open("r+b" if path.exists() else "x+b") as file:
            file.truncate(self.size)
            for done, view in enumerate(bar):
                rows = torch.arange(view * images, (view + 1) * images)
                answers = ask(teacher, data, compute, rows).cpu().numpy().tobytes()
                file.seek(view * len(answers))
                file.write(answers)
                file.flush()
                os.fsync(file.fileno())
                lock.check()
                checksums[view] = zlib.crc32(answers)
                record = {"facts": self.facts, "checksums": checksums}
                write_json(self.folder / "table.json", record)
                if not done and len(missing) > 1:
                    seconds = (time.perf_counter() - began) * (len(missing) - 1)
                    log.info("teacher.table: about %s to go", duration(seconds))


def in_training_mode(teacher: nn.Module) -> bool:
    """Whether any part of it is."""
    return any(module.training for module in teacher.modules())


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


def placed(answers: Tensor, device: torch.device) -> Tensor:
    """On an accelerator with room to spare; else where it is."""
    if device.type != "cuda":
        return answers
    room = torch.cuda.mem_get_info(device)[0] / 2
    return answers.to(device) if answers.numel() * 4 <= room else answers
