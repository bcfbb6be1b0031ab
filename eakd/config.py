"""From command line to composed config: groups, run names and one-line errors."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eakd.errors import Diverged, Interrupted, UserError
from eakd.workers import is_orphan, is_worker, pin

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"

# Keys that change where or how fast a run is computed, not what it computes.
UNIDENTIFYING = (
    *("run_dir", "output_root", "checkpoint_root", "save_teacher", "tracking", "resume"),
    *("progress", "device", "threads", "compile", "channels_last", "fold_batchnorm", "hydra"),
)

# The user can put these right: a full, read-only, broken or forbidden place to write to.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EIO, errno.EACCES, errno.EPERM),
)

# Launchers that are plugins of Hydra -> our extra that installs them.
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray",
}


def register() -> None:
    """Offer each ``configs/model/*.yaml`` as ``teacher=`` and ``student=``; define resolvers.

    Importing this module does it, in every process; doing it again changes nothing.
    """
    store = ConfigStore.instance()
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        for role in ("teacher", "student"):
            store.store(path.stem, OmegaConf.load(path), group=role, provider="configs/model")
    for name, resolver in (
        ("run_name", lambda *, _root_: run_name(_root_)),
        ("published", lambda *tables, _root_: published(_root_, *tables)),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True, use_cache=False)


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
    method = method.removeprefix("ea_")
    names = [data, method, f"{'none' if method == 'none' else teacher}-{student}"]
    if kind != "uniform":
        names.append(f"ea_{method}")
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
    if kept["distiller"]["name"] == "none":
        kept.pop("teacher")
    if kept["distiller"]["name"] == "none" or kept["weighting"]["kind"] == "uniform":
        kept["weighting"] = "uniform"
    if kept.get("sync_batchnorm") is False:  # as if the key had never been
        kept.pop("sync_batchnorm")
    kept["recipe"].pop("name", None)
    for place in (kept["data"], kept["data"].get("load", {})):
        for key in ("root", "cache_dir", "download"):
            place.pop(key, None)
    return _same_numbers(kept)


def _same_numbers(value: Any) -> Any:
    """``6.0`` as ``6``, at any depth: YAML and the command line write either."""
    if isinstance(value, dict):
        return {key: _same_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_same_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def method_label(config: DictConfig) -> str:
    """``kd``, ``ea_kd`` or ``kd+teacher``: the same for every spelling of the same method."""
    base, kind = config.distiller.name.removeprefix("ea_"), config.weighting.kind
    if base == "none" or kind == "uniform":
        return base
    return f"ea_{base}" if kind == "ea" else f"{base}+{kind}"


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


def compose(overrides: list[str] | None = None, config_name: str = "train") -> DictConfig:
    """Compose a config without a command line: for notebooks, tests and runs that start runs.

    Raises:
        UserError: an unknown name or key, with the valid ones.
    """
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, config_name)) from error


def _compose(config_name: str, overrides: list[str] | None = None) -> DictConfig:
    if GlobalHydra.instance().is_initialized():  # inside an application over the same configs
        return hydra.compose(config_name, overrides)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def entry_point(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``task`` as a Hydra application.

    A `UserError` becomes one line on standard error and exit status 2, a `Diverged` run status 1,
    `Interrupted` 128 plus the signal. In a sweep the other jobs go on first, whichever launcher
    runs them, and the first failed job decides the status; a signal ends a sweep that runs inside
    this process.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand every error to this function
    job = functools.update_wrapper(JobFunction(task, config_name, exits=True), task)
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    except KeyboardInterrupt:
        print("SIGINT: the same command runs what is missing", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        status = _exit_status(error)
        if status is None:
            raise
        if not getattr(error, "reported", False):
            print(_line(error, config_name), file=sys.stderr)
        sys.exit(status)


class JobFunction:
    """A task function for any launcher: `guard` around ``task``.

    A worker process that unpickles it imports this module, which gives it resolvers and config
    groups before Hydra composes the job's config, and goes to this directory, so that relative
    folders are the same everywhere.

    Args:
        task: what a job does with its config.
        config_name: the root config, for error messages.
        exits: a failure ends the process where no other job could follow.
    """

    def __init__(self, task: Callable[[DictConfig], Any], config_name: str, exits: bool = False):
        self.task, self.config_name, self.exits = task, config_name, exits
        self.directory = os.getcwd()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.path.isdir(self.directory):
            os.chdir(self.directory)

    def __call__(self, config: DictConfig) -> Any:
        try:
            return guard(self.task, config, self.config_name)
        except Exception as error:
            status = _exit_status(error)
            if self.exits and status is not None and self._is_last(error):
                sys.exit(status)
            raise

    def _is_last(self, error: Exception) -> bool:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return True
        inside = _launcher() in ("BasicLauncher", "JoblibLauncher") and not is_worker()
        return inside and isinstance(error, Interrupted)


def guard(task: Callable[[DictConfig], Any], config: DictConfig, config_name: str = "train") -> Any:
    """Run one job, wherever a launcher put it: ``task(config)``, a failure told in one line.

    The line is printed by the job, and the error goes on as one that can be pickled, so that the
    launcher carries it to the main process. It is marked ``reported`` where the job's standard
    error reaches the user.

    Raises:
        UserError: also for config errors and full disks. Diverged, Interrupted: as they come.
    """
    # A full disk under the log would otherwise print a traceback for every message.
    logging.raiseExceptions = False
    failure: Exception
    try:
        if _launcher() == "JoblibLauncher" and is_worker():
            pin(HydraConfig.get().launcher.n_jobs, config.get("device"), config.get("threads"))
        return task(config)
    except (Diverged, Interrupted) as error:
        failure = error
    except Exception as error:
        if _exit_status(error) is None:
            if _launcher() not in (None, "BasicLauncher"):
                log.exception("failed")  # pickling drops the traceback
            raise
        failure = UserError(explain(error, config_name))
    print(_line(failure, config_name), file=sys.stderr, flush=True)
    failure.reported = _launcher() not in ("LocalLauncher", "SlurmLauncher")  # these write files
    if isinstance(failure, Interrupted):
        failure.hand_on()
        if _launcher() == "JoblibLauncher" and is_worker() and is_orphan():
            os._exit(failure.exit_status)  # and take no further run from the queue
    elif HydraConfig.initialized():
        _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
    raise failure


def _launcher() -> str | None:
    """The class of the launcher whose job this process runs, ``None`` for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return str(HydraConfig.get().launcher.get("_target_")).rpartition(".")[2]


def _exit_status(error: Exception) -> int | None:
    """What the process says about an error, ``None`` for an error in the program."""
    if isinstance(error, Interrupted):
        return error.exit_status
    if isinstance(error, Diverged) or _from_launcher(error):
        return 1
    expected = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    return 2 if expected or _is_disk_error(error) else None


def _is_disk_error(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def _from_launcher(error: Exception) -> bool:
    """Whether the machinery of a launcher failed: a worker died, a queue refused the job."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    places = [type(error).__module__, frames[-1].f_globals.get("__name__", "") if frames else ""]
    return any(place.partition(".")[0] in ("joblib", "submitit", "ray") for place in places)


def _line(error: Exception, config_name: str) -> str:
    if isinstance(error, Interrupted):
        return str(error)
    return f"error: {explain(error, config_name)}"


def _remove_if_empty(directory: Path) -> None:
    """Hydra creates the run directory before the config is checked; leave no trace of a refusal."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler) and handler.stream is None:  # not opened yet
            logging.getLogger().removeHandler(handler)
    for path in (directory, *directory.parents[:3]):
        try:
            path.rmdir()
        except OSError:  # not empty, or gone
            return


def explain(error: Exception, config_name: str) -> str:
    """One line for a config error: the key, what was found, what is allowed."""
    if isinstance(error, UserError | Diverged):
        return str(error)
    if _is_disk_error(error):
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: found no value, give one: {error.full_key}=…"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in EXTRAS:
        plugin = error.missing_cfg_file.rpartition("/")[2]
        extra = EXTRAS[error.missing_cfg_file]
        return f"hydra/launcher: found no plugin {plugin!r}:  pip install 'eakd[{extra}]'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, found = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: found {found!r}, allowed is one of {', '.join(error.options)}"
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text}"
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    allowed = _siblings(unknown[1], config_name) if unknown else []
    if allowed:
        return f"{unknown[1]}: found an unknown key, allowed is one of {', '.join(allowed)}"
    if _from_launcher(error):
        first = str(error).strip().partition("\n")[0]
        lost = type(error).__module__ != "builtins"  # a job is, as opposed to a refused launch
        return f"hydra/launcher: {first}" + "; the same command runs what is missing" * lost
    cause = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ else ""
    return text + cause


def _siblings(key: str, config_name: str) -> list[str]:
    """The keys beside ``key`` in the default config."""
    try:
        known = _compose(config_name)
    except (HydraException, OmegaConfBaseException):
        return []
    parent, _, _ = key.rpartition(".")
    node = OmegaConf.select(known, parent) if parent else known
    return [str(k) for k in node if k != "_target_"] if OmegaConf.is_dict(node) else []


register()
