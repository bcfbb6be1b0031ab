"""Sets in COCO's format: what is read, what is left out, and every refusal."""

import json
import logging
import shutil
import zipfile

import numpy as np
import pytest
from coco_sets import picture, write_set, write_split
from PIL import Image

from eakd.composing import compose
from eakd.detection import coco
from eakd.detection.build import build_data
from eakd.detection.evaluation import check_evaluator
from eakd.errors import UserError
from eakd.training.device import Compute
from eakd.training.schedule import Recipe


def refusal(root, *words, batch_size=2):
    """What a run on the set in ``root`` is refused with."""
    config = compose(["data=coco_folder", "data.name=mine", f"data.root={root}", *words])
    compute = Compute.create(device="cpu", precision="float32")
    with pytest.raises(UserError) as caught:
        data = build_data(config, 0, compute, Recipe(epochs=1, batch_size=batch_size))
        for _ in data.epoch(1):
            pass
    message = str(caught.value)
    assert "\n" not in message and ", allowed " in message
    return message


def edit(path, change):
    node = json.loads(path.read_text())
    change(node)
    path.write_text(json.dumps(node))


def train_file(root):
    return root / "annotations" / "instances_train.json"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EAKD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("layout", ["official", "exported"])
@pytest.mark.parametrize("packed", [False, True])
def test_both_layouts_in_folders_and_zip_files(tmp_path, layout, packed):
    root = write_set(tmp_path / "around" / "set", layout)
    if packed:
        shutil.make_archive(tmp_path / "set", "zip", tmp_path / "around")
        root = tmp_path / "set.zip"
    data = coco(root, name="mine")
    assert data.classes == ("cat", "dog", "cow") and data.category_ids == (0, 5, 900)
    assert {split: len(boxes) for split, boxes in data.splits.items()} == {"train": 6, "test": 2}
    train = data.splits["train"]
    boxes, labels = train.training(0)
    assert boxes.tolist() == [[10, 10, 30.5, 30], [40, 8, 64, 24]]  # the second one is clipped
    assert labels.tolist() == [2, 1]
    assert train.training(1)[1].tolist() == [3]
    assert train.training(2)[0].tolist() == [[7, 9, 8, 10]]  # one pixel
    for image in (4, 5):  # empty, all crowd
        assert train.training(image)[0].shape == (0, 4)
    assert train.areas[train.of(0)].tolist() == [300, 640, 64 * 48]
    assert data.splits["test"].crowd.tolist() == [False, True]
    assert data.read("train", 0).shape == (48, 64, 3)
    with Image.open(tmp_path / "around" / "set" / "train" / "d.png") as image:
        assert np.array_equal(data.read("train", 3), np.asarray(image))


def test_one_line_counts_what_is_left_out(own_set, caplog):
    with caplog.at_level(logging.INFO):
        coco(own_set, name="mine")
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("eakd.detection")]
    assert line == (
        "mine: 3 classes; train 6 images with 8 boxes, test 2 images with 2 boxes; training leaves "
        "out 2 crowd boxes, 1 narrower than a pixel and, unless data.keep_empty, 2 images without "
        "boxes; 1 boxes without area count nowhere"
    )


def test_own_names_of_splits_and_a_validation_split(tmp_path):
    root = write_set(tmp_path / "set", "exported")
    shutil.copytree(root / "valid", root / "test")
    assert set(coco(root).splits) == {"train", "val", "test"}
    assert set(coco(root, test="valid").splits) == {"train", "test"}
    with pytest.raises(UserError, match="no later/_annotations"):
        coco(root, test="later")


def test_the_order_of_categories_and_annotations_is_not_the_sets(own_set):
    first = coco(own_set)

    def turn(node):
        node["categories"].reverse()
        node["annotations"].reverse()

    edit(own_set / "annotations" / "instances_valid.json", turn)
    edit(train_file(own_set), lambda node: node["categories"].reverse())
    second = coco(own_set)
    assert second.classes == first.classes
    one, other = (data.splits["test"] for data in (first, second))
    assert sorted(one.boxes.tolist()) == sorted(other.boxes.tolist())
    assert np.array_equal(first.splits["train"].labels, second.splits["train"].labels)


def test_fingerprints_follow_content(own_set, tmp_path):
    copy = shutil.copytree(own_set, tmp_path / "copy")
    assert coco(copy).fingerprint == coco(own_set).fingerprint
    edit(train_file(copy), lambda node: node["annotations"][0].update(bbox=[1, 2, 30, 41]))
    assert coco(copy).fingerprint != coco(own_set).fingerprint


def test_annotations_are_read_once_and_damaged_caches_again(own_set, tmp_path, monkeypatch):
    expected = coco(own_set, name="mine")
    (entry,) = (tmp_path / "cache").glob("mine-boxes-*.npz")
    with monkeypatch.context() as patch:
        patch.setitem(coco.__globals__, "parse", lambda *_: pytest.fail("read again"))
        again = coco(own_set, name="mine")
    assert again.fingerprint == expected.fingerprint
    whole = entry.read_bytes()
    changed = whole.replace(np.float64(30.5).tobytes(), np.float64(31.5).tobytes())
    for content in (changed, whole[:-100], b""):  # a box, the end, everything
        assert content != whole
        entry.write_bytes(content)
        assert coco(own_set, name="mine").fingerprint == expected.fingerprint
        assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_one_warning(own_set, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert coco(own_set, cache_dir=tmp_path / "file").num_classes == 3
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith("cannot keep what coco says in ")


@pytest.mark.parametrize("orientation", [6, 3])
@pytest.mark.parametrize("shown", [False, True])
def test_exif_orientation_in_both_conventions(tmp_path, orientation, shown):
    """Annotated as stored, or as viewers show the image; a half turn is always shown."""
    stored = picture(tmp_path / "set" / "train" / "a.png", (64, 48), orientation=orientation)
    turned = stored.transpose(Image.ROTATE_270 if orientation == 6 else Image.ROTATE_180)
    image = turned if shown else stored
    write_split(tmp_path / "set", "train", {"a.png": image.size}, [("a.png", 5, [1, 1, 9, 9], {})])
    write_split(tmp_path / "set", "val", {"b.png": (64, 48)}, [("b.png", 5, [1, 1, 9, 9], {})])
    read = coco(tmp_path / "set").read("train", 0)
    assert np.array_equal(read, np.asarray(turned if orientation == 3 else image))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("1", "png")]
)
def test_any_colours_become_rgb(tmp_path, mode, suffix):
    name = f"a.{suffix}"
    picture(tmp_path / "set" / "train" / name, (64, 48), mode)
    write_split(tmp_path / "set", "train", {name: (64, 48)}, [(name, 5, [1, 1, 9, 9], {})])
    write_split(tmp_path / "set", "val", {"b.png": (64, 48)}, [("b.png", 5, [1, 1, 9, 9], {})])
    read = coco(tmp_path / "set").read("train", 0)
    assert read.shape == (48, 64, 3) and read.dtype == np.uint8
    if mode == "L":
        assert (read == read[..., :1]).all()


def first(**change):
    return lambda node: node["annotations"][0].update(change)


def corners(node):
    sizes = {image["id"]: (image["width"], image["height"]) for image in node["images"]}
    for row in node["annotations"]:
        width, height = sizes[row["image_id"]]
        row["bbox"] = [width - 9, height - 9, width - 2, height - 2]


def fractions(node):
    for row in node["annotations"]:
        row["bbox"] = [0.1, 0.2, 0.5, 0.3]


def only_crowd(node):
    for row in node["annotations"]:
        row["iscrowd"] = 1


BAD = {  # what is changed in the annotations of train -> what is said
    "categories": (lambda n: n.pop("categories"), "no key 'categories'"),
    "twice": (lambda n: n["categories"][1].update(id=5), "category id 5 twice (dog, cat)"),
    "others": (
        lambda n: n["categories"].append({"id": 7, "name": "bus"}),
        "found category 7 'bus' in ",
    ),
    "renamed": (lambda n: n["categories"][0].update(name="bus"), "found category 5 'bus' in "),
    "no category": (lambda n: n.update(categories=[]), "found no category in"),
    "image": (first(image_id=999), "found annotation 0 of image 999, which "),
    "category": (first(category_id=91), "found annotation 0 of category 91, which "),
    "text id": (first(category_id="5"), "found annotation 0 of category '5', which "),
    "three": (first(bbox=[1, 2, 3]), "found bbox [1, 2, 3] of annotation 0"),
    "texts": (first(bbox=["1", "2", "3", "4"]), "found bbox ['1', '2', '3', '4'] of annotation 0"),
    "nan": (first(bbox=[1, 2, float("nan"), 4]), "found bbox [1, 2, nan, 4] of annotation 0"),
    "none": (first(bbox=None), "found bbox None of annotation 0"),
    "corners": (corners, "found 9 of 9 boxes outside their images"),
    "fractions": (fractions, "found every box smaller than one pixel"),
    "missing": (
        lambda n: [image.update(file_name=f"gone{image['id']}.jpg") for image in n["images"]],
        "gone7.jpg (and 5 more)",
    ),
    "outside": (lambda n: n["images"][0].update(file_name="../valid/one.jpg"), "found no file "),
    "no name": (lambda n: n["images"][0].pop("file_name"), "found file_name None of id 7"),
    "no width": (lambda n: n["images"][0].update(width=0), "found width 0 of id 7"),
    "same image": (lambda n: n["images"][1].update(id=7), "found image id 7 twice"),
    "no image": (lambda n: n.update(images=[]), "found no image in"),
    "no object": (lambda n: n["images"].append(3), "found 3 for an image in"),
    "large": (
        lambda n: n["images"][0].update(width=20_000, height=20_000),
        "found 'a.jpg' of 400 megapixels in ",
    ),
    "crowd": (only_crowd, "found no usable box in 6 training images (8 crowd, 1 without area)"),
    "size": (
        lambda n: n["images"][0].update(width=500, height=375),
        "a.jpg of 64x48 pixels, allowed is 500x375 as its annotations say",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_annotations_are_one_line(own_set, name):
    change, words = BAD[name]
    edit(train_file(own_set), change)
    message = refusal(own_set)
    assert message.startswith("data.root: found ") and words in message


def test_bad_folders_and_files_are_one_line(own_set, tmp_path):
    message = refusal(tmp_path / "nowhere")
    assert message == (
        f"data.root: found {tmp_path / 'nowhere'} (No such file or directory), allowed is an "
        "existing folder or zip file"
    )
    (tmp_path / "bare").mkdir()
    message = refusal(tmp_path / "bare")
    assert (
        "found no annotations/instances_train.json and no train/_annotations.coco.json" in message
    )

    image = own_set / "train" / "a.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    message = refusal(own_set)
    assert message.startswith(f"data.root: found {image} damaged (")
    assert message.endswith("allowed is a complete copy: fetch the set again")
    image.write_bytes(whole)

    path = train_file(own_set)
    text = path.read_text()
    for cut, where in ((text[:-40], "line 1 column "), ("", "line 1 column 1"), ("[[" * 10**5, "")):
        path.write_text(cut)
        message = refusal(own_set)
        assert message.startswith(f"data.root: found {path} damaged ({where}")


def test_other_keys_of_the_data_are_one_line(own_set):
    for words, expected in (
        ("data.short_sides=[]", "data.short_sides: found [], allowed is a list of integers >= 32"),
        ("data.short_sides=[2000]", "data.short_sides: found [2000], allowed is a list"),
        ("data.short_sides=large", "data.short_sides: found 'large'"),
        ("data.num_classes=80", "data.num_classes: found 80, allowed is 3"),
        ("data.flip=1", "data.flip: found 1"),
        ("data.workers=-1", "data.workers: found -1"),
        ("+data.sides=3", "data.sides: found an unknown key"),
    ):
        assert refusal(own_set, words).startswith(expected)


def test_a_missing_evaluator_names_the_extra(monkeypatch):
    for name in ("pycocotools", "pycocotools.coco", "faster_coco_eval"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(
        UserError, match=r"no package pycocotools:  pip install 'eakd\[detection\]'"
    ):
        check_evaluator()


def test_zip_files_with_names_that_lead_outside_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("../annotations/instances_train.json", "{}")
    assert "allowed are names inside the archive" in refusal(tmp_path / "set.zip")


def test_coco_itself(coco_mini, tmp_path):
    data = coco(coco_mini, train="train2017", test="val2017", cache_dir=tmp_path)
    assert data.num_classes == 80 and data.classes[0] == "person" and data.category_ids[-1] == 90
    train, test = data.splits["train"], data.splits["test"]
    assert (len(train.boxes), len(test.boxes)) == (1160, 1196)
    assert (train.crowd.sum(), test.crowd.sum()) == (10, 16)
    assert train.trainable.sum() == 1150
    (empty,) = np.flatnonzero(np.diff(train.starts) == 0)
    assert train.ids[empty] == 262284
    for image in range(0, len(test), 8):
        assert data.read("test", image).shape == (*test.sizes[image], 3)
