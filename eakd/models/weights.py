"""Trained weights: from files of many programs into networks, and from networks into files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from eakd.errors import UserError
from eakd.files import write_atomically
from eakd.models.weight_files import TIED, listed, load_state

__all__ = ["load_state", "load_weights", "save_weights"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights at ``path`` into ``model``; see `load_state` for the formats.

    Every weight must be there with its shape, and no other. Two kinds may be missing: batch norm's
    counters, which nothing uses and old files lack, and weights that ``model`` ties to one that is
    there. What is tied in ``model`` stays tied. float16, bfloat16, float32 and float64 are
    converted to the type of ``model``.

    Raises:
        UserError: the file cannot be read, is of another architecture, holds integers, NaN or
            infinity where ``model`` has finite floats, or gives weights that ``model`` ties
            different values; ``model`` is unchanged.
    """
    wanted = model.state_dict()
    state = load_state(path, wanted)
    counters = {key for key in wanted if key.endswith(".num_batches_tracked")}
    first = _first_names(wanted)
    source = {first[key]: key for key in wanted if key in state}
    missing = [key for key in wanted if first[key] not in source and key not in counters]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    twins = [(key, source[first[key]]) for key in wanted if key in state]
    torn = [
        f"{key} and {twin}"
        for key, twin in twins
        if key != twin and not _equal(state[key], state[twin], wanted[key].dtype)
    ]
    problems = [
        f"{kind} {listed(keys)}"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shape of", shapes),
            ("different values for the tied", torn),
        )
        if keys
    ]
    if problems:
        raise UserError(
            f"{path}: not the weights of this {type(model).__name__}: {'; '.join(problems)}"
        )
    _check_values(path, state, wanted)
    model.load_state_dict(state, strict=False)


def _check_values(path: str | Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]):
    """Raise `UserError` for values that are not what they were once converted, or no numbers."""
    kinds, values = [], []
    for key in (key for key in wanted if key in state):
        x, own = state[key], wanted[key].cpu()
        converted = x.to(own.dtype)
        if own.is_floating_point() and x.dtype not in FLOATS:
            kinds.append(f"{key} ({str(x.dtype).removeprefix('torch.')})")
        elif own.is_floating_point():
            # A mask of a network's own may be infinite.
            if not (converted.isfinite() | (converted == own)).all():
                values.append(key)
        elif not torch.equal(converted.to(x.dtype), x):
            kinds.append(f"{key} ({str(x.dtype).removeprefix('torch.')})")
    if kinds:
        raise UserError(
            f"{path}: found values of another kind in {listed(kinds)}, allowed are float16, "
            "bfloat16, float32 and float64: save the weights before they were quantised"
        )
    if values:
        raise UserError(
            f"{path}: found NaN, infinity or more than this network's type holds in "
            f"{listed(values)}, allowed are finite weights: take those of an earlier epoch"
        )


def save_weights(
    model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write the state dict of ``model`` to ``path`` as safetensors, whole or not at all.

    A tensor with several names (tied embeddings) is stored once, under the first of them; the
    header notes the others for `load_state`. Tensors that only overlap are stored one by one.

    Args:
        model: the network; its names are kept.
        path: a file ending in ``.safetensors``; its folder is made if needed.
        metadata: strings to keep in the file's header (how it was trained, its accuracy). The key
            ``tied`` is taken.

    Raises:
        UserError: ``path`` ends otherwise, or ``metadata`` has that key.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: found ending {path.suffix!r}, allowed is '.safetensors'")
    header = {key: str(value) for key, value in (metadata or {}).items()}
    if TIED in header:
        raise UserError(f"{path}: found the metadata key {TIED!r}, allowed is any other")
    state = model.state_dict()
    first = _first_names(state)  # before copies to the CPU or to another layout come apart
    tied = {key: name for key, name in first.items() if key != name}
    if tied:
        header[TIED] = json.dumps(tied)
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key in dict.fromkeys(first.values()):
        x = state[key].detach().cpu().contiguous()
        storage = x.untyped_storage().data_ptr()
        stored[key] = x.clone() if storage in storages else x  # safetensors refuses overlaps
        storages.add(storage)
    # Not by safetensors' own writing of files: each makes a further one that a kill leaves behind.
    write_atomically(path, lambda temporary: temporary.write_bytes(save(stored, header)))


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name, the first name of that very tensor: same address, type, shape, strides."""
    names: dict[object, str] = {}
    return {
        # Tensors without elements all have the address 0, which ties none of them.
        key: names.setdefault(
            (x.device, x.data_ptr(), x.dtype, x.shape, x.stride()) if x.data_ptr() else key, key
        )
        for key, x in state.items()
    }


def _equal(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(a.to(dtype), b.to(dtype))
