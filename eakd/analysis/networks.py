"""Opening what finished runs trained: their networks at an epoch, and what these say of a split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from eakd.analysis.answers import Answers, ask
from eakd.analysis.cache import Arrays, cache_folder, digest, remembered
from eakd.analysis.runs import LANGUAGE, Run, composed
from eakd.classification.build import DATA_KEYS, build_data, build_model
from eakd.config import DEFAULT_TASK, plain
from eakd.data import Pipeline
from eakd.errors import UserError, check_choice
from eakd.models.inference import prepare_teacher
from eakd.models.weights import load_weights
from eakd.training.device import Compute
from eakd.training.find_teacher import find_checkpoint, weights_digest
from eakd.training.reading import SNAPSHOTS
from eakd.training.recording import epoch_at
from eakd.training.schedule import Recipe

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class Opening:
    """What opening networks of runs shares, of whatever domain.

    Args:
        output_root: caches lie in its ``figures/cache/``.
        device, precision: see `Compute`.

    Attributes:
        notes: a line for each network that could not be opened, see `attempt`.
    """

    def __init__(
        self, output_root: str | Path, device: str = "auto", precision: str = "auto"
    ) -> None:
        self.compute = Compute.create(device=device, precision=precision)
        self.cache = cache_folder(output_root)
        self.notes: list[str] = []

    def attempt(self, work: Callable[..., Found], *arguments: Any) -> Found | None:
        """``work(*arguments)``, or ``None`` and a note: one damaged file is not all of a figure."""
        try:
            return work(*arguments)
        except Unusable as error:
            if str(error) not in self.notes:
                log.warning("%s", error)
                self.notes.append(str(error))
            return None

    def described(self, runs: Iterable[Run], split: str, samples: int) -> dict[str, Any]:
        """What a caption says of how a figure was computed."""
        runs = list(runs)
        return {
            "seeds": sorted({run.seed for run in runs}),
            "epochs": sorted({run.epochs for run in runs}),
            "samples": samples,
            "split": split,
            "device": str(self.compute.device),
            "precision": self.compute.precision,
            "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }


class Networks(Opening):
    """Opens the students of runs of images and the teachers that they name; see `Opening`."""

    def __init__(
        self, output_root: str | Path, device: str = "auto", precision: str = "auto"
    ) -> None:
        super().__init__(output_root, device, precision)
        self._pipelines: dict[str, Pipeline] = {}

    def data(self, run: Run) -> Pipeline:
        """The data set of a run.

        Raises:
            UserError: it is not there, or not what the run was trained on.
        """
        config = run_config(run).copy()
        # Without keys that others, such as load.root, were resolved from.
        config.data = {k: v for k, v in plain(config.data).items() if k in DATA_KEYS}
        key = OmegaConf.to_yaml(config.data)
        if key not in self._pipelines:
            recipe = Recipe(epochs=1, batch_size=64)  # of batches that nobody asks for
            self._pipelines[key] = build_data(config, 0, self.compute, recipe)
        found, wanted = self._pipelines[key].fingerprint, run.summary.get("data_fingerprint")
        if wanted not in (None, found):
            raise UserError(
                f"{run.directory}: was trained on other data ({wanted[:12]}) than lies there now "
                f"({found[:12]})"
            )
        return self._pipelines[key]

    def has_split(self, run: Run, split: str) -> bool:
        """Whether a run's data has it; not every run sets a ``val`` aside."""
        return split != "val" or bool(run_config(run).data.val_fraction)

    def student(self, run: Run, epoch: int | None = None) -> nn.Module:
        """The student after ``epoch``, by default the last, in eval mode on the device.

        Raises:
            Unusable: its weights are not there, or damaged.
        """
        path = student_file(run, epoch)
        model = build_model(run_config(run).student, "student", self._classes(run))
        try:
            load_weights(model, path)
        except UserError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise Unusable(
                f"{path}: damaged ({reason}); delete it, and retrain=true trains its run again"
            ) from error
        return self.compute.move(model.eval().requires_grad_(False))

    def teacher(self, run: Run, fold: bool | None = None) -> nn.Module:
        """The teacher of a run, in eval mode on the device.

        Args:
            fold: its batch norms, see `prepare_teacher`; by default as the run did.

        Raises:
            UserError: its file is not there, or is not the one that the run learned from.
        """
        config, path = run_config(run), teacher_file(run)
        model = build_model(config.teacher, "teacher", self._classes(run))
        load_weights(model, path)
        model = self.compute.move(model.eval().requires_grad_(False))
        if config.fold_batchnorm if fold is None else fold:
            example = next(iter(self.data(run).evaluation("test"))).images[:2]
            model = prepare_teacher(model, example, self.compute.dtype, self.compute.channels_last)
        return self.compute.move(model)

    def answers(self, run: Run, split: str = "test", epoch: int | None = None) -> Answers:
        """What the student says of a split; see `student` for errors."""
        path = student_file(run, epoch)
        return self._ask(run, split, path, "student", lambda: self.student(run, epoch))

    def teacher_answers(self, run: Run, split: str = "test") -> Answers:
        """What the teacher of a run says of a split; see `teacher` for errors."""
        return self._ask(run, split, teacher_file(run), "teacher", lambda: self.teacher(run))

    def facts(self, run: Run, path: Path, role: str, split: str) -> dict[str, Any]:
        """What decides the numbers that a network gives for a split."""
        config = run_config(run)
        data = plain(config.data)
        return {
            "weights": weights_digest(path),
            "network": {k: v for k, v in plain(config[role]).items() if k not in TEACHER_ONLY},
            "data": run.summary.get("data_fingerprint") or self.data(run).fingerprint,
            "normalised": [data["mean"], data["std"]],
            "split": split,
            "held_out": data["val_fraction"] if split != "test" else 0,
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "folded": bool(role == "teacher" and config.fold_batchnorm),
        }

    def _ask(
        self, run: Run, split: str, path: Path, role: str, opened: Callable[[], nn.Module]
    ) -> Answers:
        facts = self.facts(run, path, role, split)

        def compute() -> Arrays:
            data = self.data(run)
            check_choice("split", split, data.splits)
            log.info("%s of %s, %s: asked for what it says", role, run.directory, split)
            found = ask(opened(), data.evaluation(split), self.compute)
            return {**found, "classes": np.array(data.data.classes)}

        return Answers(**remembered(self.cache, "answers", facts, compute), key=digest(facts))

    def _classes(self, run: Run) -> int:
        return run_config(run).data.get("num_classes") or self.data(run).num_classes

    def about(self, runs: Iterable[Run], split: str, answers: Answers) -> dict[str, Any]:
        """See `Opening.described`."""
        return self.described(runs, split, len(answers.labels))


class Unusable(UserError):
    """Weights that one run of several lacks: the others may go on."""


TEACHER_ONLY = ("name", "checkpoint", "table")
SAMPLES = {DEFAULT_TASK: "images", LANGUAGE: "texts"}


def run_config(run: Run, task: str = DEFAULT_TASK) -> DictConfig:
    """The composed config of a run, see `composed`.

    Args:
        task: that it must be of.

    Raises:
        UserError: it is not there or damaged, or the run is of another task.
    """
    config, found = composed(run)
    if found != task:
        path = run.directory / ".hydra" / "config.yaml"
        raise UserError(f"{path}: found a run of {found}, allowed are runs of {SAMPLES[task]}")
    return config


def student_file(run: Run, epoch: int | None = None) -> Path:
    """Where the student's weights after ``epoch`` lie, by default after the last.

    Raises:
        Unusable: they were not recorded.
    """
    if epoch is None or epoch == run.epochs:
        path = run.directory / "last.safetensors"
        if not path.is_file():
            raise Unusable(f"{path}: found no weights; retrain=true trains it again")
        return path
    path = run.directory / SNAPSHOTS / f"epoch{epoch:03d}.safetensors"
    if not path.is_file():
        raise Unusable(
            f"{run.directory}: has no snapshot of epoch {epoch} (recorded with record.snapshots); "
            "retrain=true trains it again"
        )
    return path


def teacher_file(run: Run) -> Path:
    """The file of a run's teacher.

    Raises:
        UserError: the run has none, the file is not there, or it is another than the run's.
    """
    check_has_teacher(run)
    config = run_config(run)
    root, name = Path(config.checkpoint_root), config.teacher.name
    # No entry of the manifest: what the run learned from was there, and nothing is downloaded.
    path = find_checkpoint(config.teacher.checkpoint, config.data.name, name, root, entry={})
    check_is_its_teacher(run, path, weights_digest(path))
    return path


def check_has_teacher(run: Run) -> None:
    """Raise `UserError` for a run without a teacher."""
    if not run.teacher:
        raise UserError(
            f"runs: found method {run.method}, allowed for this figure is a method with a teacher"
        )


def check_is_its_teacher(run: Run, path: Path, digest: str) -> None:
    """Raise `UserError` unless the run learned from what lies at ``path``, as far as it tells."""
    wanted = run.summary.get("teacher_digest")
    if wanted not in (None, digest):
        raise UserError(
            f"{path}: found another teacher ({digest[:12]}) than {run.directory} learned from "
            f"({wanted[:12]})"
        )


def epochs_of(run: Run, snapshots: Sequence[float]) -> list[int]:
    """Epochs at ``snapshots``, as the recording rounds them, and the last."""
    found = {epoch_at(value, run.epochs) for value in snapshots}
    return sorted({*(epoch for epoch in found if epoch < run.epochs), run.epochs})


def first_with_teacher(runs: Iterable[Run]) -> Run:
    """The run whose teacher a figure shows.

    Raises:
        UserError: none has a teacher.
    """
    for run in runs:
        if run.teacher:
            return run
    raise UserError("runs: found no method with a teacher, allowed are some with one")
