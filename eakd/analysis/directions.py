"""Random directions in the space of a network's weights, and the plane that two of them span."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eakd.data.pipeline import stream
from eakd.models.inference import fold_batchnorm

Direction = dict[str, Tensor]  # by the parameter's name; what is not in it does not move


def direction(model: nn.Module, seed: int, axis: int) -> Direction:
    """A Gaussian direction in which every filter is as long as the network's own filter.

    A filter is a tensor's slice at the first index, so also a row of a classifier. Biases and norms
    are not moved. Of one seed and axis, networks of equal shapes get the same numbers before they
    are scaled: their surfaces can be compared pair by pair.

    Source: Li et al. 2018, section 4.
    """
    found = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        drawn = torch.randn(weight.shape, generator=stream("landscape", seed, axis, name))
        scale = _norms(weight.detach().cpu()) / _norms(drawn).clamp_min(1e-30)
        found[name] = (drawn * scale).to(weight.device, weight.dtype)
    return found


def _norms(weight: Tensor) -> Tensor:
    """``(F, 1, …)``, of each filter."""
    return weight.float().flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))


def fold(
    model: nn.Module, directions: tuple[Direction, ...], example: Tensor
) -> tuple[nn.Module, tuple[Direction, ...]]:
    """``model`` with batch norms in its convolutions, and the same directions of its weights then.

    With fixed statistics folding multiplies each filter by a factor, so it is linear in the
    weights, and the plane holds the same functions as before.
    """
    folded, original = fold_batchnorm(model, example), dict(model.named_parameters())
    factors = {}
    for name, weight in folded.named_parameters():
        before = original.get(name)
        if before is not None and weight.dim() > 1 and not torch.equal(weight, before):
            factors[name] = _factors(before.detach(), weight)
    scaled = tuple(
        {name: x * factors[name] if name in factors else x for name, x in each.items()}
        for each in directions
    )
    return folded, scaled


def _factors(before: Tensor, after: Tensor) -> Tensor:
    """What each filter was multiplied by; a ratio of norms would lose its sign."""
    a, b = before.double().flatten(1), after.double().flatten(1)
    # A filter of zeros has a direction of zeros, whatever its factor.
    factors = (a * b).sum(1) / (a * a).sum(1).clamp_min(1e-300)
    return factors.view(-1, *[1] * (before.dim() - 1)).to(before.dtype)


class Plane:
    """The weights ``θ + a d₁ + b d₂`` of a network, which is moved in place.

    Args:
        model: its parameters are what moves; it is put back by `move` to ``(0, 0)``.
        first, second: directions ``d₁`` and ``d₂``.
    """

    def __init__(self, model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]):
        moved = {n: p.detach() for n, p in model.named_parameters() if n in first}
        self._weights = [*moved.values()]
        self._origin = [weight.clone() for weight in self._weights]
        self._first = [first[name].contiguous() for name in moved]
        self._second = [second[name] for name in moved]
        # Elementwise on whole lists wants tensors of one layout.
        for directions in (self._first, self._second):
            for place, weight in enumerate(self._weights):
                directions[place] = torch.empty_like(weight).copy_(directions[place])

    @torch.no_grad()
    def move(self, a: float, b: float) -> None:
        """Put the network at ``(a, b)``."""
        torch._foreach_copy_(self._weights, self._origin)
        torch._foreach_add_(self._weights, self._first, alpha=a)
        torch._foreach_add_(self._weights, self._second, alpha=b)
