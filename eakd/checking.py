"""What may stand in a config, checked before anything acts on it.

Hydra acts on a composed config at once: it makes directories, opens logs and calls what the config
names. So `watch` checks every config where Hydra composes it, whoever asked: a command, a sweep, a
worker process or a notebook. Nothing has been written or called by then.
"""

from __future__ import annotations

import functools
import inspect
import logging
import logging.config
import logging.handlers
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from eakd.config import CONFIGS
from eakd.errors import (
    UserError,
    check_boolean,
    check_choice,
    check_file,
    check_folder,
    check_name,
    check_number,
    nearest,
    shortened,
)
from eakd.targets import called_by, locate, target_of, unknown_key

# Hydra's settings of where a run lies, which follow from ours -> our key for the same.
PLACES = {
    "run.dir": ("${run_dir}", "run_dir={}"),
    "sweep.dir": ("${output_root}", "output_root={}"),
    "sweep.subdir": ("${run_name:}", "what follows from the run's config, in output_root"),
    "output_subdir": (None, "null: .hydra/ lies in the run's directory"),
    "job.chdir": (None, "false: relative paths are those of the current directory"),
}

# What Hydra calls -> what it must be.
PLUGINS = {
    r"hydra\.launcher": Launcher,
    r"hydra\.sweeper": Sweeper,
    r"hydra\.callbacks\.\w+": Callback,
}
# What the settings of `logging` may call, and the only objects that they may name.
LOGGING = (logging.Handler, logging.Formatter, logging.Filter)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")

# Values of root files that would else be looked at late, after the work; null where that is theirs.
CHECKS: dict[str, Callable[[str, object], object]] = {
    **dict.fromkeys(("output_root", "checkpoint_root"), check_folder),
    **dict.fromkeys(("output", "plot", "into"), check_file),
    **dict.fromkeys(("save_teacher", "resume", "fold_batchnorm", "sync_batchnorm"), check_boolean),
    **dict.fromkeys(("compile", "channels_last", "retry", "verbose", "replace"), check_boolean),
    "progress": check_boolean,
    "seed": functools.partial(check_number, at_least=0, integer=True),
    "measure": functools.partial(check_number, at_least=0, integer=True),
}

# Where sweeps of this process lie: nothing else tells before the first of their runs starts.
SWEEPS: set[str] = set()


def watch() -> None:
    """Check each config that Hydra composes in this process; doing it again changes nothing.

    Hydra has no hook between composing a config and acting on it, so its loader is wrapped.
    """
    load = ConfigLoaderImpl.load_configuration
    if hasattr(load, "__wrapped__"):
        return
    signature = inspect.signature(load)

    @functools.wraps(load)
    def checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        given = signature.bind(self, *args, **kwargs).arguments
        try:
            config = load(self, *args, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # How Hydra answers values of types that it did not expect, such as data=null.
            words = [text for text in given["overrides"] if not text.startswith("hydra.mode=")]
            reason = " ".join(str(error).split())
            raise UserError(
                f"{' '.join(words)}: found what Hydra cannot compose ({reason})"
            ) from error
        check_hydra(OmegaConf.to_container(config.hydra))
        name, mode = given["config_name"], given["run_mode"]
        if (CONFIGS / f"{name}.yaml").is_file():
            check_config(config, self, name, mode)
        elif "run_dir" in config:  # a root file of one's own that includes ours
            check_config(config, self, "train", mode, own_keys=True)
        return config

    ConfigLoaderImpl.load_configuration = checked


def check_config(
    config: DictConfig,
    loader: ConfigLoaderImpl,
    config_name: str,
    mode: RunMode,
    own_keys: bool = False,
) -> None:
    """Refuse keys that nothing reads, and values that would else be looked at late.

    Args:
        config: with its ``hydra`` node.
        loader: what composed it.
        config_name: the root file.
        mode: the config of a whole sweep holds no swept values.
        own_keys: there may be keys that are not ours.

    Raises:
        UserError: the key, what was found, what is allowed.
    """
    raw = OmegaConf.to_container(config)  # unresolved: interpolations are texts
    settings = raw.pop("hydra")
    groups, known = root_keys(config_name)
    if not own_keys:
        check_keys(raw, {**dict.fromkeys(groups), **known})
    for key, check in CHECKS.items():
        if key in known and (config[key] is not None or known[key] is not None):
            check(key, config[key])
    if mode == RunMode.MULTIRUN:
        SWEEPS.add(str(config.hydra.sweep.dir))
        return
    for group, default in groups.items():
        found = raw.get(group)
        if not isinstance(found, dict) and not (found is default is None):
            allowed = nearest(str(found), loader.get_group_options(group))
            raise UserError(f"{group}: found {shortened(found)}, allowed {allowed}")
    check_names(config, loader, settings["overrides"]["task"])
    if "run_dir" in known:
        check_run(config, raw, settings)


@functools.cache
def root_keys(config_name: str) -> tuple[dict[str, str | None], dict[str, Any]]:
    """The groups, with their defaults, and the keys of a root file, and of files that it includes.

    A group whose default is null may be left open.
    ``experiment`` is none of them: its files set the values of others.
    """
    node = yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8"))
    groups, known = {}, {}
    for entry in node.pop("defaults", ()):
        if isinstance(entry, dict):
            groups |= {
                group: choice
                for group, choice in entry.items()
                if not group.startswith("override ") and group != "experiment"
            }
        elif entry != "_self_":
            known |= root_keys(entry)[1]
    node.pop("hydra", None)
    return groups, known | {key: value for key, value in node.items() if key not in groups}


def check_keys(raw: dict[str, Any], known: dict[str, Any], at: str = "") -> None:
    """Refuse keys that nothing reads: neither a reader of ours nor an interpolation.

    What a ``_target_`` is called with is checked when it is called.

    Args:
        raw: the whole config, unresolved.
        known: keys of the node ``at``, with a mapping where theirs are known too.

    Raises:
        UserError: the key, and the known ones that look most like it.
    """
    used = set(_interpolated(raw))

    def look(node: dict[str, Any], known: dict[str, Any], at: str) -> None:
        for key, value in node.items():
            path = f"{at}{key}"
            if key in known:
                if _is_plain(value) and _is_plain(known[key]):
                    look(value, known[key], f"{path}.")
            elif key == "experiment":
                raise UserError(
                    "experiment: found keys of its own, allowed is a file that begins with the "
                    "line '# @package _global_', so that it sets the keys of the run"
                )
            elif not any(path == text or path.endswith(f".{text}") for text in used):
                raise unknown_key(path, known)

    for part in filter(None, at.split(".")):
        raw = raw[part]
    look(raw, known, f"{at}." if at else "")


def _is_plain(node: Any) -> bool:
    """A mapping of values, as opposed to one that is called."""
    return isinstance(node, dict) and "_target_" not in node


def _interpolated(node: Any) -> Iterator[str]:
    """The keys that ``${…}`` refers to anywhere in a node, and all above each; without the dots."""
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from _interpolated(each)
    elif isinstance(node, str) and "${" in node:
        for reference in re.findall(r"\$\{\.*([^${}:]+)\}", node):
            parts = reference.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def check_hydra(settings: dict[str, Any]) -> None:
    """Refuse settings under which Hydra or `logging` would call anything but their plugins.

    Args:
        settings: the ``hydra`` node, unresolved.

    Raises:
        UserError: the key, what was found, what is allowed.
    """
    for path, node in _mappings(settings, "hydra"):
        if "_target_" in node:
            kind = next((k for place, k in PLUGINS.items() if re.fullmatch(place, path)), None)
            if kind is None:
                found = shortened(node["_target_"])
                search = "; ours is hydra/sweeper=search" * path.startswith("hydra.sweeper.")
                raise UserError(f"{path}._target_: found {found}, allowed is none{search}")
            target_of(node, path, kind)
        if path.startswith(("hydra.job_logging.", "hydra.hydra_logging.")):
            _check_logging(path, node)


def _check_logging(path: str, node: dict[str, Any]) -> None:
    for key in {"()", "class"} & node.keys():
        name = node[key]
        if isinstance(name, str) and name.startswith("logging."):  # Python's own, but these
            parts = name.split(".")[1:]
            found = functools.reduce(lambda at, part: getattr(at, part, None), parts, logging)
        else:
            found = locate(name, f"{path}.{key}")
        if not (isinstance(found, type) and issubclass(found, LOGGING)):
            raise UserError(
                f"{path}.{key}: found {shortened(name)}, allowed is a handler, formatter or filter "
                "of logging"
            )
    for key, value in node.items():
        if isinstance(value, str) and value.startswith("ext://") and value not in STREAMS:
            raise UserError(f"{path}.{key}: found {value!r}, allowed is {' or '.join(STREAMS)}")


def _mappings(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping in a node, with its path."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _mappings(value, f"{path}.{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _mappings(value, f"{path}[{place}]")


def check_names(config: DictConfig, loader: ConfigLoaderImpl, overrides: list[str]) -> None:
    """Refuse a typed name that another file of the group has: records would show the wrong one."""
    for text in overrides:
        key = text.partition("=")[0].lstrip("+")
        group, _, last = key.partition(".")
        node = config.get(group)
        if last not in ("name", "architecture") or not OmegaConf.is_dict(node):
            continue
        name, architecture = node.get("name"), node.get("architecture")
        if last == "architecture" and architecture != name:
            raise UserError(
                f"{key}: found {shortened(architecture)} for what is called {name}, allowed is "
                f"one name for both: {group}=timm {group}.name={architecture}"
            )
        taken = loader.get_group_options(group) if last == "name" and architecture is None else []
        if str(name) in taken:
            choices = (config.hydra.runtime.choices[group], name)
            own, other = (
                loader.load_configuration("train", [f"{group}={choice}"], RunMode.RUN)[group]
                for choice in choices
            )
            # A file without a name of its own (image_folder) is what the user says.
            if not OmegaConf.is_missing(own, "name") and called_by(node) != called_by(other):
                raise UserError(
                    f"{key}: found {shortened(name)}, the name of another {group}, allowed is "
                    f"{group}={name}, or a name of its own"
                )


def check_run(config: DictConfig, raw: dict[str, Any], settings: dict[str, Any]) -> None:
    """What becomes part of a run's path, before there is one.

    Args:
        raw: the config, unresolved, without the ``hydra`` node.
        settings: that node.
    """
    names = [f"{key}.name" for key in ("data", "teacher", "student", "distiller")]
    for key in (*names, *(["weighting.kind"] if "kind" in config.weighting else [])):
        group, _, last = key.partition(".")
        if not OmegaConf.is_missing(config[group], last):
            check_name(key, config[group].get(last))
    check_choice("teacher.table", config.teacher.get("table", "auto"), ("auto", True, False))
    for key, (expected, ours) in PLACES.items():
        found = functools.reduce(dict.__getitem__, key.split("."), settings)
        if found != expected and not (key == "job.chdir" and found is False):
            raise UserError(
                f"hydra.{key}: found {shortened(found)}, allowed is {ours.format(found)}"
            )
    if not _has_missing(raw):  # which is told when it is needed
        check_folder("run_dir", config.run_dir)


def _has_missing(node: Any) -> bool:
    """Whether a value is still to be given (``???``)."""
    if isinstance(node, dict | list):
        return any(map(_has_missing, node.values() if isinstance(node, dict) else node))
    return node == "???"
