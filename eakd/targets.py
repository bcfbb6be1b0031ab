"""What a config may name to be called, and the calls.

A config may come from a stranger, and ``_target_`` names anything that can be imported. So a name
is called only if it is what its place needs, and never if it is Python's own.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from eakd.config import FACTS, plain
from eakd.errors import UserError, nearest, shortened


def locate(name: object, key: str) -> Any:
    """What a dotted name such as ``eakd.data.digits`` stands for.

    Args:
        key: where the name stands, for messages.

    Raises:
        UserError: no name, nothing of that name, or something of Python's own library.
    """
    if not isinstance(name, str) or not name.isprintable():
        raise UserError(f"{key}: found {shortened(name)}, allowed is a dotted name in Python")
    first, *parts = name.split(".")
    if first in sys.stdlib_module_names:  # os.system, builtins.eval: before it is even imported
        raise UserError(
            f"{key}: found {shortened(name)}, allowed is anything but Python's own library"
        )
    try:
        found = importlib.import_module(first)
        for place, part in enumerate(parts):
            # An attribute before a module: `eakd.data.digits` is the function, not its file.
            if hasattr(found, part):
                found = getattr(found, part)
            else:
                found = importlib.import_module(".".join([first, *parts[: place + 1]]))
        return found
    except UserError:  # of a module that misses what it needs, and says so
        raise
    except (ImportError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}: found {shortened(name)}, allowed is the dotted name of something that can be "
            f"imported ({reason})"
        ) from error


def called_by(node: Mapping[str, Any] | DictConfig) -> Any:
    """The target that a node names, itself or in its ``load``, as data sets do."""
    return node.get("_target_") or (node.get("load") or {}).get("_target_")


def target_of(node: object, key: str, kind: type) -> Any:
    """What ``node._target_`` stands for: a subclass of ``kind``, or a function that returns one.

    Raises:
        UserError: it is something else, or the node is no mapping.
    """
    node = plain(node)
    if not isinstance(node, dict):
        raise UserError(f"{key}: found {shortened(node)}, allowed is a mapping of keys")
    name = node.get("_target_")
    target = locate(name, f"{key}._target_")
    if not (isinstance(target, type) and issubclass(target, kind)) and not (
        inspect.isroutine(target) and returns(target, kind)
    ):
        raise UserError(
            f"{key}._target_: found {shortened(name)}, allowed is a subclass of "
            f"{kind.__module__}.{kind.__qualname__}, or a function that is declared to return one "
            f"(def …(…) -> {kind.__name__})"
        )
    return target


def returns(function: Any, kind: type) -> bool:
    """Whether a function's annotation says that it returns a ``kind``."""
    try:
        declared = typing.get_type_hints(function).get("return")
    except Exception:  # a name that is imported for type checkers only
        declared = getattr(function, "__annotations__", {}).get("return")
        return isinstance(declared, str) and declared.rpartition(".")[2] == kind.__name__
    declared = typing.get_origin(declared) or declared
    return isinstance(declared, type) and issubclass(declared, kind)


def build(node: DictConfig, key: str, kind: type = object, **extra: Any) -> Any:
    """Call what a config node names with the node's other keys, but for the `FACTS`.

    Args:
        key: of the node, for messages.
        kind: what the place needs; see `target_of`.
        **extra: further arguments.

    Raises:
        UserError: a target of another kind, a key that it does not take, one that it misses, or a
            wrong value; it names the full config key.
    """
    target = target_of(node, key, kind)
    arguments = {k: v for k, v in plain(node).items() if k not in FACTS.get(key, ())}
    name = arguments.pop("_target_")
    parameters = inspect.signature(target).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for k in arguments:
            if k not in parameters:
                raise unknown_key(f"{key}.{k}", [k for k in parameters if k not in extra], name)
        for k in extra:
            if k not in parameters:
                raise UserError(
                    f"{key}: found {name}, which takes no {k}, allowed is one for the task of the "
                    "data set"
                )
    for k, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        required = parameter.default is parameter.empty and not variadic
        if required and k not in arguments and k not in extra:
            raise UserError(f"{key}.{k}: found no value, which {name} needs")
    try:
        return target(**arguments, **extra)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error


def unknown_key(key: str, known: Iterable[str], reader: str = "") -> UserError:
    """The error for a key that nothing reads, with the known ones that look most like it."""
    known = list(known)
    found = f"a key that {reader} does not take" if reader else "an unknown key"
    return UserError(f"{key}: found {found}, allowed {nearest(key.rpartition('.')[2], known)}")
