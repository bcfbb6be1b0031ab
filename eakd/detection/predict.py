"""What a detector finds in anybody's images: pictures with boxes, and a file of detections."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from eakd.detection.boxes import BoxBatch
from eakd.detection.evaluation import detect
from eakd.detection.pictures import drawn, find_images, picture_names, read, save
from eakd.detection.pipeline import assemble, resized
from eakd.detection.rois import draw_regions
from eakd.detection.teacher import read_categories
from eakd.errors import UserError, check_choice, check_folder, check_number, check_text
from eakd.files import write_json
from eakd.models.weights import load_weights
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.reading import read_object
from eakd.training.run import build_compute

log = logging.getLogger(__name__)

SIDES = (800, 1333)  # of a network that no run tells of
# torchvision's name of the layer that has a row for each class and one for the background.
CLASSIFIER = "roi_heads.box_predictor.cls_score.weight"


class Detector(NamedTuple):
    """A trained network, on the device.

    Attributes:
        categories: id and name of label 1, 2, …
        short_side, long_side: pixels that it wants images resized to.
    """

    model: nn.Module
    categories: list[tuple[int, str]]
    short_side: int
    long_side: int


def predict(config: DictConfig) -> list[dict[str, Any]]:
    """Draw and write what ``configs/predict.yaml`` describes.

    Returns:
        With ``show=rois``, see `draw_regions`; else what ``detections.json`` holds: ``file_name``,
        ``category_id``, ``category``, ``bbox`` as x, y, width and height in pixels of the upright
        image, and ``score``.

    Raises:
        UserError: a wrong value, no image, or a damaged one.
    """
    check_choice("show", config.show, ("boxes", "rois"))
    if config.show == "rois":
        return draw_regions(config)
    least = check_number("score", config.score, at_least=0, at_most=1)
    check_folder("out", config.out)
    source, names = find_images(config.images)
    compute = build_compute(config)
    detector = load_detector(config, compute)
    out, pictures, found = Path(config.out), picture_names(names), []
    for name in tqdm(names, desc="detecting", unit=" images", disable=None):
        image = read(source, name)
        boxes, labels, scores = _detect(detector, image, compute)
        keep = scores >= least
        boxes, labels, scores = boxes[keep], labels[keep], scores[keep]
        rows = [
            {
                "file_name": name,
                "category_id": detector.categories[label - 1][0],
                "category": detector.categories[label - 1][1],
                "bbox": [x, y, right - x, bottom - y],
                "score": score,
            }
            for (x, y, right, bottom), label, score in zip(
                boxes.tolist(), labels.tolist(), scores.tolist(), strict=True
            )
        ]
        captions = [f"{row['category']} {100 * row['score']:.0f}" for row in rows]
        # A golden angle around the wheel of colours, so that neighbouring labels differ.
        hues = [int(label * 137.5) % 360 for label in labels.tolist()]
        save(drawn(image, boxes, captions, hues), out / pictures[name])
        found += rows
    write_json(out / "detections.json", found)
    log.info("%d boxes in %d images: %s", len(found), len(names), out)
    return found


def load_detector(config: DictConfig, compute: Compute) -> Detector:
    """The network of ``run``, or of ``model`` with ``checkpoint``.

    Raises:
        UserError: neither or both are given, or they lead to no detector.
    """
    if (config.run is None) == (config.checkpoint is None):
        found = "neither" if config.run is None else "both"
        raise UserError(
            f"run, checkpoint: found {found}, allowed is run=DIRECTORY, or model=NAME and "
            "checkpoint=FILE"
        )
    sides = SIDES
    if config.run is not None:
        check_text("run", config.run)
        made = read_object(Path(config.run) / "config.json")
        if made is None or "short_sides" not in made.get("data", {}):
            raise UserError(
                f"run: found no run of a detector in {config.run}, allowed is the directory of one"
            )
        node, path = OmegaConf.create(made["student"]), Path(config.run) / "last.safetensors"
        sides = made["data"]["test_short_side"], made["data"]["long_side"]
    else:
        check_text("checkpoint", config.checkpoint)
        node, path = config.model, Path(config.checkpoint)
    if not path.is_file():
        key = "checkpoint" if config.run is None else "run"
        raise UserError(f"{key}: found no file {path}, allowed is a file of weights")
    categories = read_categories(path) or _numbered(path)
    # A run's student is a model as any other: its name is no argument either.
    model = build(node, "model", nn.Module, num_classes=len(categories))
    if not callable(getattr(model, "detect", None)):
        raise UserError(f"model: found {node.name}, which detects nothing, allowed is frcnn_…")
    load_weights(model, path)
    short, long = (
        own if given is None else check_number(name, given, at_least=32, integer=True)
        for name, given, own in (
            ("short_side", config.short_side, sides[0]),
            ("long_side", config.long_side, sides[1]),
        )
    )
    return Detector(compute.place(model.eval()), categories, short, long)


def _numbered(path: Path) -> list[tuple[int, str]]:
    """Numbers for the classes of weights that do not name them."""
    try:
        with safe_open(path, "pt") as file:
            count = file.get_slice(CLASSIFIER).get_shape()[0] - 1
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint: found nothing of classes in {path}, allowed are weights that a run or "
            "eakd's converter has written"
        ) from error
    return [(label, str(label)) for label in range(1, count + 1)]


def _detect(
    detector: Detector, image: np.ndarray, compute: Compute
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes ``(k, 4)`` in pixels of the image, labels and scores ``(k,)``."""
    original = image.shape[:2]
    size = resized(*original, detector.short_side, detector.long_side)
    images = assemble([image], [size], [False], compute.device)
    index = torch.zeros(1, dtype=torch.int64)
    found = detect(detector.model, [BoxBatch(images, [size], [], index, [original])], compute)
    return found.boxes, found.labels, found.scores
