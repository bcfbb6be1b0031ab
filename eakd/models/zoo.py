"""Reading and writing trained weights: this package's safetensors and the public zoo's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eakd.errors import UserError
from eakd.files import write_atomically

# Keys under which checkpoints keep the weights, and prefixes that wrappers put before the names.
CONTAINERS = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, without running any code the file may hold.

    Args:
        path: a ``.safetensors`` file, or a torch file with a state dict, plain or under ``model``
            or ``state_dict``. The prefixes of data parallel and compiled wrappers are removed.

    Raises:
        UserError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
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

    Every weight must be there with its shape, and no other. Only batch norm's counters, which
    nothing uses and old files lack, may be missing.

    Raises:
        UserError: the file cannot be read or is of another architecture; ``model`` is unchanged.
    """
    state, wanted = load_state(path), model.state_dict()
    if f"model.{next(iter(state))}" in wanted:  # timm's own file, for our wrapper around it
        state = {f"model.{key}": x for key, x in state.items()}
    counters = {key for key in wanted if key.endswith(".num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in counters]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("shape of", shapes))
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

    Args:
        model: the network; its names are kept.
        path: a file ending in ``.safetensors``; its folder is made if needed.
        metadata: strings to keep in the file's header (how it was trained, its accuracy).

    Raises:
        UserError: ``path`` ends otherwise.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: found ending {path.suffix!r}, allowed is '.safetensors'")
    state = {key: x.detach().cpu().contiguous() for key, x in model.state_dict().items()}
    header = {key: str(value) for key, value in (metadata or {}).items()}
    write_atomically(path, lambda temporary: save_file(state, temporary, header))


def _line(error: Exception) -> str:
    """The first line of an error's message, short enough for one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 120 else text[:117] + "…"
