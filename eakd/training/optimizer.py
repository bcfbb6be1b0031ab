"""The optimiser of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from eakd.distillers.base import Distiller
from eakd.training.device import Compute
from eakd.training.schedule import Recipe


def make_optimizer(
    distiller: Distiller, recipe: Recipe, compute: Compute
) -> torch.optim.SGD | torch.optim.AdamW:
    """The recipe's optimiser of everything the method trains."""
    parameters = decay_groups(distiller)
    # One kernel for all parameters, where the device has such a one.
    common = {"weight_decay": recipe.weight_decay, "fused": compute.device.type in ("cuda", "cpu")}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, betas=tuple(recipe.betas), **common)
    optimizer = torch.optim.SGD(
        parameters, recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, **common
    )
    # The fused kernel wants either no momentum at all or one for each parameter, but a method may
    # leave parameters out of its first steps (FCFD samples its bridges). Zero is what SGD assumes.
    if recipe.momentum:
        for parameter in distiller.trainable_parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def decay_groups(distiller: Distiller) -> list[Any]:
    """What the method trains; in two groups where some of it is without weight decay."""
    parameters = distiller.trainable_parameters()
    names = {id(parameter): name for name, parameter in distiller.named_parameters()}
    free = {id(p) for p in parameters if not distiller.decays(names.get(id(p), ""), p)}
    if not free:
        return parameters
    return [
        {"params": [p for p in parameters if id(p) not in free]},
        {"params": [p for p in parameters if id(p) in free], "weight_decay": 0.0},
    ]
