"""Object detection as a task of the training loop."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor, nn

from eakd.detection.boxes import BoxBatch, BoxData
from eakd.detection.build import build_run, find_inputs
from eakd.detection.evaluation import METRICS, Detections, Scores, evaluate
from eakd.detection.pipeline import BoxPipeline
from eakd.detection.regions import RegionTerms, region_statistics
from eakd.detection.teacher import CATEGORIES
from eakd.distillers.base import Terms
from eakd.files import write_text
from eakd.models.weights import save_weights
from eakd.training.device import Compute
from eakd.training.schedule import Recipe
from eakd.training.task import Built

KEPT = ("best", "last")  # weights that are written right after their evaluation


class Detection:
    """COCO's average precision in percent; see `eakd.training.task.Task` for the members.

    Beside the weights of the best and the last epoch it leaves what they detect in the test split,
    ``<name>.detections.json`` in COCO's format of results, and ``<name>.per_class.csv``. A run that
    is continued after its last evaluation leaves none for ``last``.
    """

    metrics: Mapping[str, str] = METRICS

    def __init__(self) -> None:
        self._evaluated: tuple[BoxData, Detections, Scores] | None = None

    def build(self, config: DictConfig, recipe: Recipe, compute: Compute) -> Built:
        return build_run(config, recipe, compute)

    def inputs(self, config: DictConfig) -> Mapping[str, str]:
        return find_inputs(config)

    def measure(self, batch: BoxBatch, terms: Terms) -> dict[str, Tensor]:
        return region_statistics(terms) if isinstance(terms, RegionTerms) else {}

    def evaluate(
        self, model: nn.Module, data: BoxPipeline, split: str, compute: Compute
    ) -> dict[str, float]:
        numbers, detections, scores = evaluate(model, data, split, compute)
        if split == "test":
            self._evaluated = data.data, detections, scores
        return numbers

    def export(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        categories = getattr(model, "categories", None)
        named = {} if categories is None else {CATEGORIES: json.dumps(categories)}
        save_weights(model, path.with_name(f"{path.name}.safetensors"), {**metadata, **named})
        if self._evaluated is not None and path.name in KEPT:
            data, detections, scores = self._evaluated
            results = detections.results(data.splits["test"], data.category_ids)
            write_text(path.with_name(f"{path.name}.detections.json"), json.dumps(results))
            write_text(path.with_name(f"{path.name}.per_class.csv"), per_class(data, scores))


def per_class(data: BoxData, scores: Scores) -> str:
    """A line of CSV for each class: name, boxes, AP, AP50, AP75 in percent; empty without boxes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", *next(iter(scores.classes.values()))])
    for label, row in scores.classes.items():
        values = [f"{v:.4f}" if isinstance(v, float) else v for v in row.values()]
        writer.writerow([data.classes[label - 1], *values])
    return text.getvalue()
