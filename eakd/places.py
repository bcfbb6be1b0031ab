"""Where configs and commands are: in a checkout, in an installed package, in one's own folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eakd.errors import UserError

_PACKAGE = Path(__file__).resolve().parent

# A wheel holds the package alone, so it carries configs and manifest inside; a checkout, which an
# editable install is too, has them beside it, where they are found and edited.
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIGS = ROOT / "configs"
MANIFEST = ROOT / "checkpoints" / "manifest.yaml"


def command_words(name: str) -> list[str]:
    """How a command of ours is typed: as this one was, ``eakd-train`` or a script of a checkout.

    Args:
        name: ``train``, ``evaluate_text``, … .
    """
    script, here = ROOT / "scripts" / f"{name}.py", Path.cwd()
    if Path(sys.argv[0]).name.startswith("eakd-") or not script.is_file():
        return [f"eakd-{name.replace('_', '-')}"]
    return ["python", str(script.relative_to(here) if script.is_relative_to(here) else script)]


def config_dirs(words: Sequence[str]) -> list[str]:
    """The absolute values of ``--config-dir`` (``-cd``) on a command line."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, given, value = word.partition("=")
        # argparse takes the beginning of an option for the option.
        if flag == "-cd" or (flag.startswith("--config-d") and "--config-dir".startswith(flag)):
            found.append(str(Path(value if given else following).absolute()))
    return found


def config_folders() -> list[Path]:
    """The folders of configs: ours, whose files win, then this command's ``--config-dir``."""
    if not GlobalHydra.instance().is_initialized():
        return [CONFIGS]
    places = GlobalHydra.instance().config_loader().get_search_path().get_path()
    own = [place.path for place in places if place.provider == "command-line"]
    return [CONFIGS, *(Path(path.removeprefix("file://")) for path in own)]


def check_config_dir(folder: Path) -> None:
    """Read a ``--config-dir`` as far as its folders are called as ours are.

    Raises:
        UserError: it is no folder, a file in it cannot be read, or ours of the same name hides it.
    """
    if not folder.is_dir():
        raise UserError(f"--config-dir: found {str(folder)!r}, allowed is a folder that exists")
    for group in sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()):
        for path in sorted((folder / group).rglob("[!.]*.yaml")):
            read_yaml(path)
            ours = CONFIGS / path.relative_to(folder)
            if ours.is_file() and ours.read_bytes() != path.read_bytes():
                raise UserError(
                    f"{path}: found a file that would not be read, because {ours} is called the "
                    "same, allowed is another name"
                )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, interpolations as they are written.

    Raises:
        UserError: with the file, and the line where it is no YAML.
    """
    try:
        found = OmegaConf.load(path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}: found no YAML in line {line} ({error.problem})") from error
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason})") from error
    if not OmegaConf.is_dict(found):
        raise UserError(f"{path}: found a list, allowed are lines KEY: VALUE")
    return OmegaConf.to_container(found)
