"""Commands that messages print, to be pasted. Imports no torch, so that plans are quick."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from eakd.config import CONFIGS, ROOT, compose


def teacher_command(config: DictConfig) -> str:
    """The command that trains the network which a run looks for as its trained teacher.

    Args:
        config: of a run, with ``data`` and ``teacher``, or of an evaluation, with ``model``.
    """
    raw = OmegaConf.to_container(config)
    network = raw["teacher"] if "teacher" in raw else raw["model"]
    network.pop("checkpoint", None)
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
    script, here = ROOT / "scripts" / "train.py", Path.cwd()
    script = script.relative_to(here) if script.is_relative_to(here) else script
    return shlex.join(["python", str(script), *config_dir_words(), *words])


def config_dir_words() -> list[str]:
    """The option that names the user's own directory of configs; none without one."""
    if not GlobalHydra.instance().is_initialized():
        return []
    places = GlobalHydra.instance().config_loader().get_search_path().get_path()
    mine = [place.path for place in places if place.provider == "command-line"]
    return [f"--config-dir={path.removeprefix('file://')}" for path in mine]


def options(group: str) -> list[str]:
    """Every value of a config group, those of a ``--config-dir`` and generated ones included."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options(group)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return options(group)


def group_words(group: str, node: dict[str, Any]) -> list[str]:
    """The overrides that compose ``node``: a choice of the group, then what differs from it."""
    name, choices = str(node.get("name")), options(group)
    # Something else may be called as a choice is, and a choice not as its file is.
    if name in choices and _target(_choice(group, name)) == _target(node):
        choices = [name]
    words = [[f"{group}={c}", *_changes(group, _choice(group, c), node)] for c in choices]
    return min(words, key=len)


def _choice(group: str, name: str) -> dict[str, Any]:
    return OmegaConf.to_container(compose([f"{group}={name}"])[group])


def _target(node: dict[str, Any]) -> Any:
    return node.get("_target_") or node.get("load", {}).get("_target_")


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
