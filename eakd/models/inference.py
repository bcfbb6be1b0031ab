"""Frozen networks made fast without changing their results, and their costs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FrozenBatchNorm2d

# Folding is checked in float64, where rounding over a hundred layers stays far below this share of
# a map's largest value.
ROUNDING = 1e-9

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)  # of detectors: constants from the start


def prepare_teacher(
    model: nn.Module,
    example: Tensor,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> nn.Module:
    """A frozen copy of ``model`` for fast inference on the device it is on.

    Args:
        model: a trained network; it is not changed.
        example: a small image batch ``(N, 3, H, W)`` on the same device.
        dtype: the precision of the autocast the copy will run under. Convolutions and linear
            layers that autocast would convert in every call get their weights converted once,
            which gives the same numbers. The classifier and the norms keep theirs. None or float32
            converts nothing.
        channels_last: keep convolution weights in NHWC memory.

    Returns:
        The copy in eval mode, without gradients, with batch norms folded into convolutions. With
        a lower ``dtype`` it must be called under ``torch.autocast(device, dtype)``.
    """
    prepared = fold_batchnorm(model, example)
    if dtype not in (None, torch.float32):
        _convert_weights(prepared, example, dtype)
    return prepared.to(memory_format=torch.channels_last) if channels_last else prepared


def fold_batchnorm(model: nn.Module, example: Tensor) -> nn.Module:
    """A frozen copy of ``model`` whose batch norms are part of the convolutions before them.

    A pair is folded if, on ``example``, the norm's input is the convolution's output itself, both
    ran once, and nothing else saw that map: neither another operation nor the caller, so features
    and preactivations stay what they were. If the copy's outputs differ from the model's by more
    than rounding, or nothing can be folded, the copy is returned unfolded.

    Args:
        model: any network; it is not changed.
        example: a small image batch ``(N, 3, H, W)`` of the size it will run on.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = list(frozen.parameters())
    if len({(parameter.dtype, parameter.device) for parameter in parameters}) != 1:
        return frozen
    # On the CPU, as not every accelerator has float64.
    folded, example = copy.deepcopy(frozen).to("cpu", torch.float64), example.to("cpu").double()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        before, pairs = _private_pairs(folded, example)
        for conv, norm in pairs:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv_w=conv.weight,
                conv_b=conv.bias,
                bn_rm=norm.running_mean,
                bn_rv=norm.running_var,
                bn_eps=norm.eps,
                bn_w=norm.weight,
                bn_b=norm.bias,
            )
        _drop(folded, {norm for _, norm in pairs})
        after = _floats(folded(example))
    if not pairs or not all(map(_close, before, after)):
        return frozen
    return folded.to(parameters[0].device, parameters[0].dtype).requires_grad_(False)


def _private_pairs(
    model: nn.Module, example: Tensor
) -> tuple[list[Tensor], list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The outputs of ``model``, and its foldable pairs in the order of execution."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds each map, so that no id is used twice
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []
    runs: Counter[nn.Module] = Counter()
    uses: Counter[int] = Counter()

    class CountUses(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if _tensors(result):  # asking for a shape is no use
                uses.update(id(x) for x in _tensors((args, kwargs)) if id(x) in made)
            return result

    def after_conv(conv: nn.Conv2d, _: tuple, output: Tensor) -> None:
        made[id(output)] = conv, output
        runs[conv] += 1

    def before_norm(norm: nn.BatchNorm2d, args: tuple) -> None:
        runs[norm] += 1
        if id(args[0]) in made:
            found.append((made[id(args[0])][0], norm, id(args[0])))

    handles = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv))
        elif type(module) in NORMS and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    with CountUses():
        outputs = _floats(model(example))
    for handle in handles:
        handle.remove()
    returned = {id(x) for x in outputs}
    pairs = [
        (conv, norm)
        for conv, norm, key in found
        if runs[conv] == runs[norm] == uses[key] == 1 and key not in returned
    ]
    return outputs, pairs


def _drop(model: nn.Module, norms: set[nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in norms:
                setattr(parent, name, nn.Identity())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _floats(tree: Any) -> list[Tensor]:
    return [x for x in _tensors(tree) if x.is_floating_point()]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= ROUNDING * a.abs().max())


def _convert_weights(model: nn.Module, example: Tensor, dtype: torch.dtype) -> None:
    """Convert, in place, the weights that autocast would convert in every call."""
    device = example.device.type
    converted: set[nn.Module] = set()

    def before(module: nn.Module, _: tuple) -> None:
        if torch.is_autocast_enabled(device):  # a classifier runs outside
            converted.add(module)

    # Subclasses may compute with the weight before they convolve (weight standardisation).
    layers = [module for module in model.modules() if type(module) in (nn.Conv2d, nn.Linear)]
    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    with torch.no_grad(), torch.autocast(device, dtype=dtype):
        model(example)
    for handle in handles:
        handle.remove()
    for module in converted:
        module.to(dtype)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, trainable or not; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image.

    Args:
        model: a network; it is not changed.
        size: side of the image in pixels.
    """
    probe = copy.deepcopy(model).eval()
    like = next(probe.parameters())
    image = torch.zeros(1, 3, size, size, dtype=like.dtype, device=like.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe(image, features=False)
    return counter.get_total_flops() // 2
