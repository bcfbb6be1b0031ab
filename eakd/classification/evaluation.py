"""Accuracy of a model over a split."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from eakd.data.base import Batch
from eakd.topk import correct
from eakd.training.device import Compute


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    compute: Compute,
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, in eval mode; the model's mode is put back.

    ``batches`` are those of this process; the accuracy is that of all processes together.
    """
    training = model.training
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=compute.device)
    samples = 0
    for batch in batches:
        with compute.autocast():
            logits = model(batch.images, features=False).logits
        counts += torch.stack([correct(logits, batch.targets, k) for k in (1, 5)])
        samples += len(batch.targets)
    model.train(training)
    totals = zip(*compute.processes.gather([*counts.tolist(), samples]), strict=True)
    top1, top5, samples = map(sum, totals)
    top1, top5 = 100 * top1 / samples, 100 * top5 / samples
    return {"top1": top1, "top5": top5}
