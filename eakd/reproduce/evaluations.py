"""What a table measures after training: each run's checkpoint on test sets of its own.

A run of such a table looks at its development set only. Once it is finished, its checkpoint is
evaluated by ``scripts/evaluate_text.py``, whose result lies in the run's directory, and so is each
teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from eakd.errors import UserError
from eakd.reproduce.comparison import read_run
from eakd.reproduce.launch import launch
from eakd.reproduce.overrides import read
from eakd.reproduce.plan import Job, Plan
from eakd.reproduce.table import Table
from eakd.training.hints import written
from eakd.training.reading import read_object

log = logging.getLogger(__name__)

SHARED = ("data.root", "device", "precision", "threads")  # overrides that evaluations take too
SPREAD = "_sampling_std"


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint under one protocol.

    Attributes:
        checkpoint: a directory.
        folder: where the result lies.
        run: of the run's directory, ``None`` for a teacher that came from elsewhere.
    """

    label: str
    checkpoint: Path
    folder: Path
    run: Path | None = None

    def overrides(self, table: Table, shared: Sequence[str]) -> list[str]:
        """The command line of ``scripts/evaluate_text.py``."""
        return [
            f"checkpoint={written(str(self.checkpoint))}",
            f"results={written(str(self.folder))}",
            f"evaluation={table.evaluation}",
            "replace=true",  # what is there is of an earlier training of the same run
            *(text for text in shared if read(text).key_or_group in SHARED),
        ]

    @property
    def result(self) -> dict[str, Any] | None:
        """What was measured, ``None`` if it was not yet, or before the run was trained again."""
        try:
            found = read_object(self.folder / "result.json")
            run = read_run(self.run) if self.run else None
        except UserError as error:
            log.warning("not used: %s", error)
            return None
        if found is None or not isinstance(found.get("metrics"), dict):
            return None
        trained, measured = _when((run or {}).get("finished")), _when(found.get("time"))
        return None if trained and not (measured and measured >= trained) else found


def evaluations(plan: Plan, select: str) -> dict[Path, Evaluation]:
    """Run directory, or teacher's path → its evaluation; none of a table that needs none."""
    name = plan.table.evaluation
    if not name:
        return {}
    found = {}
    for job in plan.students:
        teacher = teacher_directory(job)
        if teacher is not None:
            folder = Path(plan.output_root, "evaluations", name, f"teacher-{teacher.name}")
            found[teacher] = Evaluation(f"teacher {teacher.name}", teacher, folder)
    for job in plan.students:
        folder = job.directory / "evaluations" / f"{select}-{name}"
        found[job.directory] = Evaluation(job.label, job.directory / select, folder, job.directory)
    return found


def teacher_directory(job: Job) -> Path | None:
    """The teacher of a run as a directory of its own; a name of the hub is none."""
    return job.teacher if job.teacher is not None and job.teacher.is_dir() else None


def evaluate(plan: Plan, wanted: Iterable[Evaluation]) -> None:
    """Evaluate what has a checkpoint and no result, through the launcher that was chosen."""
    todo = [each for each in wanted if each.checkpoint.is_dir() and each.result is None]
    if not todo:
        return
    log.info("%d evaluations to do", len(todo))
    settings = list(HydraConfig.get().overrides.hydra) if HydraConfig.initialized() else []
    jobs = [each.overrides(plan.table, plan.overrides) for each in todo]
    launch(jobs, settings, task=evaluate_text, config_name="evaluate_text")


def evaluate_text(config: DictConfig) -> None:
    """The task of a job: one checkpoint."""
    from eakd.language.command import evaluate_checkpoint

    evaluate_checkpoint(config)


def add_metrics(
    run: Mapping[str, Any], job: Job, found: Mapping[Path, Evaluation], select: str
) -> dict[str, Any]:
    """A finished run with what was measured of it, and of its teacher, afterwards."""
    results = {"": found.get(job.directory)}
    teacher = teacher_directory(job)
    if teacher is not None:
        results["teacher_"] = found.get(teacher)
    added: dict[str, Any] = {}
    for prefix, evaluation in results.items():
        metrics = ((evaluation and evaluation.result) or {}).get("metrics", {})
        for name, value in metrics.items():
            ours = not prefix and not name.endswith(SPREAD)
            added[f"{prefix}{name}" + f"_{select}" * ours] = value
    return {**run, **added}


def describe(found: Mapping[Path, Evaluation]) -> str:
    """How many are done, in one line."""
    done = sum(each.result is not None for each in found.values())
    return f"evaluations after training: {done} of {len(found)} done"


def _when(text: object) -> datetime | None:
    """A time as status and results write it."""
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


def about_evaluation(table: Table, select: str) -> str:
    """What was measured, for a report."""
    return (
        f"each run's {select} checkpoint, sampled by evaluation={table.evaluation}; a run's value "
        "is the mean of its samplings"
    )
