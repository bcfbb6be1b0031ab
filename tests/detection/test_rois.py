"""Pictures of the regions that a finished run weighs most, on a few steps of the scenes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from eakd.composing import compose
from eakd.detection.pictures import picture_names
from eakd.detection.predict import predict
from eakd.detection.rois import coloured, open_run, read_run, weigh
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.training.device import Compute
from eakd.training.run import run
from eakd.weighting import ea_weight

pytest.importorskip("eakd.detection.distillers")
CLASSES = {"background", *map(str, range(10))}
SCENES = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a teacher, of an EA and of a DKD student, and what made them."""
    root = tmp_path_factory.mktemp("runs")
    words = [
        *("data=scenes", "data.train_images=8", f"data.test_images={SCENES}"),
        *("data.image_size=64", "recipe.epochs=1", "recipe.steps_per_epoch=3"),
        *("recipe.batch_size=2", "teacher=frcnn_tiny", "student=frcnn_tiny", "device=cpu"),
        *("precision=float32", f"checkpoint_root={root / 'checkpoints'}", "progress=false"),
    ]
    for name, more in (
        ("teacher", ["detection/none", "seed=7", "save_teacher=true"]),
        ("ea", ["detection/ea_kd"]),
        ("image", ["detection/ea_dkd", "distiller.rois=foreground", "distiller.sample=image"]),
    ):
        method, *more = more
        run(compose([*words, f"distiller={method}", *more, f"run_dir={root / name}"]))
    return root


def settings(directory, out, *words):
    common = ["show=rois", "device=cpu", "precision=float32"]
    return compose([*common, f"run={directory}", f"out={out}", *words], "predict")


def test_the_heaviest_regions_of_the_test_images(runs, tmp_path):
    rows = predict(settings(runs / "ea", tmp_path, "regions=5"))
    assert json.loads((tmp_path / "rois.json").read_text()) == rows
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["1.png", "2.png", "3.png"]
    with Image.open(tmp_path / "1.png") as image:
        assert image.size == (640, 640)  # ten times the scene
    for scene in range(1, SCENES + 1):
        own = [row for row in rows if row["image_id"] == scene]
        weights = [row["weight"] for row in own]
        assert len(own) == 5 and weights == sorted(weights, reverse=True)
        for row in own:
            x, y, width, height = row["bbox"]
            assert 0 <= x < x + width <= 64 + 1e-3 and 0 <= y < y + height <= 64 + 1e-3
            assert {row["student"], row["teacher"]} <= CLASSES
            assert 0 < row["weight"] <= np.log(11)
    again = predict(settings(runs / "ea", tmp_path / "more", "regions=9", "limit=1"))
    assert again[:5] == rows[:5] and len(again) == 9
    assert [p.name for p in (tmp_path / "more").glob("*.png")] == ["1.png"]


def test_both_networks_judge_the_same_regions_by_the_runs_own_weighting(runs, tmp_path):
    """Among them the annotated boxes; each network is asked once more, by itself."""
    made = read_run(settings(runs / "ea", tmp_path))
    compute = Compute.create(device="cpu", precision="float32")
    distiller, data = open_run(made, runs / "ea", compute)
    assert not distiller.student.training and not distiller.teacher.training
    batch = next(data.evaluation("test"))
    terms = weigh(distiller, batch, compute, Progress(0, 1, 0))
    known = batch.targets[0]["boxes"]
    assert len(known) and torch.equal(terms.boxes[0][-len(known) :], known)
    assert terms.targets[-len(known) :].tolist() == batch.targets[0]["labels"].tolist()
    with torch.no_grad():
        own, taught = (
            model.regions(model.maps(batch.images, batch.sizes), terms.boxes, batch.sizes)[0]
            for model in (distiller.student, distiller.teacher)
        )
    torch.testing.assert_close(terms.student_logits, own)
    torch.testing.assert_close(terms.teacher_logits, taught)
    torch.testing.assert_close(terms.weight, ea_weight(own, taught))
    assert (own - taught).abs().max() > 1e-3  # two networks


def test_options_of_the_run_hold(runs, tmp_path):
    """Foreground regions alone, all of an image with one weight."""
    rows = predict(settings(runs / "image", tmp_path, "limit=2", "regions=1000"))
    for scene in (1, 2):
        weights = {row["weight"] for row in rows if row["image_id"] == scene}
        assert len(weights) == 1
    assert len(rows) < len(predict(settings(runs / "ea", tmp_path, "limit=2", "regions=1000")))


def test_images_of_ones_own(runs, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    (tmp_path / "images" / "deep").mkdir(parents=True)
    Image.fromarray(noise).save(tmp_path / "images" / "deep" / "a.png")
    images = f"images={tmp_path / 'images'}"
    rows = predict(settings(runs / "ea", tmp_path / "out", images, "long_side=96"))
    assert {row["file_name"] for row in rows} == {"deep/a.png"} and len(rows) == 20
    with Image.open(tmp_path / "out" / "deep" / "a.png") as image:
        assert image.size == (7 * 90, 7 * 50)
    with pytest.raises(
        UserError, match=r"^images: found .* allowed for a run with distiller\.rois="
    ):
        predict(settings(runs / "image", tmp_path / "none", images))
    assert not (tmp_path / "none").exists()
    assert picture_names(["a.png", "a.jpg"])["a.jpg"].name == "a.jpg.png"


def test_the_heaviest_is_red_and_on_top():
    image = np.zeros((40, 40, 3), np.uint8)
    rows = [
        {"bbox": [10.0, 10.0, 20.0, height], "weight": weight, "student": "", "teacher": ""}
        for height, weight in ((20.0, 2.0), (25.0, 1.0))
    ]
    found = coloured(image, rows).astype(int)
    assert found.shape == (640, 640, 3)
    red, blue = found[400, 160], found[540, 160]  # where both are, and below the heavier one
    assert red[0] > red[2] and blue[2] > blue[0]
    assert (coloured(image, []) == 0).all()


def test_bad_runs_are_one_line(runs, tmp_path):
    moved, other, unfinished = (tmp_path / name for name in ("moved", "other", "unfinished"))
    for path in (moved, other, unfinished):
        shutil.copytree(runs / "ea", path)
    (unfinished / "summary.json").unlink()
    config = moved / ".hydra" / "config.yaml"
    lost = str(tmp_path / "lost")
    config.write_text(config.read_text().replace(str(runs / "checkpoints"), lost))
    config = other / ".hydra" / "config.yaml"
    weights = other / "last.safetensors"  # not the file that the run learned from
    config.write_text(config.read_text().replace("checkpoint: auto", f"checkpoint: {weights}"))
    images = tmp_path / "of_images"
    shutil.copytree(runs / "ea", images)
    config = images / ".hydra" / "config.yaml"
    task = "eakd.classification.Classification"
    config.write_text(config.read_text().replace("eakd.detection.Detection", task))
    for directory, words, expected in (
        (runs / "teacher", [], "run: found a run of distiller=detection/none, which has no teach"),
        (moved, [], f"teacher.checkpoint: found no trained frcnn_tiny for scenes ({lost}"),
        (other, [], "run: found another teacher in "),
        (images, [], "run: found no run of a detector in "),
        (unfinished, [], "run: found no finished run in "),
        (tmp_path / "nowhere", [], "run: found no finished run in "),
        (runs / "ea", ["checkpoint=x"], "show: found rois with a checkpoint, allowed is run="),
        ("null", [], "show: found rois with no run, allowed is run="),
        (runs / "ea", ["regions=0"], "regions: found 0"),
        (runs / "ea", ["limit=0"], "limit: found 0"),
        (runs / "ea", ["long_side=8"], "long_side: found 8"),
        (runs / "ea", ["show=pixels"], "show: found 'pixels'"),
        (runs / "ea", ["images=nowhere"], "images: found no nowhere"),
    ):
        with pytest.raises(UserError) as caught:
            predict(settings(directory, tmp_path / "out", *words))
        message = str(caught.value)
        assert message.startswith(expected) and "\n" not in message, message
        # What it says trains a teacher is accepted.
        assert ("train it with" in message) == (" distiller=detection/none save_" in message)
        assert not (tmp_path / "out").exists()
