"""The embedded scenes: exact boxes, a function of the seed."""

import numpy as np
import pytest

from eakd.detection import scenes
from eakd.errors import UserError


@pytest.fixture(scope="module")
def data():
    return scenes(train_images=60, test_images=20)


def test_boxes_end_where_ink_ends(data):
    """Without its digits, a scene is a cut of a darkened photograph; they are brighter or bluer."""
    boxes = data.splits["train"]
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    assert (boxes.boxes >= 0).all() and (boxes.boxes <= 128).all()
    assert (boxes.boxes == np.rint(boxes.boxes)).all()
    assert sides.min() >= 4 and sides.max() <= 48
    assert np.array_equal(boxes.areas, sides.prod(axis=1))
    assert (np.diff(boxes.starts) >= 1).all() and (np.diff(boxes.starts) <= 5).all()
    assert set(boxes.labels.tolist()) == set(range(1, 11))
    assert boxes.trainable.all()


def test_ink_touches_every_edge_of_its_box_and_none_lies_outside(data):
    from sklearn.datasets import load_sample_images

    photographs = [0.5 * image for image in load_sample_images().images]
    for i in range(8):
        image, boxes = data.read("train", i).astype(float), data.splits["train"].training(i)[0]
        outside = np.ones(image.shape[:2], bool)
        for x, y, right, bottom in boxes.astype(int):
            outside[y:bottom, x:right] = False
        # The cut whose pixels outside the boxes are the scene's.
        cuts = [
            np.rint(cut)
            for photograph in photographs
            for cut in _cuts_like(photograph, image, outside)
        ]
        assert len(cuts) == 1
        ink = (image != cuts[0]).any(axis=2)
        assert not ink[outside].any()
        for x, y, right, bottom in boxes.astype(int):
            part = ink[y:bottom, x:right]
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))


def _cuts_like(photograph, image, outside):
    """The cuts of a photograph that equal an image outside its boxes."""
    rows, columns = np.nonzero(outside)
    places = np.linspace(0, len(rows) - 1, 12).astype(int)
    size, (height, width, _) = len(image), photograph.shape
    fits = np.ones((height - size + 1, width - size + 1), bool)
    for y, x in zip(rows[places], columns[places], strict=True):
        window = photograph[y : y + fits.shape[0], x : x + fits.shape[1]]
        fits &= (np.abs(window - image[y, x]) <= 0.5).all(axis=2)
    for top, left in np.argwhere(fits):
        cut = photograph[top : top + size, left : left + size]
        if (np.abs(cut - image)[outside] <= 0.5).all():
            yield cut


def test_scenes_are_a_function_of_the_seed(data):
    again = scenes(train_images=60, test_images=20)
    assert again.fingerprint == data.fingerprint
    smaller, other = scenes(5, 5), scenes(60, 20, seed=1)
    assert other.fingerprint != data.fingerprint
    for i in range(5):  # a smaller set is the beginning of a larger one
        assert np.array_equal(smaller.read("train", i), data.read("train", i))
        assert not np.array_equal(other.read("train", i), data.read("train", i))
    assert not np.array_equal(data.read("train", 0), data.read("test", 0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"image_size": 32}, "image_size: found 32"),
        ({"train_images": 0}, "train_images: found 0"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_wrong_values_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        scenes(**words)
