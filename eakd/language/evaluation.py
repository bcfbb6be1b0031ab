"""Loss and accuracy of a model's predictions of a split's answers, given all that is before."""

from __future__ import annotations

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
