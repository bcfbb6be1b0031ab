"""Handwritten digits on photographs, both from scikit-learn: real pixels without a download."""

from __future__ import annotations

import numpy as np

from eakd.detection.boxes import BoxData, Boxes, fingerprint
from eakd.errors import check_number

SIDES = (16, 48)  # pixels of a digit's square; its ink is smaller
MOST = 5  # digits of a scene
INK = 32  # of 255: fainter is left out, so that a box ends where ink does
DARKER = 0.5  # of the photograph, so that any colour stands out
TRIES = 20  # places for a digit before it is left out


def scenes(
    train_images: int = 400, test_images: int = 100, image_size: int = 128, seed: int = 0
) -> BoxData:
    """One to five digits, of any colour and side by side, on cuts of two photographs.

    The digits are scikit-learn's 1,797 (UCI; Alpaydin and Kaynak, 1998), a fifth of them for
    testing only. The photographs are its ``china.jpg`` and ``flower.jpg`` (CC BY 2.0, by their
    authors there). A box is the exact extent of a digit's ink.

    Args:
        train_images, test_images: scenes of each split.
        image_size: pixels of a side, 64 to 400.
        seed: of all that is drawn; a smaller split is the beginning of a larger one.

    Raises:
        UserError: an argument out of range.
    """
    from sklearn.datasets import load_digits, load_sample_images

    check_number("train_images", train_images, at_least=1, at_most=100_000, integer=True)
    check_number("test_images", test_images, at_least=1, at_most=100_000, integer=True)
    check_number("image_size", image_size, at_least=64, at_most=400, integer=True)
    check_number("seed", seed, at_least=0, integer=True)
    digits, photographs = load_digits(), load_sample_images().images
    grey = (digits.images * (255 / 16) + 0.5).astype(np.uint8)  # 0..16 -> 0..255
    tested = np.arange(len(grey)) % 5 == 0
    images, splits = {}, {}
    for place, (split, count) in enumerate((("train", train_images), ("test", test_images))):
        known = np.flatnonzero(tested == (split == "test"))
        drawn = [
            _scene(np.random.default_rng([seed, place, i]), photographs, grey, known, image_size)
            for i in range(count)
        ]
        images[split] = np.stack([image for image, _, _ in drawn])
        boxes = np.concatenate([boxes for _, boxes, _ in drawn])
        chosen = np.concatenate([chosen for _, _, chosen in drawn])
        splits[split] = Boxes(
            ids=np.arange(1, count + 1),
            sizes=np.full((count, 2), image_size),
            starts=np.cumsum([0, *(len(chosen) for _, _, chosen in drawn)]),
            boxes=boxes,
            labels=digits.target[chosen].astype(np.int64) + 1,
            crowd=np.zeros(len(boxes), bool),
            areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        )
    classes = tuple(map(str, digits.target_names))
    mark = fingerprint(classes, splits, *images.values())
    ids = tuple(range(1, len(classes) + 1))
    return BoxData("scenes", classes, ids, splits, lambda split, i: images[split][i], mark)


def _scene(
    rng: np.random.Generator,
    photographs: list[np.ndarray],
    digits: np.ndarray,
    known: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture, the boxes ``(k, 4)``, and which digit is in each ``(k,)``; k ≥ 1."""
    from PIL import Image

    photograph = photographs[rng.integers(len(photographs))]
    top, left = (rng.integers(side - size + 1) for side in photograph.shape[:2])
    canvas = DARKER * photograph[top : top + size, left : left + size]
    boxes, chosen = [], []
    for _ in range(rng.integers(1, MOST + 1)):
        side, digit = rng.integers(SIDES[0], SIDES[1] + 1), known[rng.integers(len(known))]
        colour = rng.integers(128, 256, 3)
        ink = np.asarray(Image.fromarray(digits[digit]).resize((side, side), Image.BICUBIC))
        ink = np.where(ink < INK, 0, ink)
        rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        for _ in range(TRIES):
            y, x = rng.integers(size - height + 1), rng.integers(size - width + 1)
            if all(x + width < a or c < x or y + height < b or d < y for a, b, c, d in boxes):
                place = canvas[y : y + height, x : x + width]
                share = ink[..., None] / 255
                place[:] = share * colour + (1 - share) * place
                boxes.append((x, y, x + width, y + height))
                chosen.append(digit)
                break
    return np.rint(canvas).astype(np.uint8), np.array(boxes, np.float64), np.array(chosen)
