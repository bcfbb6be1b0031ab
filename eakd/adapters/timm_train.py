"""timm's own ``train.py`` with EA-KD's loss::

    python -m eakd.adapters.timm_train train.py --weighting ea DATA --model … --kd-model-name …

The script is run as it is, but for its name ``LogitDistillationTask``, which stands for `EAKDTask`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from eakd.errors import UserError
from eakd.factors import KINDS

TASK, OTHERS = "LogitDistillationTask", ("FeatureDistillationTask", "TokenDistillationTask")


def main(words: Sequence[str] | None = None) -> None:
    """Run the script that the command line names; see ``--help``."""
    try:
        run(list(sys.argv[1:] if words is None else words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(words: list[str]) -> None:
    """Load the script, put our task in it, and call its ``main`` with timm's words.

    Raises:
        UserError: no such script, a wrong option, a timm that is too old.
    """
    own, timms = options(words)
    script = Path(own.script)
    if not script.is_file():
        raise UserError(f"{script}: found no file, allowed is timm's train.py")
    sys.argv = [str(script), *timms]
    sys.path.insert(0, str(script.resolve().parent))  # as Python itself does: a checkout's timm
    module = load(script)
    from eakd.adapters.timm_task import NEEDED, EAKDTask, build_method
    from eakd.weighting import Weighting

    if not all(hasattr(module, name) for name in (TASK, "main", "train_one_epoch")):
        raise UserError(
            f"{script}: found no {TASK} in it, allowed is train.py of timm {NEEDED} or later"
        )
    weighting = Weighting(own.weighting, own.entropy_temperature, own.max_entropy)
    settings = dict(map(setting, own.set))
    build_method(own.method, weighting, settings, 1.0)  # before models and data are built
    chosen = {"method": own.method, "weighting": weighting, "settings": settings}
    setattr(module, TASK, functools.partial(EAKDTask, **chosen))
    # Otherwise training would go on without our loss, and not say so.
    module.ClassificationTask = refused("--kd-model-name: found none, allowed is a teacher's name")
    for name in OTHERS:
        setattr(module, name, refused("--kd-distill-type: allowed here is logit alone"))
    module.train_one_epoch = telling(module.train_one_epoch)
    module.main()


def options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the words that are timm's."""
    parser = argparse.ArgumentParser(
        prog="python -m eakd.adapters.timm_train",
        description="timm's train.py with EA-KD's loss; all other options are timm's.",
        allow_abbrev=False,
    )
    parser.add_argument("script", help="timm's train.py; the first word")
    parser.add_argument("--weighting", default="ea", choices=KINDS)
    parser.add_argument("--entropy-temperature", type=float, default=3.0, help="of the entropies")
    parser.add_argument("--max-entropy", type=float, help="in nats; default: log C")
    parser.add_argument("--method", default="kd", help="kd, kd_ls, dkd or dkd_ls")
    help = "a setting of the method, such as beta=2; again for each"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help=help)
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        parser.error(f"found {words[0]}, allowed as the first word is timm's train.py")
    return parser.parse_known_args(words)


def setting(word: str) -> tuple[str, Any]:
    """``beta=2`` as name and value.

    Raises:
        UserError: no such pair.
    """
    name, _, text = word.partition("=")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"--set: found {word!r}, allowed is NAME=NUMBER") from error


def load(script: Path) -> ModuleType:
    """The script as a module, under a name by which worker processes find what is in it."""
    spec = importlib.util.spec_from_file_location(f"_timm_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise UserError(f"{script}: found no Python file, allowed is timm's train.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(message: str) -> Callable[..., NoReturn]:
    """A task's place that leads to no task of ours."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise UserError(message)

    return refuse


def telling(train_one_epoch: Callable[..., Any]) -> Callable[..., Any]:
    """The script's function of an epoch, counted from 0, which tells our task the epoch."""

    @functools.wraps(train_one_epoch)
    def told(epoch: int, *arguments: Any, task: Any, **settings: Any) -> Any:
        task.epoch = epoch + 1
        return train_one_epoch(epoch, *arguments, task=task, **settings)

    return told


if __name__ == "__main__":
    main()
