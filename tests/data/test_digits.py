"""The embedded digits."""

import numpy as np
import pytest

from eakd.data import digits
from eakd.errors import UserError


def test_shapes_and_content():
    data = digits()
    assert data.train_images.shape == (100, 16, 16, 3) and data.train_images.dtype == np.uint8
    assert data.test_images.shape == (1697, 16, 16, 3)
    assert data.train_labels.dtype == np.int64
    assert data.classes == tuple("0123456789") and data.num_classes == 10
    assert np.bincount(data.train_labels).tolist() == [10] * 10
    assert data.train_images.max() == 255 and data.train_images.min() == 0
    # Constants of configs/data/digits.yaml.
    assert np.mean(data.train_images / 255) == pytest.approx(0.2990, abs=5e-5)
    assert np.std(data.train_images / 255) == pytest.approx(0.3131, abs=5e-5)


def test_originals_survive_at_their_own_size():
    from sklearn.datasets import load_digits

    data = digits(image_size=8, train_per_class=1)
    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    source = load_digits()
    ours = sorted(
        (int(label), (image[..., 0] * (16 / 255)).round().astype(int).tobytes())
        for image, label in zip(images, labels, strict=True)
    )
    theirs = sorted(
        (int(label), image.astype(int).tobytes())
        for image, label in zip(source.images, source.target, strict=True)
    )
    assert ours == theirs


def test_split_depends_on_its_seed_only():
    assert digits().fingerprint == digits().fingerprint
    assert digits(seed=1).fingerprint != digits().fingerprint


def test_a_teacher_learns_from_more_and_nobody_from_test_images():
    """The first few of the pool are its students', whose test set is the teacher's."""

    def pixels(images):
        return {image.tobytes() for image in images}

    few, many = digits(pool_per_class=100), digits(train_per_class=100, pool_per_class=100)
    assert np.array_equal(few.test_images, many.test_images) and len(few.test_images) == 797
    assert len(few.train_images) == 100 and len(many.train_images) == 1000
    assert pixels(few.train_images) < pixels(many.train_images)
    assert not pixels(many.train_images) & pixels(many.test_images)
    assert np.array_equal(few.train_images, digits().train_images)
    assert few.fingerprint != digits().fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "image_size: found 7"),
        ({"train_per_class": 0}, "train_per_class: found 0"),
        ({"train_per_class": 174}, "train_per_class: found 174.*<= 173"),
        ({"train_per_class": 11, "pool_per_class": 10}, "train_per_class: found 11.*<= 10"),
        ({"pool_per_class": 174}, "pool_per_class: found 174.*<= 173"),
        ({"pool_per_class": 0}, "pool_per_class: found 0"),
        ({"seed": -1}, "seed: found -1"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        digits(**options)
