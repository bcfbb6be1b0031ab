"""Composing configs, and one line for every config that cannot be."""

from __future__ import annotations

import re
import shlex

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eakd.checking import watch
from eakd.config import CONFIGS
from eakd.errors import UserError, nearest
from eakd.targets import unknown_key

# Launchers that are plugins of Hydra -> our extra that installs them.
EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray",
}


def compose(overrides: list[str] | None = None, config_name: str = "train") -> DictConfig:
    """Compose a config without a command line: for notebooks, tests and runs that start runs.

    Raises:
        UserError: an unknown name or key, with the valid ones, or a value that cannot be.
    """
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain_config(error, config_name)) from error


def _compose(config_name: str, overrides: list[str] | None = None) -> DictConfig:
    if GlobalHydra.instance().is_initialized():  # inside an application over the same configs
        return hydra.compose(config_name, overrides)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(config_name, overrides)


def options(group: str) -> list[str]:
    """Every value of a config group, those of a ``--config-dir`` and generated ones included."""
    if GlobalHydra.instance().is_initialized():
        return GlobalHydra.instance().config_loader().get_group_options(group)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return options(group)


def explain_config(error: Exception, config_name: str) -> str:
    """One line for a config error: the key, what was found, what is allowed."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: found no value, give one: {error.full_key}=…"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file in EXTRAS:
        plugin = error.missing_cfg_file.rpartition("/")[2]
        extra = EXTRAS[error.missing_cfg_file]
        return f"hydra/launcher: found no plugin {plugin!r}:  pip install 'eakd[{extra}]'"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, found = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: found {found!r}, allowed {nearest(found, error.options)}"
    cause: BaseException | None = error
    while cause is not None:  # raised by a resolver, which OmegaConf wraps
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    text = " ".join(str(error).split())
    # Met where another key takes the value over: the message names both.
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"{missing[1]}: found no value, give one: {missing[1]}=…"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {text}; such a text is quoted: {quoted(error.override)}"
    unknown = re.search(r"Could not override '([^'@]+)'", text)
    allowed = _siblings(unknown[1], config_name) if unknown else []
    if allowed:
        return str(unknown_key(unknown[1], allowed))
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


def quoted(override: str) -> str:
    """An override with its value in quotes for Hydra, and in others for the shell."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


watch()
