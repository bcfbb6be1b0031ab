"""FCFD (Liu et al., 2023): features that work in the other network, not only look alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms
from eakd.distillers.features import difference, dry_run, mean_square, temporarily
from eakd.distillers.kd import kd_loss
from eakd.errors import UserError, check_choice, check_number
from eakd.models.base import StagedModel
from eakd.weighting import Weighting

TEACHER_BATCHNORM = ("batch", "frozen")


class Path(NamedTuple):
    """A way through both networks.

    Attributes:
        start: ``"student"`` or ``"teacher"``, which runs stages ``0 … switch - 1``.
        switch: the first stage that the other network runs, the classifier included.
    """

    start: str
    switch: int


def mixed_paths(num_stages: int) -> list[Path]:
    """Every path that changes the network once, after stage 1 at the earliest."""
    return [Path(*p) for start in ("teacher", "student") for p in _switches(start, num_stages)]


def matching_loss(x: Tensor, target: Tensor, last: bool = False) -> Tensor:
    """Squared difference of two maps, ``(N, C, H, W) -> (N,)``; its mean is the usual MSE.

    Args:
        x, target: maps of one shape; ``target`` takes no gradient.
        last: the maps of the last stage are also compared as the classifier sees them, after ReLU
            and average pool.
    """
    target = target.detach()
    loss = mean_square(difference(x, target))
    if last:
        loss = loss + mean_square(difference(_pool(x), _pool(target)))
    return loss


def _pool(x: Tensor) -> Tensor:
    return F.relu(x).mean(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
