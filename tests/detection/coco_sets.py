"""Small sets in COCO's format, written to a folder."""

import json

import numpy as np
from PIL import Image

# Ids from 0, with gaps, in no order.
CATEGORIES = {5: "dog", 0: "cat", 900: "cow"}


def picture(path, size=(64, 48), mode="RGB", orientation=None, seed=0):
    """Smooth colours, which JPEG keeps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.BICUBIC).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return image


def write_split(root, split, images, boxes, categories=CATEGORIES, layout="official"):
    """One split; ``images`` is ``{file: (width, height)}``, written unless they are there.

    Args:
        boxes: ``(file, category id, [x, y, width, height], other keys)``.

    Returns:
        The annotation file.
    """
    folder = root / split
    ids = {file: 10 * place + 7 for place, file in enumerate(images)}
    for place, (file, size) in enumerate(images.items()):
        if not (folder / file).exists():
            picture(folder / file, size, seed=place)
    node = {
        "images": [
            {"id": ids[file], "file_name": file, "width": size[0], "height": size[1]}
            for file, size in images.items()
        ],
        "annotations": [
            {"id": i, "image_id": ids[file], "category_id": c, "bbox": box, "segmentation": [[0]]}
            | more
            for i, (file, c, box, more) in enumerate(boxes)
        ],
        "categories": [{"id": c, "name": name} for c, name in categories.items()],
    }
    path = root / "annotations" / f"instances_{split}.json"
    if layout == "exported":
        path = folder / "_annotations.coco.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node))
    return path


def write_set(root, layout="official"):
    """Train: six images, of which one is empty, one all crowd; test: two, one of them empty."""
    train = {"a.jpg": (64, 48), "b.jpg": (48, 64), "c.jpg": (80, 40), "d.png": (50, 50)}
    train |= {"empty.jpg": (60, 40), "crowd.jpg": (40, 60)}
    boxes = [
        ("b.jpg", 900, [1, 2, 30, 40], {}),
        ("a.jpg", 5, [10, 10, 20.5, 20], {"area": 300.0, "iscrowd": 0}),
        ("a.jpg", 0, [40, 8, 40, 16], {}),  # reaches out of the image
        ("c.jpg", 0, [5, 5, 10, 0], {}),  # no area
        ("c.jpg", 5, [7, 9, 1, 1], {}),  # one pixel
        ("c.jpg", 5, [20, 9, 0.5, 9], {}),  # narrower
        ("d.png", 5, [0, 0, 50, 50], {}),
        ("a.jpg", 5, [0, 0, 64, 48], {"iscrowd": 1}),
        ("crowd.jpg", 5, [0, 0, 40, 60], {"iscrowd": 1}),
    ]
    write_split(root, "train", train, boxes, layout=layout)
    test = {"one.jpg": (64, 48), "none.jpg": (48, 48)}
    boxes = [("one.jpg", 5, [4, 4, 30, 30], {}), ("one.jpg", 0, [0, 0, 60, 40], {"iscrowd": 1})]
    write_split(root, "valid", test, boxes, layout=layout)
    return root
