"""COCO's numbers: known answers by hand, and those of a real detector on real images."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from eakd.detection import Boxes, BoxPipeline, Detection, coco, scenes
from eakd.detection.evaluation import NUMBERS, Detections, detect, evaluate, score
from eakd.detection.task import per_class
from eakd.models.weights import save_weights
from eakd.training.device import Compute

BACKENDS = ["pycocotools", "faster_coco_eval"]


@pytest.fixture(scope="module")
def compute():
    return Compute.create(device="cpu", precision="float32")


def boxes_of(rows, images=2):
    """Boxes from ``(image, label, corners)`` or ``(image, label, corners, crowd)``."""
    rows = sorted(rows, key=lambda row: row[0])
    corners = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    counts = np.bincount([row[0] for row in rows], minlength=images)
    return Boxes(
        ids=np.arange(images) + 40,
        sizes=np.full((images, 2), 400),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        boxes=corners,
        labels=np.array([row[1] for row in rows], np.int64),
        crowd=np.array([len(row) > 3 for row in rows], bool),
        areas=(corners[:, 2:] - corners[:, :2]).prod(axis=1),
    )


def found(rows):
    """Detections from ``(image, label, corners, score)``."""
    columns = list(zip(*rows, strict=True)) or [[]] * 4
    return Detections(
        np.array(columns[0], np.int64),
        np.array(columns[2], np.float64).reshape(-1, 4),
        np.array(columns[1], np.int64),
        np.array(columns[3], np.float64),
    )


def perfect(boxes, shift=0.0):
    own = ~boxes.crowd
    moved = boxes.boxes[own] + np.array([shift, 0, shift, 0])
    return Detections(boxes.owners[own], moved, boxes.labels[own], np.ones(own.sum()))


TRUTH = boxes_of([(0, 1, [10, 10, 110, 110]), (0, 2, [200, 10, 300, 110]), (1, 1, [0, 0, 100, 99])])


@pytest.mark.parametrize("backend", BACKENDS)
def test_known_answers(backend):
    numbers, classes = score(TRUTH, perfect(TRUTH), 3, backend)
    assert numbers["ap"] == numbers["ap50"] == numbers["ap75"] == pytest.approx(100)
    assert numbers["ap_large"] == pytest.approx(100)
    assert numbers["ap_small"] is numbers["ar_medium"] is None  # no such box
    assert classes[1] == pytest.approx({"boxes": 2, "ap": 100, "ap50": 100, "ap75": 100})
    assert classes[3] == {"boxes": 0, "ap": None, "ap50": None, "ap75": None}

    # 100 pixels wide, moved by 24: overlap 76/124 = 0.61, above three of the ten thresholds.
    numbers, _ = score(TRUTH, perfect(TRUTH, 24), 3, backend)
    assert numbers["ap"] == pytest.approx(30) and numbers["ap50"] == pytest.approx(100)
    assert numbers["ap75"] == pytest.approx(0)

    numbers, _ = score(TRUTH, found([]), 3, backend)
    assert numbers["ap"] == numbers["ar100"] == 0 and set(numbers) == set(NUMBERS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recall_and_false_alarms(backend):
    # One of two boxes found: precision 1 at 51 of 101 recalls.
    rows = [(0, 1, [10, 10, 110, 110], 0.9), (0, 2, [200, 10, 300, 110], 0.8)]
    numbers, classes = score(TRUTH, found(rows), 2, backend)
    assert classes[1]["ap"] == pytest.approx(100 * 51 / 101)
    assert classes[2]["ap"] == pytest.approx(100)
    assert numbers["ap"] == pytest.approx((100 * 51 / 101 + 100) / 2)
    # A surer false alarm halves the precision of class 2.
    rows.append((1, 2, [200, 200, 300, 300], 0.95))
    assert score(TRUTH, found(rows), 2, backend).classes[2]["ap"] == pytest.approx(50)
    # Of another class: nothing is found.
    wrong = found([(0, 2, [10, 10, 110, 110], 0.9), (0, 1, [200, 10, 300, 110], 0.8)])
    assert score(TRUTH, wrong, 2, backend).numbers["ap"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_in_a_crowd_counts_neither_way(backend):
    rows = [(0, 1, [10, 10, 110, 110]), (0, 1, [150, 150, 390, 390], "crowd")]
    crowd = boxes_of(rows)
    inside = [(0, 1, [160 + 9 * i, 160, 200 + 9 * i, 250], 0.99) for i in range(5)]
    both = found([*inside, (0, 1, [10, 10, 110, 110], 0.5)])
    assert score(crowd, both, 1, backend).numbers["ap"] == pytest.approx(100)
    assert score(boxes_of(rows[:1]), both, 1, backend).numbers["ap"] < 20
    assert score(crowd, both, 1, backend).classes[1]["boxes"] == 1


def real(coco_mini, tmp_path):
    data = coco(coco_mini, train="train2017", test="val2017", cache_dir=tmp_path)
    rows = json.loads((coco_mini / "detections" / "yolox_nano_val2017.json").read_text())
    test = data.splits["test"]
    images = {each: place for place, each in enumerate(test.ids.tolist())}
    labels = {each: place for place, each in enumerate(data.category_ids, 1)}
    corners = np.array([row["bbox"] for row in rows], np.float64)
    corners[:, 2:] += corners[:, :2]
    return (
        data,
        rows,
        Detections(
            np.array([images[row["image_id"]] for row in rows]),
            corners,
            np.array([labels[row["category_id"]] for row in rows]),
            np.array([row["score"] for row in rows]),
        ),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_twelve_numbers_of_a_real_detector(coco_mini, tmp_path, backend):
    data, _, detections = real(coco_mini, tmp_path)
    numbers, classes = score(data.splits["test"], detections, 80, backend)
    # Of pycocotools on the annotation file itself.
    expected = [0.292321, 0.447620, 0.311149, 0.103472, 0.335418, 0.514401]
    expected += [0.272717, 0.382989, 0.399432, 0.151857, 0.442535, 0.660809]
    assert [value / 100 for value in numbers.values()] == pytest.approx(expected, abs=1e-6)
    assert sum(each["boxes"] for each in classes.values()) == 1180
    known = [each["ap"] for each in classes.values() if each["ap"] is not None]
    assert np.mean(known) == pytest.approx(numbers["ap"])


def test_results_are_what_pycocotools_reads(coco_mini, tmp_path):
    from pycocotools.coco import COCO

    data, rows, detections = real(coco_mini, tmp_path)
    results = detections.results(data.splits["test"], data.category_ids)
    for ours, theirs in zip(results, rows, strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"])
        assert all(ours[key] == theirs[key] for key in ("image_id", "category_id", "score"))
    (tmp_path / "detections.json").write_text(json.dumps(results))
    truth = COCO(str(coco_mini / "annotations" / "instances_val2017.json"))
    assert len(truth.loadRes(str(tmp_path / "detections.json")).anns) == len(rows)


class Oracle(nn.Module):
    """Finds what it is told, resized as the images are: knows the boxes by the images' order."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes, self.next = boxes, 0
        self.weight = nn.Parameter(torch.zeros(1))

    def detect(self, images, sizes):
        assert not self.training and images.dtype == torch.float32
        answers = []
        for height, width in sizes:
            original = self.boxes.sizes[self.next]
            at = self.boxes.of(self.next)
            scale = np.array([width, height] * 2) / np.array([*original[::-1]] * 2)
            answers.append(
                {
                    "boxes": torch.from_numpy(self.boxes.boxes[at] * scale).float(),
                    "labels": torch.from_numpy(self.boxes.labels[at]),
                    "scores": torch.ones(at.stop - at.start),
                }
            )
            self.next += 1
        return answers


def test_detections_return_to_the_annotated_size(own_set, tmp_path, compute):
    data = coco(own_set, name="mine", cache_dir=tmp_path)
    sizes = {"short_sides": [100], "test_short_side": 99, "long_side": 121}
    pipeline = BoxPipeline(data, batch_size=2, eval_batch_size=2, **sizes)
    boxes = data.splits["test"]
    model = Oracle(boxes).train()
    detections = detect(model, pipeline.evaluation("test"), compute)
    assert model.training
    assert detections.boxes == pytest.approx(boxes.boxes, abs=1e-4)
    assert evaluate(Oracle(boxes), pipeline, "test", compute)[0]["ap"] == pytest.approx(100)


def test_parts_join_in_the_order_of_the_split():
    whole = perfect(TRUTH)
    parts = [Detections(*(column[whole.images == i] for column in whole)) for i in (1, 0)]
    joined = Detections.joined(parts)
    assert joined.images.tolist() == [0, 0, 1]
    for one, other in zip(joined, whole, strict=True):
        assert np.array_equal(one, other)
    assert [len(column) for column in Detections.joined([])] == [0] * 4


def test_a_task_leaves_weights_detections_and_classes(tmp_path, compute):
    from safetensors import safe_open

    data = scenes(4, 6)
    sizes = {"short_sides": [128], "test_short_side": 128, "long_side": 128}
    pipeline = BoxPipeline(data, batch_size=2, eval_batch_size=3, **sizes)
    task, model = Detection(), Oracle(data.splits["test"])
    model.categories = list(zip(data.category_ids, data.classes, strict=True))
    numbers = task.evaluate(model, pipeline, "test", compute)
    assert [numbers[name] for name in task.metrics] == pytest.approx([100, 100, 100])
    task.export(model, tmp_path / "last", {"epoch": "3"})
    task.export(model, tmp_path / "snapshots" / "epoch003", {"epoch": "3"})
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")) == [
        *("last.detections.json", "last.per_class.csv", "last.safetensors"),
        "snapshots/epoch003.safetensors",
    ]
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["epoch"] == "3"
    assert json.loads(metadata["categories"])[:2] == [[1, "0"], [2, "1"]]
    assert len(json.loads((tmp_path / "last.detections.json").read_text())) == len(
        data.splits["test"].boxes
    )
    lines = (tmp_path / "last.per_class.csv").read_text().splitlines()
    assert lines[0] == "class,boxes,ap,ap50,ap75" and len(lines) == 11
    assert lines[1].startswith("0,") and lines[1].endswith(",100.0000,100.0000,100.0000")
    three = score(TRUTH, perfect(TRUTH), 3)
    assert per_class(data, three).splitlines()[3] == "2,0,,,"


def test_weights_of_other_classes_are_refused(tmp_path):
    from eakd.detection.teacher import check_categories
    from eakd.errors import UserError

    sizes = {"short_sides": [128], "test_short_side": 128, "long_side": 128}
    data = BoxPipeline(scenes(2, 2), batch_size=1, **sizes)
    path = tmp_path / "weights.safetensors"
    save_weights(nn.Linear(1, 1), path)
    check_categories("teacher.checkpoint", path, data)  # says nothing of classes
    save_weights(nn.Linear(1, 1), path, {"categories": '[[1, "person"], [3, "car"]]'})
    with pytest.raises(UserError) as caught:
        check_categories("teacher.checkpoint", path, data)
    assert str(caught.value) == (
        "teacher.checkpoint: found 2 classes ('person, car'), allowed are the 10 of data.root "
        "('0, 1, 2, 3, 4, 5, 6, 7, 8, 9')"
    )
