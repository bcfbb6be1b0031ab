"""Image classification as a task of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from eakd.classification.build import build_run, find_inputs
from eakd.classification.evaluation import evaluate
from eakd.data import Pipeline
from eakd.data.base import Batch
from eakd.distillers.base import Terms
from eakd.models.weights import save_weights
from eakd.training.device import Compute
from eakd.training.schedule import Recipe
from eakd.training.task import Built
from eakd.weighting import at_least_float32


class Classification:
    """Top-1 and top-5 accuracy in percent; see `eakd.training.task.Task` for the members."""

    metrics: Mapping[str, str] = {"top1": "top-1 %", "top5": "top-5 %"}

    def build(self, config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
        return build_run(config, recipe, compute)

    def inputs(self, config: DictConfig) -> Mapping[str, str]:
        return find_inputs(config)

    def measure(self, batch: Batch, terms: Terms) -> dict[str, Tensor]:
        # In bf16, the largest of a row takes five times as long, and a probability has two digits.
        logits, targets = at_least_float32(terms.student_logits.detach()), batch.targets
        right = logits.argmax(dim=-1) == targets
        return {
            "top1": 100.0 * right,
            "target_probability": (-F.cross_entropy(logits, targets, reduction="none")).exp(),
        }

    def evaluate(
        self, model: nn.Module, data: Pipeline, split: str, compute: Compute
    ) -> dict[str, float]:
        return evaluate(model, data.evaluation(split, compute.processes.part), compute)

    def export(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        save_weights(model, path.with_name(f"{path.name}.safetensors"), metadata)
