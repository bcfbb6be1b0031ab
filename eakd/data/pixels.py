"""An image file of any kind as 8-bit RGB, or one line that says why not."""

from __future__ import annotations

import io
from functools import cache
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

BACKGROUND = (255, 255, 255)  # behind transparent pixels, as viewers and browsers show them

# Not read: PostScript is a program (Pillow would hand it to Ghostscript), and of the others Pillow
# knows the name but cannot decode them everywhere.
EXCLUDED_FORMATS = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"))


class Refused(ValueError):
    """An image with no single right reading.

    Args:
        found: what is in the file, to follow its name in a message.
        allowed: what could be there, and the way on.
    """

    def __init__(self, found: str, allowed: str):
        super().__init__(found, allowed)
        self.found, self.allowed = found, allowed


class Decoded(NamedTuple):
    """A file's picture.

    Attributes:
        image: a Pillow image of mode RGB, upright.
        frames: how many frames or pages the file has; ``image`` is the first.
    """

    image: object
    frames: int


@cache
def readable() -> dict[str, str]:
    """Lower-case suffix and name of each format that is read: all that this Pillow opens, but for
    `EXCLUDED_FORMATS`."""
    from PIL import Image

    return {
        suffix: name
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in EXCLUDED_FORMATS
    }


@cache
def _formats() -> list[str]:
    """What `decode` reads, in the order in which Pillow itself tries formats."""
    from PIL import Image

    known = set(readable().values())
    return [name for name in Image.ID if name in known]


def is_image(name: str) -> bool:
    """Whether a file's suffix says that it is an image, in whatever case."""
    return PurePosixPath(name).suffix.lower() in readable()


def decode(content: bytes, size: tuple[int, int] | None = None) -> Decoded:
    """The first frame of a file, by its content and not by its suffix, upright and as RGB.

    The EXIF orientation is applied; an EXIF block that cannot be read counts as upright. Colour
    profiles are ignored. See `to_rgb` for colours.

    Args:
        size: width and height that annotations give the image. Programs differ in whether they
            annotate what is stored or what viewers show, so that the orientation is not applied
            where only the stored size is this one.

    Raises:
        Refused: too many pixels, none, another size, or colours with no single right reading.
        Exception: whatever Pillow raises for a damaged file.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
    except Image.DecompressionBombError as error:
        raise _too_large(f"of more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from error
    with image:
        width, height = image.size
        if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
            raise _too_large(f"of {width}x{height} pixels")
        if not width * height:
            raise Refused(f"of {width}x{height} pixels", "an image of at least 1x1")
        # Layers of a Photoshop file are parts of its picture.
        frames = 1 if image.format == "PSD" else getattr(image, "n_frames", 1)
        _scale_transparent_grey(image)
        image.load()
        if size in (None, _shown_size(image)):
            try:
                ImageOps.exif_transpose(image, in_place=True)
            except Exception:  # parsing a damaged block raises almost anything
                image.load()
        elif size != image.size:
            found, wanted = ("x".join(map(str, pair)) for pair in (image.size, size))
            raise Refused(f"of {found} pixels", f"{wanted} as its annotations say")
        return Decoded(to_rgb(image), frames)


def _shown_size(image) -> tuple[int, int]:
    """Width and height once the EXIF orientation is applied."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # parsing a damaged block raises almost anything
        return image.size
    return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size


def to_rgb(image):
    """A Pillow image as 8-bit RGB.

    | mode | files | RGB |
    |---|---|---|
    | RGB, RGBX | | as it is; of 16-bit channels Pillow hands over the high byte |
    | 1, L | | grey: R = G = B; white is 255 |
    | P | GIF, PNG | the palette's colour |
    | LA, La, PA, RGBA, RGBa; P, 1, L, I;16, RGB with a transparent entry or colour | PNG, GIF,
      TIFF, WebP | composited on white: ``(c·a + 255·(255 − a)) / 255``, rounded |
    | CMYK | TIFF, JPEG | ``(255 − C)·(255 − K) / 255``; a JPEG's values count as Adobe's, which
      are inverted |
    | YCbCr, HSV, LAB | TIFF | by Pillow (JFIF's matrix; LAB under D50 to sRGB) |
    | I;16, I;16B, I;16L, I;16N | PNG, TIFF, JPEG 2000 | grey: ``x·255 / 65535``, rounded; of a
      12-bit TIFF ``x·255 / 4095`` |
    | I | PGM, TIFF | as I;16 if it is 16-bit data: always of a PGM or PNG, otherwise if all are in
      0..65535 and one is above 255, or all are 0; refused otherwise |
    | F | TIFF, PFM | grey: ``x·255``, rounded, if all are in 0..1; refused otherwise |
    | others | | refused |

    Numbers are never stretched to the range of one image, which would make bright what is dark. A
    TIFF whose white is zero is inverted.

    Raises:
        Refused: naming the mode.
    """
    from PIL import Image

    mode = image.mode
    if mode == "I" or mode == "F" or mode.startswith("I;16"):
        return Image.fromarray(_grey(image)).convert("RGB")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:
            raise Refused(
                "with a transparent colour of 16 bits per channel",
                "8 bits per channel or an alpha channel: save it so",
            )
        # La becomes RGBA in two steps only.
        layers = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(layers, mask=layers.getchannel("A"))
        return canvas
    if mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        raise Refused(f"in mode {mode}", "8-bit grey or RGB: save it so")
    return image.convert("RGB")


def _too_large(found: str) -> Refused:
    from PIL import Image

    return Refused(
        found, f"at most {Image.MAX_IMAGE_PIXELS:,}: scale it down, or remove it if it is no photo"
    )


def _scale_transparent_grey(image) -> None:
    """Pillow scales grey of 2 and 4 bits to 0..255, but not the transparent one among them."""
    if image.format == "PNG" and image.tile and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(image.tile[0][3], 1)


def _grey(image) -> np.ndarray:
    """8-bit grey of an image with larger numbers, ``(H, W)`` uint8."""
    mode, values = image.mode, np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # a TIFF's
    low, high = values.min(), values.max()
    if mode == "F":
        if not (low >= 0 and high <= 1):  # so written, NaN is refused too
            raise Refused(
                f"in mode F with values from {low:g} to {high:g}",
                "0 to 1, which become 0 to 255: scale them, or save it with 8 or 16 bits",
            )
        grey = np.rint(values.astype(np.float64) * 255)
    else:
        # Numbers up to 255 in 32 bits may be meant as 8-bit grey: a guess would turn a set black.
        plain = 255 < high <= 65535 or high == 0 or image.format in ("PNG", "PPM")
        if mode == "I" and not (low >= 0 and plain):
            raise Refused(
                f"in mode I (32-bit integers) with values from {low} to {high}",
                "16-bit data, 0 to 65535 and not all below 256: save it with 8 or 16 bits",
            )
        white = 4095 if tags.get(258) == (12,) else 65535  # BitsPerSample
        grey = (values.astype(np.int64) * 510 + white) // (2 * white)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero; Pillow leaves these as is
        grey = 255 - grey
    key = image.info.get("transparency")
    if isinstance(key, int) and mode != "F":
        grey[values == key] = BACKGROUND[0]
    return grey.astype(np.uint8)
