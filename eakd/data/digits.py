"""The handwritten digits that ship inside scikit-learn: a real set without a download."""

from __future__ import annotations

import numpy as np

from eakd.data.base import ImageData, fingerprint
from eakd.data.split import stratified
from eakd.errors import check_number


def digits(
    image_size: int = 16,
    train_per_class: int = 10,
    seed: int = 0,
    pool_per_class: int | None = None,
) -> ImageData:
    """1,797 digits of 43 writers (UCI, Alpaydin and Kaynak, 1998), few of them for training.

    Args:
        image_size: pixels; the 8x8 originals are resized bilinearly.
        train_per_class: training samples of each digit, 1 to 173; the others are the test set.
            Few, so that methods still differ: 40 already take a plain ResNet-8 to 98 %, 20 to 95 %.
        seed: of the split.
        pool_per_class: samples of each digit that are never tested on, so that a teacher may train
            on more of them than its students and is tested on the same images; ``None`` for
            ``train_per_class``.

    Raises:
        UserError: an argument out of range.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    check_number("image_size", image_size, at_least=8, at_most=1024, integer=True)
    check_number("seed", seed, at_least=0, at_most=2**32 - 1, integer=True)
    source = load_digits()
    labels = source.target.astype(np.int64)
    most = int(np.bincount(labels).min()) - 1  # leaves a test sample of every digit
    if pool_per_class is not None:
        check_number("pool_per_class", pool_per_class, at_least=1, at_most=most, integer=True)
        most = pool_per_class
    check_number("train_per_class", train_per_class, at_least=1, at_most=most, integer=True)

    grey = (source.images * (255 / 16) + 0.5).astype(np.uint8)  # 0..16 -> 0..255
    size = (image_size, image_size)
    resized = [np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(resized)[..., None], 3, axis=3)

    # Of the same seed, a smaller choice is part of a larger one.
    train, test = stratified(labels, lambda _: train_per_class, seed)
    if pool_per_class is not None:
        _, test = stratified(labels, lambda _: pool_per_class, seed)
    arrays = images[train], labels[train], images[test], labels[test]
    classes = tuple(map(str, source.target_names))
    return ImageData("digits", classes, *arrays, fingerprint=fingerprint(classes, *arrays))
