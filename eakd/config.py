"""The composed config: groups, what identifies a run, and the names that follow from it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from eakd.errors import UserError
from eakd.factors import BASES, GAMMAS, KINDS, RULES
from eakd.places import CONFIGS, command_words, config_folders
from eakd.places import ROOT as ROOT

# Keys that change where or how fast a run is computed, or what is recorded of it: not its numbers.
UNIDENTIFYING = {
    "run_dir", "output_root", "checkpoint_root", "save_teacher", "tracking", "resume", "progress",
    "device", "threads", "compile", "channels_last", "fold_batchnorm", "record", "hydra",
}  # fmt: skip

# What a file says to planners and to `eakd.training.run`, and not to the constructor it names.
FACTS = {
    "data": ("task", "plan"),
    "distiller": (
        *("name", "task", "needs_teacher", "weighted", "scales_with_epochs", "logits_only"),
    ),
    "teacher": ("name", "task", "checkpoint", "table"),
    "student": ("name", "task"),
    "model": ("name", "task"),
}

# Keys that came after the first runs. With these values they are as if they had never been, so that
# the runs from before keep their directories.
RECIPE_DEFAULTS = {
    "optimizer": "sgd",
    "betas": [0.9, 0.999],
    "clip_norm": None,
    "accumulate": 1,
    "steps_per_epoch": None,
    "evaluate_every": 1,
    "min_lr": 0,
}

DEFAULT_TASK = "eakd.classification.Classification"  # of files that name none

EA = "ea_"  # an EA form's name is this and the method's


def register(config_dirs: Sequence[str] = ()) -> None:
    """Offer what follows from other files, so that nobody writes it twice; define resolvers.

    Each ``model/NAME.yaml`` is ``teacher=NAME`` and ``student=NAME``, each ``distiller/NAME.yaml``
    of a method with a teacher has its EA form ``distiller=ea_NAME``, each factor of `eakd.factors`
    is a ``weighting=``. A file of the same name wins over what is generated.

    Importing this module does it, in every process; doing it again changes nothing.

    Args:
        config_dirs: directories of the user's own configs, as ``--config-dir`` names them.
    """
    store = ConfigStore.instance()
    for folder in (CONFIGS, *map(Path, config_dirs)):
        for path in (folder / "model").glob("*.yaml"):
            for role in ("teacher", "student"):
                store.store(path.stem, {"defaults": [f"/model/{path.stem}@_here_"]}, group=role)
        for name in method_files(folder):
            group, _, stem = f"distiller/{name}".rpartition("/")
            weighting = {"override /weighting@_global_.weighting": "ea"}
            # The name is relative to the group that is chosen from: distiller=language/ea_kd.
            node = {"defaults": [f"{name}@_here_", weighting, "_self_"]}
            store.store(EA + stem, node, group=group)
    for kind in KINDS[1:]:  # the first is a file, which holds what all share
        node = {"defaults": ["uniform", "_self_"], "kind": kind, **rule_defaults(kind)}
        store.store(kind, node, group="weighting")
    for name, resolver in (
        ("run_name", lambda *, _root_: run_name(_root_)),
        ("published", lambda *tables, _root_: published(_root_, *tables)),
        ("command", lambda name, *, _root_: " ".join(command_words(name))),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True, use_cache=False)


def rule_defaults(kind: str) -> dict[str, float]:
    """The keys that only a weighting by a rule has."""
    base = BASES.get(kind, kind)
    gamma = {"gamma": GAMMAS[base]} if base in GAMMAS else {}
    return {"temperature": 1.0, **gamma} if base in RULES else {}


def method_files(folder: Path = CONFIGS) -> Iterator[str]:
    """The methods with a teacher among a folder's configs: ``kd``, ``language/kd``."""
    for path in sorted((folder / "distiller").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if not path.stem.startswith(EA) and not re.search(r"^needs_teacher: false\b", text, re.M):
            yield path.relative_to(folder / "distiller").with_suffix("").as_posix()


def check_domain(config: DictConfig) -> None:
    """Refuse a method or a network of one domain on data of another.

    Raises:
        UserError: with those that fit the data.
    """
    for key in ("distiller", "student", *(["teacher"] if needs_teacher(config) else [])):
        check_fits(config, key)


def check_fits(config: DictConfig, key: str) -> None:
    """Refuse what a node names if its file, by ``task``, is for other data.

    A network whose file names no task is one for images; where a domain has no networks of its own
    to offer, it is not refused.

    Args:
        key: ``distiller``, ``student``, ``teacher`` or ``model``.

    Raises:
        UserError: with what fits the data.
    """
    group, kind = ("distiller", "method") if key == "distiller" else ("model", "network")
    wanted, found = config.data.get("task") or DEFAULT_TASK, config[key].get("task")
    if (found or DEFAULT_TASK) == wanted:
        return
    fitting = [
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in config_folders()
        for path in sorted((folder / group).rglob("*.yaml"))
        if (OmegaConf.load(path).get("task") or DEFAULT_TASK) == wanted
    ]
    if found or fitting or key == "distiller":
        raise UserError(
            f"{key}: found {config[key].name}, a {kind} for {found or DEFAULT_TASK}, allowed with "
            f"data={config.data.name} is {', '.join(fitting) or f'a {kind} for {wanted}'}"
        )


@functools.cache
def published_tables() -> dict[str, dict[str, dict[str, Any]]]:
    """``configs/published.yaml``: section → key → entry → value."""
    return yaml.safe_load((CONFIGS / "published.yaml").read_text(encoding="utf-8"))


def published(config: DictConfig, *tables: str) -> Any:
    """The value of the last entry that matches a run, in tables named ``section.key``.

    ``configs/published.yaml`` explains the entries.
    """
    data, method, kind, teacher, student = (
        OmegaConf.select(config, key, default="none")
        for key in ("data.name", "distiller.name", "weighting.kind", "teacher.name", "student.name")
    )
    names = [data, method, f"{'none' if method == 'none' else teacher}-{student}"]
    if kind != "uniform":
        names.append(EA + method)
    value = None
    for table in tables:
        section, _, key = table.partition(".")
        for entry, candidate in published_tables()[section][key].items():
            parts = [] if entry == "default" else entry.split("/")
            if all(any(fnmatchcase(name, part) for name in names) for part in parts):
                value = candidate
    return value


def plain(config: Any) -> Any:
    """Resolved plain containers of a config node."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def identity(config: DictConfig) -> dict[str, Any]:
    """The part of a config that decides a run's numbers, as plain containers.

    Spellings of the same computation are made equal: ``distiller=ea_kd`` is ``distiller=kd
    weighting=ea``, a run without a teacher depends on none, where the data lies is no part, recipes
    that lead to the same protocol are one, and ``6.0`` is ``6``.
    """
    kept = {str(key): plain(config[key]) for key in config if key not in UNIDENTIFYING}
    kept["distiller"]["name"] = method_label(config)
    if needs_teacher(config):
        kept["teacher"].pop("table", None)
    else:
        kept.pop("teacher")
    if not is_weighted(config):
        kept["weighting"] = "uniform"
    else:  # weighting.kind=KIND has only the keys of the uniform one
        for key, default in rule_defaults(weighting_kind(config)).items():
            if kept["weighting"].get(key, default) == default:
                kept["weighting"].pop(key, None)
    if kept.get("sync_batchnorm") is False:  # as if the key had never been
        kept.pop("sync_batchnorm")
    recipe = kept["recipe"]
    recipe.pop("name", None)
    for key, default in RECIPE_DEFAULTS.items():
        if recipe.get(key, default) == default:
            recipe.pop(key, None)
    for place in (kept["data"], kept["data"].get("load", {})):
        for key in ("root", "cache_dir", "download", "workers", *FACTS["data"]):
            place.pop(key, None)
    for key in FACTS["distiller"][1:]:  # all but the name
        kept["distiller"].pop(key, None)
    for key in kept.keys() & {"teacher", "student"}:
        kept[key].pop("task", None)
    return _same_numbers(kept)


def _same_numbers(value: Any) -> Any:
    """``6.0`` as ``6``, at any depth: YAML and the command line write either."""
    if isinstance(value, dict):
        return {key: _same_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_same_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def needs_teacher(config: DictConfig) -> bool:
    """Whether the method of a config learns from a teacher."""
    return bool(config.distiller.get("needs_teacher", True))


def weighting_kind(config: DictConfig) -> str:
    """``weighting.kind``, or the class's name of a weighting that has no kinds."""
    return str(config.weighting.get("kind") or config.weighting["_target_"].rpartition(".")[2])


def is_weighted(config: DictConfig) -> bool:
    """Whether the weighting matters: training on the labels alone has no term that it touches."""
    touched = config.distiller.get("weighted", config.distiller.name != "none")
    return bool(touched) and weighting_kind(config) != "uniform"


def method_label(config: DictConfig) -> str:
    """``kd``, ``ea_kd`` or ``kd+teacher``: the same for every spelling of the same method."""
    base, kind = str(config.distiller.name), weighting_kind(config)
    if not is_weighted(config):
        return base
    if kind == "ea":  # a file of a user's own may already be called ea_
        return base if base.startswith(EA) else EA + base
    return f"{base}+{kind}"


def base_method(label: str) -> str:
    """The method behind a `method_label`: ``kd`` of ``ea_kd`` and of ``kd+teacher``."""
    return label.partition("+")[0].removeprefix(EA)


def config_hash(identified: dict[str, Any]) -> str:
    """Eight hex digits of an `identity`."""
    text = json.dumps(identified, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def name_of(identified: dict[str, Any]) -> str:
    """``<data>/<teacher>-<student>/<method>/seed<seed>-<hash>`` of an `identity`."""
    label, pair = identified["distiller"]["name"], identified["student"]["name"]
    if "teacher" in identified:
        pair = f"{identified['teacher']['name']}-{pair}"
    run = f"seed{identified['seed']}-{config_hash(identified)}"
    return f"{identified['data']['name']}/{pair}/{label}/{run}"


def run_name(config: DictConfig) -> str:
    """`name_of` a config, the same for the same config."""
    return name_of(identity(config))


# Hydra copies this singleton, which no reader changes, at every look at a group: most of the time
# that --help took.
ConfigStore.__deepcopy__ = lambda self, _: self

register()
