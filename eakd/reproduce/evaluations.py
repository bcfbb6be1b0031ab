"""What a table measures after training: each run's checkpoint on test sets of its own.

A run of such a table looks at its development set only. Once it is finished, its checkpoint is
evaluated by ``scripts/evaluate_text.py``, whose result lies in the run's directory, and so is each
teacher.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
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

SHARED = (
    "data.root",
    "data.template",
    "device",
    "precision",
    "threads",
)  # overrides that evaluations take too
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
        """What was measured, ``None`` if it was not, or of a model that is no longer this one."""
        try:
            found = read_object(self.folder / "result.json")
            trained = _when((read_run(self.run) or {}).get("finished")) if self.run else None
        except UserError as error:
            log.warning("not used: %s", error)
            return None
        if found is None or not isinstance(found.get("metrics"), dict):
            return None
        if self.run is None:  # a teacher, from anywhere
            trained = _written(self.checkpoint / "config.json")
        measured = _when(found.get("time"))
        return None if trained and not (measured and measured >= trained) else found


def evaluations(plan: Plan, select: str) -> dict[Path, Evaluation]:
    """Run directory, or teacher's path → its evaluation; none of a table that needs none."""
    name, found = plan.table.evaluation, {}
    for teacher in {job.teacher: None for job in plan.students if job.teacher} if name else ():
        folder = Path(plan.output_root, "evaluations", name, f"teacher-{teacher.name}")
        found[teacher] = Evaluation(f"the teacher {teacher.name}", teacher, folder)
    for job in plan.students if name else ():
        folder = job.directory / "evaluations" / f"{select}-{name}"
        found[job.directory] = Evaluation(job.label, job.directory / select, folder, job.directory)
    return found


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
    added: dict[str, Any] = {}
    for name, value in _metrics(found[job.directory].result).items():
        added[name if name.endswith(SPREAD) else f"{name}_{select}"] = value
    result = found[job.teacher].result if job.teacher else None
    if result is not None and run.get("teacher_digest") in (None, result["checkpoint_digest"]):
        added |= {f"teacher_{name}": value for name, value in _metrics(result).items()}
    return {**run, **added}


def _metrics(result: Mapping[str, Any] | None) -> dict[str, float]:
    return dict(result["metrics"]) if result else {}


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


def _written(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(path.stat().st_mtime), timezone.utc)
    except OSError:
        return None


def about_evaluation(table: Table, select: str) -> str:
    """What was measured, for a report."""
    return (
        f"each run's {select} checkpoint, sampled by evaluation={table.evaluation}; a run's value "
        "is the mean of its samplings"
    )
