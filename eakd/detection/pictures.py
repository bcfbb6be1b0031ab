"""Finding images, and drawing boxes into them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from eakd.data.pixels import is_image
from eakd.data.source import Folder, Source, as_path, open_source
from eakd.detection.coco import read_image
from eakd.errors import UserError
from eakd.files import write_atomically


def find_images(value: object) -> tuple[Source, list[str]]:
    """The images behind ``images``, and where they are.

    Raises:
        UserError: there is none.
    """
    path = as_path("images", value)
    try:
        if path.is_file() and is_image(path.name):
            return Folder(path.parent), [path.name]
        source = open_source(path) if path.is_dir() or path.suffix.lower() == ".zip" else None
        names = _below(source) if source else []
    except UserError as error:
        raise UserError(str(error).replace("root:", "images:", 1)) from error
    if source is None and not path.exists():
        raise UserError(f"images: found no {path}, allowed is an image, a folder or a zip file")
    if source is None or not names:
        raise UserError(
            f"images: found no image in {path}, allowed are files ending in .png, .jpg or another "
            "suffix of images"
        )
    return source, names


def _below(source: Source) -> list[str]:
    files, folders = source.children()
    for folder in folders:
        files += source.below(folder)
    return sorted(filter(is_image, files))


def read(source: Source, name: str) -> np.ndarray:
    """An image as `read_image` gives it; errors are of ``images``."""
    try:
        return read_image(source, name)
    except UserError as error:
        raise UserError(str(error).replace("root:", "images:", 1)) from error


def drawn(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: list[str] | None,
    hues: list[int],
    width: int | None = None,
) -> np.ndarray:
    """The image with boxes and captions, later ones over earlier ones.

    Args:
        image: ``(H, W, 3)`` uint8.
        boxes: ``(k, 4)``, x1 y1 x2 y2 in its pixels.
        captions, hues: of each box; hues in degrees, 0 is red; ``None`` for no captions.
        width: of the lines in pixels; ``None`` for what suits the image.
    """
    from torchvision.utils import draw_bounding_boxes

    colours = [f"hsl({hue}, 90%, 60%)" for hue in hues]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if len(boxes):
        width = width or max(1, round(max(image.shape) / 300))
        corners: Tensor = torch.from_numpy(boxes)
        pixels = draw_bounding_boxes(pixels, corners, captions, colours, width=width)
    return pixels.permute(1, 2, 0).numpy()


def picture_names(names: list[str]) -> dict[str, Path]:
    """A ``.png`` for each image; of two that differ in their suffix only, with that in its name."""
    stems = {name: PurePosixPath(name).with_suffix("") for name in names}
    counts = Counter(stems.values())
    return {
        name: Path(f"{stem if counts[stem] == 1 else name}.png") for name, stem in stems.items()
    }


def save(image: np.ndarray, path: Path) -> None:
    """Write ``(H, W, 3)`` uint8 as PNG, whole or not at all."""
    from PIL import Image

    write_atomically(path, lambda temporary: Image.fromarray(image).save(temporary, "PNG"))
