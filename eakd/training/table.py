"""A file of many blocks that is built once: resumable, checked, written by one process at a time.

``<folder>/<name>.bin`` holds the blocks, ``<folder>/table.json`` what they are of and a CRC-32 of
each that is finished. A block is recorded after it lies on the disk, so building can be killed
anywhere and goes on; opening reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from eakd.errors import UserError
from eakd.files import write_json
from eakd.training.lock import Locked, RunLock
from eakd.training.protocol import duration
from eakd.training.reading import read_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A table on the disk, be it there or not.

    Args:
        root: where tables lie.
        facts: all that its numbers depend on; ``weights``, ``data`` and ``precision`` are part of
            its folder's name.
        sizes: bytes of each block.
        unit: what a block is, for progress bars.
        file: name of the file of blocks.
        about: what it holds, in words.
    """

    root: Path
    facts: dict[str, Any]
    sizes: tuple[int, ...]
    unit: str = "block"
    file: str = "blocks.bin"
    about: str = ""

    @property
    def folder(self) -> Path:
        """Digests of weights, data and everything else, and the precision."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        weights, data = self.facts["weights"][:16], self.facts["data"][:16]
        return self.root / f"{weights}-{data}-{self.facts['precision']}-{digest[:8]}"

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.sizes)

    def __str__(self) -> str:
        about = f"{self.about}, " if self.about else ""
        return f"{about}{self.size / 1e6:,.1f} MB in {self.folder}"

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        return list(pairwise(accumulate(self.sizes, initial=0)))

    def missing(self) -> list[int]:
        """The blocks that are not there, or are not what was written: every byte is read."""
        checksums, path = self._checksums(), self.folder / self.file
        try:
            if path.stat().st_size != self.size or not any(each is not None for each in checksums):
                return list(range(len(self.sizes)))
            found = np.memmap(path, np.uint8, "r")
        except OSError:
            return list(range(len(self.sizes)))
        return [
            block
            for block, (start, stop) in enumerate(self._bounds)
            if checksums[block] is None or zlib.crc32(found[start:stop]) != checksums[block]
        ]

    def _checksums(self) -> list[int | None]:
        record, count = read_json(self.folder / "table.json"), len(self.sizes)
        found = record.get("checksums") if isinstance(record, dict) else None
        whole = isinstance(found, list) and len(found) == count
        return found if whole and record.get("facts") == self.facts else [None] * count

    def open(self) -> np.ndarray | None:
        """``(size,)`` uint8 on the disk, read as needed; ``None`` if not whole."""
        if self.missing():
            return None
        # "c": torch wants memory that may be written to; the file is not.
        return np.memmap(self.folder / self.file, np.uint8, "c")

    def build(self, compute: Callable[[int], bytes], show_bar: bool = False) -> None:
        """Ask ``compute`` for the bytes of each block that is missing.

        One process at a time builds; others wait until it is done.

        Raises:
            UserError: it has no room on the disk, or its folder cannot be written.
        """
        self._check_room()
        log.info("teacher.table: building %s", self)
        try:
            lock = self._lock()
            try:
                self._fill(compute, lock, show_bar)
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
        needed = sum(self.sizes[block] for block in self.missing())
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

    def _fill(self, compute: Callable[[int], bytes], lock: RunLock, show_bar: bool) -> None:
        """Ask for what is missing now that no one else writes."""
        missing, checksums, bounds = self.missing(), self._checksums(), self._bounds
        for block in missing:
            checksums[block] = None
        path, began = self.folder / self.file, time.perf_counter()
        bar = tqdm(missing, desc="teacher.table", unit=self.unit, disable=not show_bar)
        with bar, path.open("r+b" if path.exists() else "x+b") as file:
            file.truncate(self.size)
            for done, block in enumerate(bar):
                found, (start, stop) = compute(block), bounds[block]
                if len(found) != stop - start:
                    raise ValueError(f"block {block}: {len(found)} bytes, not {stop - start}")
                file.seek(start)
                file.write(found)
                file.flush()
                os.fsync(file.fileno())
                lock.check()
                checksums[block] = zlib.crc32(found)
                write_json(
                    self.folder / "table.json", {"facts": self.facts, "checksums": checksums}
                )
                if not done and len(missing) > 1:
                    seconds = (time.perf_counter() - began) * (len(missing) - 1)
                    log.info("teacher.table: about %s to go", duration(seconds))


def placed(numbers: Tensor, device: torch.device) -> Tensor:
    """On an accelerator with room to spare; else where they are."""
    if device.type != "cuda":
        return numbers
    room = torch.cuda.mem_get_info(device)[0] / 2
    return numbers.to(device) if numbers.numel() * numbers.itemsize <= room else numbers


def computed_by(device: torch.device) -> str:
    """What rounds a teacher's numbers there: on a CPU, where bits are promised, in detail."""
    if device.type != "cpu":
        return device.type
    return f"cpu {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def in_training_mode(teacher: nn.Module) -> bool:
    """Whether any part of it is."""
    return any(module.training for module in teacher.modules())


def check_frozen(teacher: nn.Module) -> None:
    """Refuse a teacher in training mode, which says something else each time it is asked.

    Raises:
        UserError: it is.
    """
    if in_training_mode(teacher):
        raise UserError("teacher: found it in training mode, allowed is teacher.eval()")
