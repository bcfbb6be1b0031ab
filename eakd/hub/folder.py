"""What an exported folder is: its files, and what ``config.json`` says of the network.

All of ours is the object ``eakd`` in ``config.json``; beside it stand the keys that timm or
transformers read. A folder may come from a stranger, so everything in it is looked at before it is
used, and nothing in it is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from eakd.errors import UserError, one_line_of, shortened
from eakd.targets import build
from eakd.training.find_teacher import weights_digest
from eakd.training.reading import read_object

CONFIG, CARD, WEIGHTS = "config.json", "README.md", "model.safetensors"
SECTION, FORMAT = "eakd", 1
IMAGES, BOXES, TEXT = "image-classification", "object-detection", "text-generation"  # hub's names

# Arguments of constructors that would fetch or read other weights first.
FETCHES = {"pretrained": False, "backbone_weights": None, "checkpoint_path": ""}
OURS = re.compile(r"eakd\.(models|detection\.detectors)\.\w+")


def describe_network(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config's node of a network, as ``config.json`` keeps it."""
    left_out = ("name", "task", "_target_")
    arguments = {key: value for key, value in node.items() if key not in left_out}
    return {
        "name": node["name"],
        "constructor": node["_target_"],
        "arguments": arguments | {k: v for k, v in FETCHES.items() if k in arguments},
    }


def build_network(
    network: Mapping[str, Any], num_classes: int, where: str, own_code: bool = False
) -> nn.Module:
    """The network that `describe_network` described, with random weights.

    Args:
        where: it was described, for messages.
        own_code: also a constructor that is not one of eakd's.

    Raises:
        UserError: an unknown constructor, arguments that it does not take.
    """
    name, arguments = network["constructor"], dict(network["arguments"])
    if not OURS.fullmatch(name) and not own_code:
        raise UserError(
            f"{where}: found the network {shortened(name)}, which is not one of eakd's, allowed "
            "with own_code=True, which imports that name"
        )
    if ":" in str(arguments.get("architecture", "")):  # another folder or repository's
        raise UserError(
            f"{where}: found the architecture {shortened(arguments['architecture'])}, allowed is a "
            "name of timm's own"
        )
    arguments |= {key: value for key, value in FETCHES.items() if key in arguments}
    try:
        return build({**arguments, "_target_": name}, "network", nn.Module, num_classes=num_classes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:  # arguments of another type
        raise UserError(f"{where}: {name} cannot be built ({one_line_of(error)})") from error


def read_section(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says of the network.

    Raises:
        UserError: there is none, it is damaged, or of a later format.
    """
    path = folder / CONFIG
    found = read_object(path)
    if found is None:
        raise UserError(
            f"{folder}: found no {CONFIG}, allowed is a folder that eakd-export has written"
        )
    section = found.get(SECTION)
    if not isinstance(section, dict):
        raise UserError(
            f"{path}: found no {SECTION}, allowed is a folder that eakd-export has written"
        )
    if section.get("format") != FORMAT:
        raise UserError(
            f"{path}: found format {shortened(section.get('format'))} of version "
            f"{shortened(section.get('version'))}, allowed is {FORMAT}: another version of eakd "
            "reads it"
        )
    _check(path, section, {"task": str, "weights": dict})
    if section["task"] not in (IMAGES, BOXES, TEXT):
        raise UserError(
            f"{path}: found task {shortened(section['task'])}, allowed is one of {IMAGES}, "
            f"{BOXES}, {TEXT}"
        )
    if section["task"] != TEXT:
        _check(path, section, {"network": dict, "num_classes": int})
        _check(path, section["network"], {"name": str, "constructor": str, "arguments": dict})
    return section


def _check(path: Path, found: Mapping[str, Any], wanted: Mapping[str, type]) -> None:
    for key, kind in wanted.items():
        if type(found.get(key)) is not kind:
            raise UserError(
                f"{path}: found {key} {shortened(found.get(key))}, allowed is a JSON "
                f"{ {dict: 'object', int: 'integer', str: 'text'}[kind] }"
            )


def digests(folder: Path) -> dict[str, str]:
    """File → `weights_digest` of each file of weights."""
    return {path.name: weights_digest(path) for path in sorted(folder.glob("*.safetensors"))}


def check_weights(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse weights that are not those that were exported.

    Raises:
        UserError: a file is missing, is not one of them, or holds something else.
    """
    found = digests(folder)
    for name in sorted({*found, *wanted}):
        path = folder / str(name)
        if name not in found:
            raise UserError(f"{path}: found no file, allowed are the weights that {CONFIG} names")
        if found[name] != wanted.get(name):
            raise UserError(
                f"{path}: found weights with the digest {found[name][:12]}, allowed is "
                f"{str(wanted.get(name))[:12]}, which {CONFIG} says: fetch the folder again"
            )
