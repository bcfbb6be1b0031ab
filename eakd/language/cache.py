"""A frozen teacher's last hidden states for every answer token of the training set, computed once.

Texts are not augmented, so a teacher says the same of a row in every epoch. Its logits would be
50,257 numbers a token; the states before its head are some hundreds, and the head makes the logits
of them again, exactly as in a pass. So nothing is approximated: a run with the table differs from
one without by the rounding of kernels, which depends on what else is in a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eakd.language.batches import TextData, collate, cut
from eakd.language.models import split
from eakd.language.text import fingerprint
from eakd.training.device import Compute
from eakd.training.table import Table, check_frozen, computed_by, placed

ROWS = 256  # of a block


@dataclass(frozen=True)
class HiddenStates:
    """What a table holds.

    Args:
        states: ``(T, D)`` of all answer tokens, one row's after the other's.
        starts: where each row's begin, and T.
    """

    states: Tensor
    starts: list[int]

    def of(self, rows: list[int], device: torch.device | str) -> Tensor:
        """``(M, D)`` of some rows, in their order."""
        parts = [self.states[self.starts[row] : self.starts[row + 1]] for row in rows]
        return torch.cat(parts).to(device, non_blocking=True)


@dataclass(frozen=True)
class HiddenTable:
    """The table of a teacher and a training set, be it there or not.

    Args:
        root: where tables lie.
        teacher: in eval mode, on the device.
        weights: digest of its directory.
        data: on the device.
    """

    root: Path
    teacher: nn.Module
    weights: str
    data: TextData
    compute: Compute

    @property
    def width(self) -> int:
        return split(self.teacher).weight.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the states: what the teacher's body returns."""
        return torch.bfloat16 if self.compute.precision == "bf16" else torch.float32

    @property
    def lengths(self) -> list[int]:
        return [len(row.response_ids) for row in self.data.train]

    @cached_property
    def table(self) -> Table:
        """The file behind it, named by all that its numbers depend on."""
        bytes_each = self.width * self.dtype.itemsize
        lengths = self.lengths
        sizes = [
            bytes_each * sum(lengths[start : start + ROWS])
            for start in range(0, len(lengths), ROWS)
        ]
        facts = {
            "weights": self.weights,
            "data": fingerprint(self.data.train),
            "precision": self.compute.precision,
            "tokens_per_batch": self.data.tokens_per_batch,
            "place": computed_by(self.compute.device),
            "shape": [sum(lengths), self.width],
        }
        return Table(self.root, facts, tuple(sizes), f" x {ROWS} rows", "hidden.bin")

    def open(self) -> HiddenStates | None:
        """``None`` if the table is not whole."""
        found = self.table.open()
        if found is None:
            return None
        kind = np.int16 if self.dtype == torch.bfloat16 else np.float32
        states = torch.from_numpy(found.view(kind)).view(self.dtype).view(-1, self.width)
        starts = list(accumulate(self.lengths, initial=0))
        return HiddenStates(placed(states, self.compute.device), starts)

    def build(self, show_bar: bool = False) -> None:
        """Ask the teacher for what is missing; see `Table.build`.

        Raises:
            UserError: see there and `check_frozen`.
        """
        check_frozen(self.teacher)
        self.table.build(lambda block: self._block(block * ROWS), show_bar)

    @torch.no_grad()
    def _block(self, first: int) -> bytes:
        rows = self.data.train[first : first + ROWS]
        order = sorted(
            range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].response_ids)
        )
        found: dict[int, Tensor] = {}
        at = 0
        for piece in cut([rows[i] for i in order], self.data.tokens_per_batch):
            batch = collate(piece, range(len(piece)), self.compute.device)
            with self.compute.autocast():
                states = hidden_states(self.teacher, batch).to(self.dtype).cpu()
            for place, part in enumerate(states.split(list(batch.lengths)), at):
                found[order[place]] = part
            at += len(piece)
        joined = torch.cat([found[i] for i in range(len(rows))]).contiguous()
        return joined.view(torch.uint8).numpy().tobytes()


def hidden_states(model: nn.Module, batch: Any) -> Tensor:
    """``(M, D)`` of a batch's answer tokens."""
    body = split(model).body
    states = body(input_ids=batch.tokens, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[batch.places]
