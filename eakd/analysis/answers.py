"""What a network says of the images of a split, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from eakd.analysis.cache import Arrays
from eakd.analysis.runs import Run
from eakd.data.base import Batch
from eakd.errors import UserError
from eakd.factors import KINDS, MATCHED, SHUFFLED
from eakd.training.device import Compute
from eakd.weighting import Weighting, entropy

FLOAT16_MAX = 65504.0

SEGMENTS = 10


@dataclass(frozen=True)
class Answers:
    """What a network says of the ``N`` images of a split without augmentation, in its own order.

    Attributes:
        logits: ``(N, C)`` float32.
        pooled: ``(N, D)`` float16 (float32 where that is too small), the classifier's input.
        labels: ``(N,)`` int64.
        index: ``(N,)`` int64, positions in the data set.
        classes: ``(C,)`` names.
        key: digest of all that decides them.
    """

    logits: np.ndarray
    pooled: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    classes: np.ndarray
    key: str

    @cached_property
    def predictions(self) -> np.ndarray:
        """``(N,)`` int64."""
        return self.logits.argmax(axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """``(N,)`` bool."""
        return self.predictions == self.labels

    def only(self, members: np.ndarray) -> Answers:
        """The answers for some of the images."""
        rows = ("logits", "pooled", "labels", "index")
        return replace(self, **{name: getattr(self, name)[members] for name in rows})

    def entropy(self, temperature: float) -> np.ndarray:
        """``(N,)`` in nats at τ′."""
        return entropy(torch.from_numpy(self.logits), temperature).numpy()


@torch.inference_mode()
def ask(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> Arrays:
    """Logits, pooled features, labels and indices of all batches; see `Answers`."""
    logits, pooled, labels, index = [], [], [], []
    for batch in batches:
        with compute.autocast():
            output = model(batch.images, features=False)
        logits.append(output.logits.float().cpu())
        pooled.append(output.pooled.float().cpu())
        labels.append(batch.targets.cpu())
        index.append(batch.index.cpu())
    features = torch.cat(pooled)
    if features.abs().max() < FLOAT16_MAX:
        features = features.half()
    whole = {"logits": torch.cat(logits), "labels": torch.cat(labels), "index": torch.cat(index)}
    return {name: x.numpy() for name, x in {**whole, "pooled": features}.items()}


def sample_weights(run: Run, student: Answers, teacher: Answers) -> np.ndarray:
    """The weight of each sample, ``(N,)``, by the run's formula, see `weighting_of`.

    Of raw logits, also where the run standardises them for its loss.
    """
    arrays = student.logits, teacher.logits, student.labels
    return weighting_of(run)(*map(torch.from_numpy, arrays)).numpy()


def weighting_of(run: Run) -> Weighting:
    """A run's own formula; EA's where it weighs every sample alike, or by a function of its own."""
    known = run.config.get("weighting")
    settings = known if isinstance(known, dict) else {}
    kind = (MATCHED | SHUFFLED).get(settings.get("kind", "ea"), settings.get("kind", "ea"))
    own = {key: settings[key] for key in ("temperature", "gamma") if key in settings}
    return Weighting(
        kind if kind in KINDS and kind != "uniform" else "ea",
        run.entropy_temperature,
        settings.get("max_entropy"),
        **own,
    )


def segments(ranking: np.ndarray, count: int = SEGMENTS) -> list[np.ndarray]:
    """Positions of the ``(N,)`` samples in ``count`` equal parts, the lowest first.

    Stable, so that samples of equal rank do not move between runs; sizes differ by one at most.

    Raises:
        UserError: fewer samples than parts.
    """
    if len(ranking) < count:
        raise UserError(f"samples: found {len(ranking)}, allowed are at least {count}, one a part")
    return np.array_split(np.argsort(ranking, kind="stable"), count)


def top_share(ranking: np.ndarray, share: float) -> np.ndarray:
    """Positions of the highest ``share`` of the samples, at least one."""
    return np.argsort(ranking, kind="stable")[-max(1, round(share * len(ranking))) :]
