"""Accuracy of logits, for the package's evaluation and for loops of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eakd.errors import UserError


def correct(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Number of samples whose target is among the ``k`` largest of ``(N, C)`` logits."""
    if k == 1:
        return (logits.argmax(dim=-1) == targets).sum()
    top = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return (top == targets[:, None]).any(dim=-1).sum()


def accuracy(logits: Tensor, targets: Tensor, topk: Sequence[int] = (1, 5)) -> Tensor:
    """Top-k accuracies of a batch, in percent, as `eakd.classification.evaluate` counts them::

        top1, top5 = accuracy(logits, targets)

    Args:
        logits: ``(N, C)``, ``N ≥ 1``.
        targets: ``(N,)`` int64.
        topk: each k ≥ 1; one above ``C`` is ``C``.

    Returns:
        ``(len(topk),)`` on the logits' device, without waiting for it and without gradient.

    Raises:
        UserError: shapes that do not fit, a k below 1.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or not len(targets):
        raise UserError(
            f"logits, targets: found shapes {tuple(logits.shape)} and {tuple(targets.shape)}, "
            "allowed are (N, C) and (N,) with one sample or more"
        )
    if not topk or min(topk) < 1:
        raise UserError(f"topk: found {tuple(topk)}, allowed are numbers from 1 on")
    counts = torch.stack([correct(logits.detach(), targets, k) for k in topk])
    return 100.0 * counts / len(targets)
