"""What a model predicts of a split's answers, given all that is before; mean, or each token's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from eakd.language.batches import TextData
from eakd.language.distillers import LanguageMethod
from eakd.language.loss import Options
from eakd.training.device import Compute


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TextData, split: str, compute: Compute, vocabulary: int | None = None
) -> dict[str, float]:
    """Of all processes together; the model's mode is put back.

    Args:
        vocabulary: the tokenizer's size, see `LanguageMethod`.

    Returns:
        ``token_accuracy``, the percentage of the answers' tokens that the model finds likeliest;
        ``loss``, the mean cross-entropy of a token in nats. Both count every token the same.
    """
    training = model.training
    model.eval()
    method, sums, count = LanguageMethod(model, vocabulary=vocabulary), [0.0, 0.0], 0
    for batch in data.evaluation(split, compute.processes.part):
        with compute.autocast():
            found, _ = method.values(batch, Options())
        for place, values in enumerate((found.right, found.ce)):
            sums[place] += values.double().sum().item()
        count += len(batch.targets)
    model.train(training)
    right, loss, count = map(sum, zip(*compute.processes.gather([*sums, count]), strict=True))
    return {"token_accuracy": 100 * right / count, "loss": loss / count}


@torch.no_grad()
def token_values(
    model: nn.Module,
    teacher: nn.Module | None,
    data: TextData,
    split: str,
    compute: Compute,
    vocabulary: int,
    options: Options,
) -> dict[str, np.ndarray]:
    """Of each answer token of a split; its logits are gone when the next chunk is asked for.

    Args:
        model: in eval mode.
        teacher: beside it, or ``None``.
        vocabulary: the tokenizer's size ``V``.
        options: τ, τ′ and the divergence.

    Returns:
        ``lengths`` ``(N,)`` int64 of the answers, shortest row first; of all their ``M`` tokens,
        one answer's after the other's, the values of `TokenLosses`, ``(M,)`` float32, without those
        of a teacher if there is none; and ``bound``, log V.
    """
    method = LanguageMethod(model, teacher, vocabulary=vocabulary)
    lengths: list[int] = []
    found: dict[str, list[np.ndarray]] = {}
    for batch in data.evaluation(split):
        with compute.autocast():
            values, _ = method.values(batch, options)
        lengths.extend(batch.lengths)
        for name, each in values._asdict().items():
            if teacher is not None or name not in ("divergence", "teacher_entropy"):
                found.setdefault(name, []).append(each.float().cpu().numpy())
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return {**arrays, "lengths": np.array(lengths), "bound": np.array(math.log(vocabulary))}
