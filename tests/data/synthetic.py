"""Small synthetic sets, written the way mirrors and authors ship them."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def class_files(classes=("cat", "dog"), train=3, test=2, test_folder="test", size=(32, 32)):
    """Names and contents of a set of class folders."""
    return {
        f"{split}/{name}/{number}.png": encoded(picture(hash_of(split, name, number), size))
        for split, count in (("train", train), (test_folder, test))
        for name in classes
        for number in range(count)
    }


def hash_of(*parts: object) -> int:
    return int.from_bytes(repr(parts).encode()[-8:], "big")


def tiny_files(classes=("n02", "n01"), train=3, val=2):
    """Names and contents of a set in Tiny-ImageNet's layout; one image is greyscale."""
    files = {"wnids.txt": "".join(f"{name}\n" for name in classes).encode()}
    annotations = ""
    for label, name in enumerate(classes):
        for number in range(train):
            mode = "L" if number == 0 else "RGB"
            image = picture(100 * label + number, (64, 64), mode)
            files[f"train/{name}/images/{name}_{number}.JPEG"] = encoded(image, "JPEG")
        files[f"train/{name}/{name}_boxes.txt"] = b"0 0 1 1\n"
        for number in range(val):
            leaf = f"val_{label}_{number}.JPEG"
            files[f"val/images/{leaf}"] = encoded(picture(9000 + label, (64, 64)), "JPEG")
            annotations += f"{leaf}\t{name}\t0\t0\t62\t62\n"
    files["val/val_annotations.txt"] = annotations.encode()
    files["test/images/test_0.JPEG"] = encoded(picture(1, (64, 64)), "JPEG")
    return {f"tiny-imagenet-200/{name}": content for name, content in files.items()}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@contextlib.contextmanager
def without_privileges(root: Path):
    """As a user whom permissions bind, and whom nothing in ``root`` belongs to: root may do all."""
    if os.geteuid():
        mode = root.stat().st_mode
        if mode & 0o200:
            root.chmod(mode & ~0o222)
        yield
        root.chmod(mode)
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
