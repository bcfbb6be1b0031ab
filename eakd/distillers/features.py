"""What the methods that compare feature maps share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eakd.errors import check_number

T = TypeVar("T")


def difference(x: Tensor, target: Tensor) -> Tensor:
    """``x - target`` of two tensors of one shape, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype) - target.to(dtype)


def mean_square(x: Tensor) -> Tensor:
    """Mean of the squares of each sample, ``(N, …) -> (N,)``: its mean is the usual MSE."""
    return _MeanSquare.apply(x)


class _MeanSquare(torch.autograd.Function):
    """With a gradient in one pass over the map, where autograd's makes three of the same bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        # Neither flattened nor averaged: both would hand a channels-last network a gradient in
        # another memory format, and everything after it would be slow.
        return x.square().sum(dim=tuple(range(1, x.dim()))) / x[0].numel()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        scale = 2 * (gradient / x[0].numel())
        return scale.view(-1, *[1] * (x.dim() - 1)) * x


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains on a single value for each channel: one sample, one pixel.

    Such a batch, the last one of an epoch perhaps, has no variance, and PyTorch refuses it (the
    methods' authors never meet it). It is normalised by the running statistics, which it leaves.
    """

    def forward(self, x: Tensor) -> Tensor:
        single = self.training and x.numel() == self.num_features
        with temporarily([self] if single else [], training=False):
            return super().forward(x)


@contextmanager
def temporarily(modules: Iterable[nn.Module], **attributes: Any) -> Iterator[None]:
    """Give all ``modules`` the same ``attributes``, such as ``training``, inside the block only."""
    before = [(module, {name: getattr(module, name) for name in attributes}) for module in modules]
    try:
        for module, _ in before:
            _set(module, attributes)
        yield
    finally:
        for module, values in before:
            _set(module, values)


def _set(module: nn.Module, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(module, name, value)


@torch.no_grad()
def dry_run(model: nn.Module, image_size: int, run: Callable[[Tensor], T]) -> T:
    """``run(image)`` on one blank image, to learn the shapes ``model`` makes; it changes nothing.

    Args:
        model: the network that ``run`` calls; in eval mode meanwhile.
        image_size: side in pixels.
        run: takes ``(1, 3, image_size, image_size)``. ``model.forward`` rather than ``model``
            keeps a compiled network from being compiled for one image.

    Raises:
        UserError: ``image_size`` is no positive integer.
    """
    image_size = check_number("image_size", image_size, at_least=1, integer=True)
    like = next(model.parameters())
    # A frozen teacher may hold some of its weights in the precision of autocast.
    lower = {p.dtype for p in model.parameters()} & {torch.bfloat16, torch.float16}
    half = lower.pop() if lower else None
    dtype = like.dtype if half is None else torch.float32
    image = torch.zeros(1, 3, image_size, image_size, device=like.device, dtype=dtype)
    with (
        temporarily(model.modules(), training=False),
        torch.autocast(like.device.type, half, enabled=half is not None),
    ):
        return run(image)
