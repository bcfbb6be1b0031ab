"""The optimiser of a recipe."""

from __future__ import annotations

import torch

from eakd.distillers.base import Distiller
from eakd.training.device import Compute
from eakd.training.schedule import Recipe


def make_optimizer(
    distiller: Distiller, recipe: Recipe, compute: Compute
) -> torch.optim.SGD | torch.optim.AdamW:
    """The recipe's optimiser of everything the method trains."""
    parameters = distiller.trainable_parameters()
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
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
