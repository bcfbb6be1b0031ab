"""What a distilled run weighs most: pictures of its regions, coloured by their weight."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torchvision.models.detection.image_list import ImageList
from tqdm import tqdm

from eakd.config import needs_teacher, plain
from eakd.data.source import Source
from eakd.detection.boxes import BoxBatch
from eakd.detection.build import DATA_KEYS, build_data, build_detector, find_weights
from eakd.detection.distillers import RegionDistiller
from eakd.detection.pictures import drawn, find_images, picture_names, read, save
from eakd.detection.pipeline import BoxPipeline, assemble, resized
from eakd.detection.regions import Regions, RegionTerms
from eakd.detection.teacher import open_teacher
from eakd.distillers.base import Distiller, Progress
from eakd.errors import UserError, check_folder, check_number, check_text
from eakd.files import write_json
from eakd.models.weights import load_weights
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.find_teacher import weights_digest
from eakd.training.reading import read_summary
from eakd.training.run import build_compute, build_weighting
from eakd.training.schedule import Recipe
from eakd.weighting import Weighting

log = logging.getLogger(__name__)

SIDE = 640  # pixels that a picture's longer side is enlarged to, so that captions can be read
BLUE = 240  # degrees: the hue of the lightest region drawn; the heaviest is red


def draw_regions(config: DictConfig) -> list[dict[str, Any]]:
    """Draw and write the regions of highest weight, image by image.

    Regions are what the student proposes, and the annotated boxes if there are any: all of them,
    where training samples some. Student and teacher are those of the finished run, in eval mode;
    the weight is the one that the run's method gives.

    Args:
        config: ``configs/predict.yaml``.

    Returns:
        What ``rois.json`` holds: ``file_name``, or ``image_id`` of a test image; ``bbox`` as x, y,
        width and height in its pixels; ``weight``; and the top class of both networks, ``student``
        and ``teacher``. Of each image the heaviest comes first.

    Raises:
        UserError: a wrong value, or a run that is none of a detector with a teacher.
    """
    check_folder("out", config.out)
    most = check_number("regions", config.regions, at_least=1, integer=True)
    limit = config.limit
    if limit is not None:
        limit = check_number("limit", limit, at_least=1, integer=True)
    compute = build_compute(config)
    made = read_run(config)
    distiller, data = open_run(made, Path(config.run), compute)
    for key, name in (("short_side", "test_short_side"), ("long_side", "long_side")):
        if config[key] is not None:
            setattr(data, name, check_number(key, config[key], at_least=32, integer=True))
    progress = Progress(made.seed, made.recipe.epochs, 0)
    names = ["background", *data.data.classes]
    out, found, count = Path(config.out), [], 0
    if config.images is None:
        images = test_images(data, limit)
    elif distiller.rois == "foreground":
        raise UserError(
            f"images: found {config.images}, where nobody has marked objects, allowed for a run "
            "with distiller.rois=foreground is null: its own test images"
        )
    else:
        images = own_images(data, *find_images(config.images))
    for key, picture, image, batch in tqdm(images, desc="weighing", unit=" images", disable=None):
        regions = weighed(weigh(distiller, batch, compute, progress), batch)
        rows = [{**key, **row} for row in heaviest(regions, names, most)]
        save(coloured(image, rows), out / picture)
        found, count = found + rows, count + 1
    write_json(out / "rois.json", found)
    log.info("%d regions in %d images: %s", len(found), count, out)
    return found


def read_run(config: DictConfig) -> DictConfig:
    """The config of the finished run behind ``run``.

    Raises:
        UserError: there is none, or it is no run of a detector with a teacher.
    """
    if config.run is None or config.checkpoint is not None:
        found = "no run" if config.run is None else "a checkpoint"
        raise UserError(f"show: found rois with {found}, allowed is run=DIRECTORY, and that alone")
    check_text("run", config.run)
    path = Path(config.run) / ".hydra" / "config.yaml"
    if read_summary(Path(config.run)) is None or not path.is_file():
        raise UserError(
            f"run: found no finished run in {config.run}, allowed is the directory of one"
        )
    try:
        made = OmegaConf.load(path)
        task, method = made.data.get("task"), made.distiller.name
    except Exception as error:  # whatever YAML and OmegaConf raise
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: found a damaged file ({reason})") from error
    if task != "eakd.detection.Detection":
        raise UserError(
            f"run: found no run of a detector in {config.run}, allowed is the directory of one"
        )
    if not needs_teacher(made):
        raise UserError(
            f"run: found a run of distiller=detection/{method}, which has no teacher, allowed with "
            "show=rois is one that has"
        )
    return made


def open_run(
    made: DictConfig,
    directory: Path,
    compute: Compute,
    weighting: Weighting | None = None,
    key: str = "run",
) -> tuple[RegionDistiller, BoxPipeline]:
    """The method around the trained networks of a run, and its data, image by image.

    Args:
        made: the config of the run.
        weighting: in place of the run's own.
        key: of the command, that errors name.

    Raises:
        UserError: something of it is not there, or is not what the run was made from.
    """
    summary = read_summary(directory) or {}
    path = find_weights(made, "teacher", entry={})  # it was there: nothing is downloaded
    data = open_data(made, compute)
    for name, found in (
        ("teacher_digest", weights_digest(path)),
        ("data_fingerprint", data.fingerprint),
    ):
        if summary.get(name, found) != found:
            other = f"another teacher in {path}" if name == "teacher_digest" else "other data"
            raise UserError(
                f"{key}: found {other} ({found[:12]}) than {directory} was made from "
                f"({summary[name][:12]}), allowed is the same"
            )
    # A run's student is a model as any other: its first weights are not fetched again.
    student, weights = build_detector(made.student, "model", data), directory / "last.safetensors"
    if not weights.is_file():
        raise UserError(f"{key}: found no file {weights}, allowed is a run with its weights")
    load_weights(student, weights)
    teacher = build_detector(made.teacher, "teacher", data)
    networks = {
        "student": compute.place(student),
        "teacher": open_teacher(teacher, path, data, compute, made.fold_batchnorm),
        "weighting": weighting or build_weighting(made, compute),
    }
    distiller = build(made.distiller, "distiller", Distiller, **networks)
    if not isinstance(distiller, RegionDistiller):
        raise UserError(
            f"{key}: found a run of {type(distiller).__name__}, which weighs no regions, allowed "
            "is one of a RegionDistiller, such as distiller=detection/ea_kd"
        )
    return compute.move(distiller).eval(), data


def open_data(made: DictConfig, compute: Compute) -> BoxPipeline:
    """The data of a run from its config, image by image."""
    made = made.copy()
    # Without keys that others, such as load.root, were resolved from.
    kept = {k: v for k, v in plain(made.data).items() if k in DATA_KEYS}
    made.data = {**kept, "eval_batch_size": 1}
    return build_data(made, made.seed, compute, Recipe(epochs=1, batch_size=1))


Item = tuple[dict[str, Any], Path, np.ndarray, BoxBatch]  # facts, picture, image, alone in a batch


def test_images(data: BoxPipeline, limit: int | None) -> Iterator[Item]:
    """The first images of the run's test split, with their boxes."""
    ids = data.data.splits["test"].ids.tolist()
    for position, batch in enumerate(itertools.islice(data.evaluation("test"), limit)):
        image = data.data.read("test", position)
        yield {"image_id": ids[position]}, Path(f"{ids[position]}.png"), image, batch


def own_images(data: BoxPipeline, source: Source, names: list[str]) -> Iterator[Item]:
    """Images by name, in which nobody has marked anything."""
    pictures = picture_names(names)
    for position, name in enumerate(names):
        image = read(source, name)
        original = image.shape[:2]
        size = resized(*original, data.test_short_side, data.long_side)
        images = assemble([image], [size], [False], data.device)
        nothing = {
            "boxes": images.new_zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64, device=data.device),
        }
        index = torch.tensor([position])
        batch = BoxBatch(images, [size], [nothing], index, [original])
        yield {"file_name": name}, pictures[name], image, batch


@torch.no_grad()
def weigh(
    distiller: RegionDistiller, batch: BoxBatch, compute: Compute, progress: Progress
) -> RegionTerms:
    """The method's terms, with weights, of all regions of a batch; in eval mode, so not sampled."""
    student, sizes, targets = distiller.student, list(batch.sizes), batch.targets
    heads = student.roi_heads
    with compute.autocast():
        maps = student.maps(batch.images, sizes)
        proposals, _ = student.rpn(ImageList(batch.images, sizes), maps)
        known = [target["boxes"] for target in targets]
        boxes = heads.add_gt_proposals(proposals, known)
        labels = [target["labels"] for target in targets]
        _, labels = heads.assign_targets_to_proposals(boxes, known, labels)
        logits, offsets = student.regions(maps, boxes, sizes)
        image = torch.cat([torch.full_like(x, i) for i, x in enumerate(labels)])
        regions = Regions(logits, offsets, torch.cat(labels), image, boxes)
        terms = distiller.judge(batch, regions, {}, progress)
        distiller.total(terms, progress)
    return terms


class Weighed(NamedTuple):
    """The regions of one image, on the CPU.

    Attributes:
        boxes: ``(R, 4)`` float64, x1 y1 x2 y2 in pixels of the image.
        weight: ``(R,)`` float64.
        foreground: ``(R,)`` bool, regions that lie on an annotated object.
        student, teacher: ``(R,)`` int64, the top class of each network; 0 is background.
    """

    boxes: np.ndarray
    weight: np.ndarray
    foreground: np.ndarray
    student: np.ndarray
    teacher: np.ndarray


def weighed(terms: RegionTerms, batch: BoxBatch) -> Weighed:
    """The weighted terms of a batch of one image, in pixels of that image."""
    # Each axis by its own factor, as in evaluations.
    (height, width), (old_height, old_width) = batch.original_sizes[0], batch.sizes[0]
    scale = np.array([width, height] * 2) / np.array([old_width, old_height] * 2)
    answers = (terms.student_logits, terms.teacher_logits)
    return Weighed(
        terms.boxes[0].cpu().double().numpy() * scale,
        terms.weight.cpu().double().numpy(),
        terms.foreground.cpu().numpy(),
        *(x.argmax(dim=1).cpu().numpy() for x in answers),
    )


def heaviest(regions: Weighed, names: list[str], most: int) -> list[dict[str, Any]]:
    """The ``most`` regions of highest weight of one image, as `draw_regions` describes them.

    Args:
        names: of the background and of each class.
    """
    order = np.argsort(-regions.weight, kind="stable")[:most]
    boxes, weight, _, student, teacher = (x[order].tolist() for x in regions)
    return [
        {
            "bbox": [x, y, right - x, bottom - y],
            "weight": value,
            "student": names[said],
            "teacher": names[taught],
        }
        for (x, y, right, bottom), value, said, taught in zip(
            boxes, weight, student, teacher, strict=True
        )
    ]


def coloured(image: np.ndarray, rows: list[dict[str, Any]]) -> np.ndarray:
    """The image, enlarged if it is small, with boxes from blue to red, the heaviest on top."""
    factor = max(1, SIDE // max(image.shape[:2]))
    image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    boxes = np.array([row["bbox"] for row in rows[::-1]]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    hues = hues_of(np.array([row["weight"] for row in rows[::-1]]))
    captions = [f"{r['weight']:.2f} {r['student']} | {r['teacher']}" for r in rows[::-1]]
    return drawn(image, factor * boxes, captions, hues)


def hues_of(weights: np.ndarray) -> list[int]:
    """Degrees for ``(R,)`` weights: blue for the lowest to red for the highest."""
    spread = np.ptp(weights) if len(weights) else 0
    shares = (weights - weights.min()) / spread if spread else np.ones(len(weights))
    return [round(BLUE * (1 - share)) for share in shares.tolist()]
