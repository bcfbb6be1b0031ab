"""What language models of finished runs, and their teachers, say of a split's answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eakd.analysis.answers import weighting_of
from eakd.analysis.cache import remembered
from eakd.analysis.networks import (
    Opening,
    Unusable,
    check_has_teacher,
    check_is_its_teacher,
    run_config,
)
from eakd.analysis.runs import LANGUAGE, Run
from eakd.errors import UserError, check_choice
from eakd.language.batches import TextData
from eakd.language.build import build_data, find_teacher, load_data_rows, trusts_code
from eakd.language.evaluation import token_values
from eakd.language.hub import directory_digest
from eakd.language.loss import Options
from eakd.language.models import check_vocabulary, load_model
from eakd.language.source import TextSource
from eakd.language.tokens import load_tokenizer
from eakd.targets import build
from eakd.training.schedule import Recipe
from eakd.weighting import Entropies

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenValues:
    """What a model says of the ``M`` tokens of ``N`` answers, one answer's after the other's.

    Attributes:
        lengths: ``(N,)`` int64, of the answers, each at least 1.
        ce: ``(M,)`` nats, cross-entropy.
        right: ``(M,)``, 1 where the likeliest token follows, else 0.
        student_entropy: ``(M,)`` nats at τ′, the model's own.
        bound: of the entropies, log of the tokenizer's size.
        divergence, teacher_entropy: ``(M,)`` nats, KL(teacher ‖ student) at τ and at τ′; ``None``
            of a model that was asked without a teacher.
    """

    lengths: np.ndarray
    ce: np.ndarray
    right: np.ndarray
    student_entropy: np.ndarray
    bound: np.ndarray
    divergence: np.ndarray | None = None
    teacher_entropy: np.ndarray | None = None

    @cached_property
    def row(self) -> np.ndarray:
        """``(M,)`` int64, the answer of each token."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> np.ndarray:
        """``(M,)`` int64, the place of each token in its answer, from 1."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(1, len(self.row) + 1) - starts[self.row]

    def means(self, values: np.ndarray) -> np.ndarray:
        """Over each answer's tokens, ``(M,) -> (N,)``."""
        return np.bincount(self.row, values, len(self.lengths)) / self.lengths


class Texts(Opening):
    """Opens the students of language runs and their teachers; see `Opening`."""

    def __init__(
        self, output_root: str | Path, device: str = "auto", precision: str = "auto"
    ) -> None:
        super().__init__(output_root, device, precision)
        self._data: dict[str, tuple[TextData, Any]] = {}

    def data(self, run: Run) -> tuple[TextData, Any]:
        """The rows of a run, and the tokenizer that lies beside its weights.

        Raises:
            UserError: they are not there, or not what the run was trained on.
        """
        wanted = run.summary.get("data_fingerprint", "")
        if wanted in self._data:
            return self._data[wanted]
        config = run_config(run, LANGUAGE)
        tokenizer = load_tokenizer(student_folder(run, "last"), "runs", trusts_code(config.student))
        rows = load_data_rows(config, build(config.data.load, "data", TextSource), tokenizer)
        recipe = Recipe(epochs=1, batch_size=1)  # of steps that nobody asks for
        data = build_data(config, rows, recipe, self.compute)
        if wanted not in ("", data.fingerprint):
            raise UserError(
                f"{run.directory}: was trained on other data ({wanted[:12]}) than lies there now "
                f"({data.fingerprint[:12]})"
            )
        self._data[data.fingerprint] = data, tokenizer
        return data, tokenizer

    def student(self, run: Run, select: str = "best") -> nn.Module:
        """The student of the ``best`` or ``last`` epoch, in eval mode on the device.

        Raises:
            Unusable: its weights are not there, or damaged.
        """
        folder = student_folder(run, select)
        try:
            model = load_model(folder, "runs", trusts_code(run_config(run, LANGUAGE).student))
        except UserError as error:
            reason = str(error).removeprefix("runs: ")
            raise Unusable(
                f"{folder}: damaged ({reason}); delete it, and retrain=true trains its run again"
            ) from error
        return model.requires_grad_(False).to(self.compute.device)

    def teacher(self, run: Run) -> nn.Module:
        """The teacher of a run, in eval mode on the device; see `teacher_folder` for errors."""
        trusted = trusts_code(run_config(run, LANGUAGE).teacher)
        model = load_model(teacher_folder(run), "teacher", trusted, self.compute.dtype)
        return model.requires_grad_(False).to(self.compute.device)

    def values(self, run: Run, split: str, select: str, options: Options) -> TokenValues:
        """What the student says of a split, beside its teacher; see `student` for errors.

        Each student has a pass of the teacher of its own: an epoch of its training had many.
        """
        folder, teacher = student_folder(run, select), teacher_folder(run)
        return self._ask(run, split, options, folder, teacher, select)

    def teacher_values(self, run: Run, split: str, options: Options) -> TokenValues:
        """What the teacher of a run says of a split by itself."""
        return self._ask(run, split, options, teacher_folder(run), None, "")

    def _ask(
        self, run: Run, split: str, options: Options, asked: Path, teacher: Path | None, select: str
    ) -> TokenValues:
        fingerprint = run.summary.get("data_fingerprint") or self.data(run)[0].fingerprint
        facts = {
            "weights": directory_digest(asked),
            "teacher": None if teacher is None else directory_digest(teacher),
            "data": fingerprint,
            "split": split,
            "options": list(options),
            "precision": self.compute.precision,
            "device": self.compute.device.type,
        }

        def compute() -> dict[str, np.ndarray]:
            data, tokenizer = self.data(run)
            check_choice("split", split, data.splits)
            log.info("%s: asked for the %s answers, token by token", asked, split)
            model = self.student(run, select) if teacher is not None else self.teacher(run)
            beside = None if teacher is None else self.teacher(run)
            for each in filter(None, (model, beside)):
                check_vocabulary(each, tokenizer, "runs")
            arguments = data, split, self.compute, len(tokenizer), options
            return token_values(model, beside, *arguments)

        return TokenValues(**remembered(self.cache, "tokens", facts, compute))


def student_folder(run: Run, select: str) -> Path:
    """Where the student of the ``best`` or ``last`` epoch lies.

    Raises:
        Unusable: it is not there.
    """
    folder = run.directory / select
    if not (folder / "config.json").is_file():
        raise Unusable(f"{folder}: found no weights; retrain=true trains it again")
    return folder


def teacher_folder(run: Run) -> Path:
    """Where the teacher of a run lies; nothing is downloaded.

    Raises:
        UserError: the run has none, it is not there, or it is another than the run's.
    """
    check_has_teacher(run)
    path = find_teacher(run_config(run, LANGUAGE), download=False)
    check_is_its_teacher(run, path, directory_digest(path))
    return path


def token_weights(run: Run, values: TokenValues) -> np.ndarray:
    """``(M,)``, the run's weight of each token as if each had its own (``level=token``)."""
    return _combined(run, values.teacher_entropy, values.student_entropy, values.bound)


def answer_weights(run: Run, values: TokenValues) -> np.ndarray:
    """``(N,)``, the run's weight of each answer, as its ``distiller.level`` reads the paper."""
    if run.config["distiller"].get("level", "sequence") in ("token", "token_mean"):
        return values.means(token_weights(run, values))
    both = values.means(values.teacher_entropy), values.means(values.student_entropy)
    return _combined(run, *both, values.bound)


def _combined(run: Run, teacher: np.ndarray, student: np.ndarray, bound: np.ndarray) -> np.ndarray:
    tensors = torch.from_numpy(teacher), torch.from_numpy(student)
    return weighting_of(run).combine(Entropies(*tensors, float(bound))).numpy()
