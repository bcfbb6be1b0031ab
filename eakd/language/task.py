"""Language as a task of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from eakd.language.batches import Batch, TextData
from eakd.language.build import build_run, find_inputs
from eakd.language.distillers import SequenceTerms
from eakd.language.evaluation import evaluate
from eakd.language.export import save_directory
from eakd.training.device import Compute
from eakd.training.schedule import Recipe
from eakd.training.task import Built

METRICS = {"token_accuracy": "tokens %", "loss": "nats a token"}


class Language:
    """Token accuracy in percent and loss in nats; with ``data.rouge_samples``, ROUGE-L chooses.

    See `eakd.training.task.Task` for the members. The loss stands beside the metrics although less
    of it is better: it never chooses an epoch.
    """

    metrics: Mapping[str, str] = METRICS

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._samples = 0

    def build(self, config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
        built, self._tokenizer = build_run(config, recipe, compute)
        self._samples = config.data.rouge_samples
        self._room = config.data.max_length - config.data.max_prompt_length
        if self._samples:
            self.metrics = {"rouge_l": "ROUGE-L", **METRICS}
        return built

    def inputs(self, config: DictConfig) -> Mapping[str, str]:
        return find_inputs(config)

    def measure(self, batch: Batch, terms: SequenceTerms) -> dict[str, Tensor]:
        return {"token_accuracy": 100.0 * terms.right}

    def evaluate(
        self, model: nn.Module, data: TextData, split: str, compute: Compute
    ) -> dict[str, float]:
        found = evaluate(model, data, split, compute, len(self._tokenizer))
        if self._samples:
            found = {"rouge_l": self._rouge(model, data, split, compute), **found}
        return found

    def _rouge(self, model: nn.Module, data: TextData, split: str, compute: Compute) -> float:
        """Of sampled answers, as DSKD chooses its epoch: without the ban of repeated n-grams."""
        from eakd.language.evaluate import evaluate_rows
        from eakd.language.generate import Sampling

        found = evaluate_rows(
            model,
            self._tokenizer,
            data.others[split],
            seeds=range(self._samples),
            protocol=Sampling(max_new_tokens=self._room),
            compute=compute,
        )
        return found["rouge_l"]

    def export(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        save_directory(model, self._tokenizer, path, metadata)
