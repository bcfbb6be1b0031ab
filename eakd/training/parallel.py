"""The processes that train one model together, one for each device, as torchrun starts them.

All see the same global batches and take a part of each. The first process speaks for all: it alone
writes files, log lines and progress bars.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from eakd.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; by default it is alone and nothing is shared.

    Every method with "all" in its first line must be called by all processes, in the same order.

    Args:
        rank: of this process, in ``[0, size)``.
        size: number of processes.
        local_rank: of this process among those of its machine: the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def launched(cls) -> Processes:
        """The processes that torchrun started together, connected; one alone without torchrun."""
        if not (dist.is_available() and dist.is_torchelastic_launched()):
            return cls()
        rank, size, local_rank = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        )
        if size > 1 and not dist.is_initialized():  # the jobs of a sweep share the connection
            cuda = torch.cuda.is_available() and dist.is_nccl_available()
            # A dead process is noticed by torchrun at once; a living one may have to wait while
            # the first decodes a large data set.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=1)
            )
            atexit.register(dist.destroy_process_group)
            if rank:
                logging.disable(logging.CRITICAL)
        return cls(rank, size, local_rank)

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """``(rank, size)``, what the data pipeline wants to know."""
        return self.rank, self.size

    def device(self, name: str) -> str:
        """The device behind the config's ``device``: with several processes, one for each.

        Raises:
            UserError: a device that the processes would have to share.
        """
        if self.size == 1:
            return name
        if name not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"device: found {name!r}, allowed with {self.size} processes is auto, cpu or cuda"
            )
        cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
        return f"cuda:{self.local_rank}" if cuda else "cpu"

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank. They travel pickled, so tensors should be on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def in_turn(self, function: Callable[[], T]) -> T:
        """Call ``function`` in all processes: in the first, which may download, then in the others.

        Raises:
            UserError: in all processes, if ``function`` raises it in any.
        """
        if self.size == 1:
            return function()
        result: Any = None
        for first in (True, False):
            problem = None
            try:
                if self.first == first:
                    result = function()
            except UserError as error:
                problem = str(error)
            for each in self.gather(problem):
                if each is not None:
                    raise UserError(each)
        return result

    def from_first(self, function: Callable[[], T]) -> T:
        """What ``function`` returns in the first process, for all; only there it is called.

        Raises:
            UserError: in all processes, if ``function`` raises it.
        """
        if self.size == 1:
            return function()
        box = [self.in_turn(lambda: function() if self.first else None)]
        dist.broadcast_object_list(box)
        return box[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` in all processes by those of the first."""
        if self.size == 1:
            return
        for tensor in tensors:
            values = tensor.detach().contiguous()  # whatever the memory format
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of all processes' values together, ``(…) -> ()``, without gradient."""
        if self.size == 1:
            return values.mean()
        total = torch.stack([values.sum(), values.new_full((), values.numel())])
        dist.all_reduce(total)
        return total[0] / total[1]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Leave in ``parameters`` the sum of all processes' gradients.

        One sum over a flat copy of all gradients. Parameters without a gradient in this step are
        left without one; they must be the same in each process.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(summed.view(gradient.shape))


ALONE = Processes()


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Replace the batch norms in ``model`` by ones over all processes; names and values stay."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
