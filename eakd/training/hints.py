"""Commands that messages print, to be pasted. Imports no torch, so that plans are quick."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from eakd.composing import compose, options
from eakd.places import command_words, config_folders
from eakd.targets import called_by


def teacher_command(config: DictConfig, more: Sequence[str] = ()) -> str:
    """The command that trains the network which a run looks for as its trained teacher.

    Args:
        config: see `teacher_overrides`.
        more: further overrides.
    """
    words = [*config_dir_words(), *teacher_overrides(config), *more]
    return shlex.join([*command_words("train"), *words])


def teacher_overrides(config: DictConfig) -> list[str]:
    """The overrides of `teacher_command`.

    Args:
        config: of a run, with ``data`` and ``teacher``, or of an evaluation, with ``model``.
    """
    raw = OmegaConf.to_container(config)
    network = raw["teacher"] if "teacher" in raw else raw["model"]
    for key in ("checkpoint", "table"):
        network.pop(key, None)
    words = [
        *group_words("data", raw["data"]),
        *group_words("student", network),
        "distiller=none",
        "save_teacher=true",
        *((raw["data"].get("plan") or {}).get("teacher") or ()),  # of its own, more images, say
    ]
    default = OmegaConf.to_container(compose())
    for key in ("output_root", "checkpoint_root"):
        if raw.get(key, default[key]) != default[key]:
            words.append(f"{key}={written(raw[key])}")
    return words


def config_dir_words() -> list[str]:
    """The option that names the user's own directory of configs; none without one."""
    return [f"--config-dir={folder}" for folder in config_folders()[1:]]


def group_words(group: str, node: dict[str, Any]) -> list[str]:
    """The overrides that compose ``node``: a choice of the group, then what differs from it."""
    name, choices = str(node.get("name")), options(group)
    # Something else may be called as a choice is, and a choice not as its file is.
    if name in choices and called_by(_choice(group, name)) == called_by(node):
        choices = [name]
    words = [[f"{group}={c}", *_changes(group, _choice(group, c), node)] for c in choices]
    return min(words, key=len)


def _choice(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose([f"{group}={name}"])[group])


def _changes(key: str, found: Any, wanted: Any) -> Iterator[str]:
    """Overrides that turn one node into another; interpolations count as they are written."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in {**found, **wanted}:
            if name not in wanted:
                yield f"~{key}.{name}"
            elif name not in found:
                yield f"+{key}.{name}={written(wanted[name])}"
            else:
                yield from _changes(f"{key}.{name}", found[name], wanted[name])
    elif found != wanted:
        yield f"{key}={written(wanted)}"


def written(value: Any) -> str:
    """A value as it is written after ``KEY=`` on Hydra's command line, before the shell sees it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{written(key)}:{written(each)}' for key, each in value.items())}}}"
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower()
    return value if _is_plain(value) else QuotedString(value, Quote.double).with_quotes()


def _is_plain(text: str) -> bool:
    """Whether Hydra takes an unquoted text for itself, not for a number, a list or a choice."""
    try:
        # In a list, so that what would end an element is quoted too.
        return OverridesParser.create().parse_override(f"key=[{text}]").value() == [text]
    except HydraException:
        return False
