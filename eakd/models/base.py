"""The contract every model keeps, whether it comes from this package, from timm or from a user."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.errors import UserError


class Output(NamedTuple):
    """What a model returns for ``N`` images.

    Attributes:
        logits: ``(N, C)``.
        features: one ``(N, C_i, H_i, W_i)`` map per stage, as the public zoo defines them: after
            the last ReLU for ResNet, VGG and ShuffleNet, the residual sum for WideResNet, the
            linear bottleneck for MobileNetV2. Empty if called with ``features=False``.
        preactivations: the same maps before that ReLU (for WideResNet: after the batch norm that
            the next block applies first). Equal to ``features`` where a family has no ReLU there.
        pooled: ``(N, D)``, the input of the classifier.
    """

    logits: Tensor
    features: list[Tensor]
    preactivations: list[Tensor]
    pooled: Tensor


class StagedModel(nn.Module):
    """A classifier that runs stage by stage: ``head(stage[n-1](… stage[0](images)))``.

    Subclasses set ``num_stages`` and ``num_features``, and implement `forward_stage` and `head`.

    A method that routes one network's feature through the later stages of another (FCFD) uses
    `route_stage` and `route_head` instead. They compute the same network, but cut it where that
    method's published code cuts it, which is not always where the zoo takes its features: before
    the ReLU for VGG and ShuffleNetV1, after the last 1×1 convolution for ShuffleNetV2 and
    MobileNetV2, after the last batch norm for WideResNet.

    Attributes:
        num_stages: number of stages, the stem included.
        num_features: number of channels D of `Output.pooled`, the classifier's input. A subclass
            that doesn't set it works until it is asked for, which raises `UserError`.
        stage_input: what `route_stage` and `route_head` take: ``"post"``, a map after its
            activation, or ``"pre"``, a map to which the stage itself applies the activation, if
            there is one.
    """

    num_stages: int
    stage_input: str = "post"

    # Not abstract: a cached property gives way to whatever a subclass or its instance sets. Nor an
    # AttributeError, whose message `nn.Module.__getattr__` would replace by its own.
    @cached_property
    def num_features(self) -> int:
        raise UserError(
            f"{type(self).__name__}.num_features: found none, set it to the number of channels of "
            "Output.pooled, the classifier's input"
        )

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Run stage ``index`` and return ``(feature, preactivation)``.

        ``feature`` is what stage ``index + 1`` (or the head) takes. The second value is None
        without ``preactivation=True`` and where it equals the feature.
        """
        raise NotImplementedError

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map the last feature to ``(logits, pooled)``; see `classify` for the precision."""
        raise NotImplementedError

    def route_stage(self, index: int, x: Tensor) -> Tensor:
        """Run stage ``index`` between two of the maps that may be exchanged between networks."""
        if self.stage_input == "post":
            return self.forward_stage(index, x)[0]
        feature, pre = self.forward_stage(index, F.relu(x) if index else x, preactivation=True)
        return feature if pre is None else pre

    def route_head(self, x: Tensor) -> Tensor:
        """Map what the last `route_stage` returned to logits ``(N, C)``."""
        return self.head(x if self.stage_input == "post" else F.relu(x))[0]

    def forward(self, images: Tensor, features: bool = True) -> Output:
        """Classify ``images`` ``(N, 3, H, W)``; ``features=False`` computes logits only."""
        x, posts, pres = images, [], []
        for index in range(self.num_stages):
            x, pre = self.forward_stage(index, x, preactivation=features)
            if features:
                posts.append(x)
                pres.append(x if pre is None else pre)
        logits, pooled = self.head(x)
        return Output(logits, posts, pres, pooled)


def classify(x: Tensor, classifier: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Average ``x`` ``(N, D, H, W)`` over its area and classify: ``(N, C)`` logits, ``(N, D)``.

    Runs outside autocast, in the precision of the classifier's own weights: logits feed softmaxes
    and entropies, and a bfloat16 logit of 20 is only known to 0.06.
    """
    with torch.autocast(x.device.type, enabled=False):
        pooled = x.mean((2, 3), dtype=classifier.weight.dtype)
        wide = isinstance(classifier, nn.Conv2d)
        logits = classifier(pooled[..., None, None] if wide else pooled).flatten(1)
    return logits, pooled
