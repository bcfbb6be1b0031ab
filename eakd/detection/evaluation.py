"""COCO's numbers of a detector: average precision and recall, per class and per size.

pycocotools computes them, the reference that everybody quotes, or faster-coco-eval where it is
installed, which gives the same numbers in a fifth of the time.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eakd.detection.boxes import BoxBatch, Boxes
from eakd.detection.pipeline import BoxPipeline
from eakd.errors import UserError, check_choice
from eakd.training.device import Compute

METRICS = {"ap": "AP %", "ap50": "AP50 %", "ap75": "AP75 %"}
# In pycocotools' order. Sizes are of the object: up to 32², up to 96², and larger.
NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
MOST = 100  # detections of an image that count, the surest


class Detections(NamedTuple):
    """What a detector says of a split, ``K`` boxes of all images together.

    Attributes:
        images: ``(K,)`` int64, positions in the split.
        boxes: ``(K, 4)`` float64, x1 y1 x2 y2 in pixels of the images as they are annotated.
        labels: ``(K,)`` int64 in ``[1, C]``.
        scores: ``(K,)`` float64.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def joined(cls, parts: Iterable[Detections]) -> Detections:
        """Those of several parts of a split, in the split's order."""
        kinds = (((0,), np.int64), ((0, 4), np.float64), ((0,), np.int64), ((0,), np.float64))
        nothing = cls(*(np.zeros(shape, kind) for shape, kind in kinds))
        columns = zip(nothing, *parts, strict=True)
        joined = cls(*(np.concatenate(column) for column in columns))
        order = np.argsort(joined.images, kind="stable")
        return cls(*(column[order] for column in joined))

    def results(self, boxes: Boxes, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO's format of results, with the ids of the annotation file."""
        corner_and_size = np.concatenate(
            [self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1
        )
        columns = (
            boxes.ids[self.images].tolist(),
            [category_ids[label - 1] for label in self.labels.tolist()],
            corner_and_size.tolist(),
            self.scores.tolist(),
        )
        names = ("image_id", "category_id", "bbox", "score")
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class Scores(NamedTuple):
    """In percent; what no box was there for is ``None``.

    Attributes:
        numbers: the twelve of `NUMBERS`.
        classes: label → ``{"boxes", "ap", "ap50", "ap75"}``; ``boxes`` is how many there are.
    """

    numbers: dict[str, float | None]
    classes: dict[int, dict[str, float | int | None]]


@torch.inference_mode()
def detect(model: nn.Module, batches: Iterable[BoxBatch], compute: Compute) -> Detections:
    """What ``model.detect`` finds in batches, in eval mode; the model's mode is put back."""
    training = model.training
    model.eval()
    parts = []
    for batch in batches:
        with compute.autocast():
            found = model.detect(batch.images, batch.sizes)
        for image, each, size, original in zip(
            batch.index.tolist(), found, batch.sizes, batch.original_sizes, strict=True
        ):
            boxes, labels, scores = (_array(each[k]) for k in ("boxes", "labels", "scores"))
            # To the annotated size, each axis by its own factor, as the boxes of training.
            boxes = boxes * (np.array([*original[::-1]] * 2) / np.array([*size[::-1]] * 2))
            images = np.full(len(labels), image, np.int64)
            parts.append(Detections(images, boxes, labels.astype(np.int64), scores))
    model.train(training)
    return Detections.joined(parts)


def evaluate(
    model: nn.Module, data: BoxPipeline, split: str, compute: Compute
) -> tuple[dict[str, float], Detections, Scores]:
    """COCO's numbers of a split, those that have a value; then detections and scores in full.

    All processes detect, the first one scores.
    """
    processes = compute.processes
    found = detect(model, data.evaluation(split, processes.part), compute)
    found = Detections.joined(processes.gather(found))
    boxes = data.data.splits[split]
    scores = processes.from_first(lambda: score(boxes, found, data.num_classes))
    return {k: v for k, v in scores.numbers.items() if v is not None}, found, scores


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def score(boxes: Boxes, detections: Detections, num_classes: int, backend: str = "auto") -> Scores:
    """COCO's twelve numbers, and average precision per class.

    Detections inside a crowd box count neither way. Of an image the 100 surest count.

    Args:
        boxes: of the split.
        backend: ``"auto"``, ``"pycocotools"`` or ``"faster_coco_eval"``.

    Raises:
        UserError: the package is missing.
    """
    dataset, evaluator = _backend(backend)
    truth = _annotations(boxes.owners, boxes.boxes, boxes.labels, boxes.areas)
    for row, crowd in zip(truth, boxes.crowd.tolist(), strict=True):
        row["iscrowd"] = int(crowd)
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    found = _annotations(detections.images, detections.boxes, detections.labels, sides.prod(axis=1))
    for row, value in zip(found, detections.scores.tolist(), strict=True):
        row["score"] = value
    images = [{"id": image} for image in range(1, len(boxes) + 1)]
    categories = [{"id": label} for label in range(1, num_classes + 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of every step
        evaluation = evaluator(
            *(_indexed(dataset(), images, categories, rows) for rows in (truth, found)), "bbox"
        )
        evaluation.params.maxDets = [1, 10, MOST]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = dict(zip(NUMBERS, map(_percent, list(evaluation.stats)[:12]), strict=True))
    # (thresholds of overlap, recalls, classes, sizes, numbers of detections)
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    counts = np.bincount(boxes.labels[~boxes.crowd], minlength=num_classes + 1).tolist()
    classes = {
        label: {
            "boxes": counts[label],
            "ap": _percent(precision[:, :, label - 1].mean()),
            "ap50": _percent(precision[0, :, label - 1].mean()),
            "ap75": _percent(precision[5, :, label - 1].mean()),
        }
        for label in range(1, num_classes + 1)
    }
    return Scores(numbers, classes)


def check_evaluator(backend: str = "auto") -> None:
    """Refuse to begin what could not be evaluated.

    Raises:
        UserError: the package is missing.
    """
    _backend(backend)


def _backend(name: str) -> tuple[Any, Any]:
    """The classes of a set and of an evaluation."""
    check_choice("backend", name, ("auto", "pycocotools", "faster_coco_eval"))
    if name != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            # Not to the log, where each line would look like the run's.
            return COCO, functools.partial(COCOeval_faster, print_function=print)
        except ImportError:
            pass
    if name != "faster_coco_eval":
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO, COCOeval
        except ImportError:
            pass
    package = "faster_coco_eval" if name == "faster_coco_eval" else "pycocotools"
    raise UserError(f"data: found no package {package}:  pip install 'eakd[detection]'")


def _annotations(
    images: np.ndarray, boxes: np.ndarray, labels: np.ndarray, areas: np.ndarray
) -> list[dict[str, Any]]:
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    columns = (images + 1, labels, corner_and_size, areas)
    return [
        # Ids count from 1: the evaluators take 0 for "no match".
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}
        for i, (image, label, box, area) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]


def _indexed(dataset: Any, images: list, categories: list, rows: list) -> Any:
    dataset.dataset = {"images": images, "categories": categories, "annotations": rows}
    dataset.createIndex()
    return dataset


def _percent(value: float) -> float | None:
    """The evaluators say -1 where there was no box to find."""
    return None if value < 0 else 100 * float(value)
