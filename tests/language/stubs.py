"""Models that say what they are told: stored logits, as a plain head or as an odd one."""

from types import SimpleNamespace

import torch
from torch import nn

from eakd.language.batches import Batch


class Said(nn.Module):
    """Answers any batch with ``logits`` ``(N, L, V)``; the gradient is in ``said.grad``.

    Args:
        plain: the logits are hidden states before an identity for a head, else there is no head.
    """

    def __init__(self, logits, plain):
        super().__init__()
        self.said = nn.Parameter(torch.as_tensor(logits).clone())
        size = self.said.shape[-1]
        self.config = SimpleNamespace(vocab_size=size)
        self.head = None
        if plain:
            self.head = nn.Linear(size, size, bias=False).to(self.said.dtype)
            nn.init.eye_(self.head.weight)
        self._eakd_plain = plain

    @property
    def base_model(self):
        return lambda **_: SimpleNamespace(last_hidden_state=self.said)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.said)


def batch_of(labels, count=None):
    """The batch of stored ``labels`` ``(N, L)``: what follows each token, -100 for nothing."""
    labels = torch.as_tensor(labels)
    mask = labels != -100
    lengths = tuple(mask.sum(1).tolist())
    return Batch(
        tokens=labels.clamp_min(0),
        places=mask.flatten().nonzero()[:, 0],
        targets=labels[mask],
        row=torch.arange(len(labels)).repeat_interleave(torch.tensor(lengths)),
        lengths=lengths,
        index=torch.arange(len(labels)),
        count=count or sum(lengths),
        rows=len(labels),
    )
