"""Pictures of boxes, and the file of detections, from anybody's images."""

import json
import shutil

import numpy as np
import pytest
from coco_sets import picture
from PIL import Image

from eakd.composing import compose
from eakd.detection.pictures import drawn, find_images
from eakd.detection.predict import predict
from eakd.errors import UserError
from eakd.models.weights import save_weights

detectors = pytest.importorskip("eakd.detection.detectors")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny detector that was never trained, so that it finds anything anywhere."""
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    names = json.dumps([[5, "dog"], [7, "cat"], [900, "cow"]])
    save_weights(detectors.frcnn_tiny(3), path, {"categories": names})
    return path


def settings(weights, images, out, *words):
    common = ["device=cpu", "precision=float32", "short_side=64", "long_side=96", "score=0.1"]
    model = ["model=frcnn_tiny", f"checkpoint={weights}"]
    return compose([*model, f"images={images}", f"out={out}", *common, *words], "predict")


def test_pictures_and_detections_of_a_folder(weights, tmp_path):
    images = tmp_path / "images"
    picture(images / "a.jpg", (90, 60))
    picture(images / "a.png", (50, 70), "L", seed=1)
    picture(images / "deep" / "b.png", (64, 48), orientation=6, seed=2)
    (images / "notes.txt").write_text("no image")
    rows = predict(settings(weights, images, tmp_path / "out"))
    written = sorted(
        p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.*")
    )
    assert written == ["a.jpg.png", "a.png.png", "deep/b.png", "detections.json"]
    assert rows and json.loads((tmp_path / "out" / "detections.json").read_text()) == rows
    sizes = {"a.jpg": (90, 60), "a.png": (50, 70), "deep/b.png": (48, 64)}  # upright
    for row in rows:
        x, y, width, height = row["bbox"]
        limits = sizes[row["file_name"]]
        assert 0 <= x < x + width <= limits[0] + 1e-3 and 0 <= y < y + height <= limits[1] + 1e-3
        assert (row["category_id"], row["category"]) in {(5, "dog"), (7, "cat"), (900, "cow")}
        assert 0.1 <= row["score"] <= 1
    with Image.open(tmp_path / "out" / "deep" / "b.png") as image:
        assert image.size == (48, 64)

    shutil.make_archive(tmp_path / "images", "zip", images)
    again = predict(settings(weights, tmp_path / "images.zip", tmp_path / "zip"))
    assert again == rows
    alone = predict(settings(weights, images / "a.jpg", tmp_path / "one"))
    assert alone == [row for row in rows if row["file_name"] == "a.jpg"]
    none = predict(settings(weights, images / "a.jpg", tmp_path / "none", "score=1"))
    assert none == [] and (tmp_path / "none" / "a.png").is_file()


def test_weights_without_names_are_numbered(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_weights(detectors.frcnn_tiny(2), path)
    picture(tmp_path / "a.png")
    rows = predict(settings(path, tmp_path / "a.png", tmp_path / "out"))
    assert {row["category"] for row in rows} <= {"1", "2"}


def test_a_box_is_drawn_where_it_is():
    image = np.zeros((60, 80, 3), np.uint8)
    found = drawn(image, np.array([[20.0, 15.0, 60.0, 45.0]]), [""], [120])
    rows, columns = np.nonzero(found.any(axis=2))
    assert (rows.min(), rows.max()) == (15, 45) and (columns.min(), columns.max()) == (20, 60)
    assert not found[25:35, 30:50].any()
    assert np.array_equal(drawn(image, np.zeros((0, 4)), [], []), image)


def test_bad_input_is_one_line(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"data": {}}')
    good = tmp_path / "a.png"
    for images, words, expected in (
        ("empty", [], "images: found no image in "),
        ("notes.txt", [], "images: found no image in "),
        ("nowhere", [], "images: found no "),
        ("bad.png", [], "images: found "),
        ("a.png", ["score=2"], "score: found 2"),
        ("a.png", ["checkpoint=null"], "run, checkpoint: found neither"),
        ("a.png", ["run=somewhere"], "run, checkpoint: found both"),
        ("a.png", ["checkpoint=null", f"run={tmp_path / 'run'}"], "run: found no run of a detect"),
        ("a.png", ["model=frcnn_none"], "model: found 'frcnn_none'"),
        ("a.png", [f"checkpoint={good}"], "checkpoint: found nothing of classes in "),
        ("a.png", ["checkpoint=lost.pth"], "checkpoint: found no file lost.pth"),
    ):
        with pytest.raises(UserError) as caught:
            predict(settings(weights, tmp_path / images, tmp_path / "out", *words))
        message = str(caught.value)
        assert message.startswith(expected) and "\n" not in message and "allowed" in message
        assert not (tmp_path / "out" / "detections.json").exists()
    with pytest.raises(UserError, match=r"^images: found None"):
        find_images(None)
