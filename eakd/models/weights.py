"""Reading and writing trained weights: this package's safetensors and the public zoo's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eakd.errors import UserError
from eakd.files import write_atomically

# Keys under which checkpoints keep the weights, and prefixes that wrappers put before the names.
CONTAINERS = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")
# Key of the safetensors header for the weights that several names share, which are stored once:
# a JSON object {further name: name in the file}.
TIED = "tied"


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, without running any code the file may hold.

    Args:
        path: a ``.safetensors`` file, or a torch file with a state dict, plain or under ``model``
            or ``state_dict``. The prefixes of data parallel and compiled wrappers are removed.

    Returns:
        Every tensor under its name. Names that were tied when the file was written hold one and
        the same tensor; files of other programs may leave out all but one of them.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = _load_safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{path}: truncated, or not a file of weights ({_line(error)})") from error
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        raise UserError(
            f"{path}: damaged, or more than tensors, which is not loaded ({_line(error)})"
        ) from error
    for container in CONTAINERS:
        if isinstance(state, Mapping) and isinstance(state.get(container), Mapping):
            state = state[container]
    if not (
        isinstance(state, Mapping)
        and state
        and all(isinstance(key, str) and isinstance(x, Tensor) for key, x in state.items())
    ):
        raise UserError(
            f"{path}: found no weights, allowed is a state dict, plain or under "
            + " or ".join(CONTAINERS)
        )
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): x for key, x in state.items()}
    return dict(state)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the weights at ``path`` into ``model``; see `load_state` for the formats.

    Every weight must be there with its shape, and no other. Two kinds may be missing: batch norm's
    counters, which nothing uses and old files lack, and weights that ``model`` ties to one that is
    there. What is tied in ``model`` stays tied.

    Raises:
        UserError: the file cannot be read, is of another architecture, or gives weights that
            ``model`` ties different values; ``model`` is unchanged.
    """
    state, wanted = load_state(path), model.state_dict()
    if f"model.{next(iter(state))}" in wanted:  # timm's own file, for our wrapper around it
        state = {f"model.{key}": x for key, x in state.items()}
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
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
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
    model.load_state_dict(state, strict=False)


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
    write_atomically(path, lambda temporary: save_file(stored, temporary, header))


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


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under all their names.

    Raises:
        ValueError: the note of tied names is damaged.
        SafetensorError, OSError: as safetensors raises them.
    """
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not iterable
        note = (file.metadata() or {}).get(TIED, "{}")
    try:
        tied = {key: state[name] for key, name in json.loads(note).items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"damaged note of tied weights: {note}") from error
    return tied | state


def _equal(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(a.to(dtype), b.to(dtype))


def _line(error: Exception) -> str:
    """The first line of an error's message, short enough for one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 120 else text[:117] + "…"
