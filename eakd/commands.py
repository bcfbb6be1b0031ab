"""The commands ``eakd-train``, ``eakd-report``, …: what each does with its config.

``pyproject.toml`` installs them, ``scripts/`` starts them from a checkout. Torch loads only once a
command has something to do, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from eakd.command_line import entry_point
from eakd.config import DEFAULT_TASK, plain


def command(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """The program that does ``task`` with ``configs/NAME.yaml``, NAME being the task's name."""

    def program() -> None:
        entry_point(task, task.__name__)

    program.__doc__ = task.__doc__
    return program


@command
def train(config: DictConfig) -> float | None:
    """Train one student, or one teacher with ``distiller=none``.

    Returns:
        What a search goes by; see `eakd.training.run.validated`.
    """
    from eakd.analysis.watching import pictures
    from eakd.training.run import run, validated

    return validated(run(config, pictures))


@command
def evaluate(config: DictConfig) -> None:
    """The metrics of any checkpoint on the test split, ours or the public zoo's."""
    from eakd.targets import locate
    from eakd.training.task import load_task

    name = config.data.get("task") or DEFAULT_TASK
    load_task(name)  # that it is one, before anything of its room is called
    locate(f"{name.rpartition('.')[0]}.evaluate_checkpoint", "data.task")(config)


@command
def evaluate_text(config: DictConfig) -> None:
    """ROUGE-L of a language model's answers on the test sets of the language tables."""
    from eakd.language.command import evaluate_checkpoint

    evaluate_checkpoint(config)


@command
def reproduce(config: DictConfig) -> None:
    """Plan, run, continue and report a table of the paper: ``table=2 mode=plan``."""
    from eakd.reproduce.command import reproduce

    reproduce(config)


@command
def report(config: DictConfig) -> None:
    """Compare finished runs: a table of means, spreads and paired differences, and a plot."""
    from eakd.reproduce.comparison import report

    print(report(config.runs, plain(config.by), config.baseline, config.select, config.plot))


@command
def predict(config: DictConfig) -> None:
    """Draw the boxes that a detector finds in images, or weighs most in its distillation."""
    from eakd.detection.predict import predict

    predict(config)


@command
def benchmark(config: DictConfig) -> None:
    """Training speed of the shipped loop, of a plain loop, and of the bare limit."""
    from eakd.benchmark import benchmark

    print(benchmark(config))


@command
def quickstart(config: DictConfig) -> None:
    """Train a small teacher, distil students with and without EA, and print the comparison."""
    from eakd.reproduce.quickstart import quickstart

    print(quickstart(config))


@command
def teachers(config: DictConfig) -> None:
    """The teachers of the paper's tables: ``mode=list | fetch | train | check``."""
    from eakd.teachers.command import teachers

    teachers(config)


@command
def convert(config: DictConfig) -> None:
    """A published detector, detectron2's or torchvision's, as a file that training reads."""
    from eakd.detection.convert import convert_checkpoint

    convert_checkpoint(config)


@command
def figure(config: DictConfig) -> None:
    """A figure of the paper, or of any runs: ``figure=3 mode=plan``."""
    from eakd.analysis.command import figure

    figure(config)


@command
def export(config: DictConfig) -> None:
    """A finished run's student as a folder that eakd.load, torch, timm or transformers opens."""
    from eakd.hub.export import export

    export(config)


@command
def migrate(config: DictConfig) -> None:
    """The command for a YAML file of mdistiller or of its forks."""
    from eakd.migrate import migrate

    migrate(config)
