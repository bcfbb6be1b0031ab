"""Any file becomes the right 8-bit RGB, or is refused by name; expected pixels are by hand."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from synthetic import class_files, encoded, picture, write_folder
from test_files import refused

from eakd.data import image_folder
from eakd.data.pixels import EXCLUDED_FORMATS, Refused, decode, is_image, readable, to_rgb

RGB = [[(255, 0, 0), (0, 255, 0), (1, 2, 3)], [(0, 0, 0), (255, 255, 255), (200, 100, 50)]]
GREY = [[0, 1, 127], [128, 254, 255]]
CLEAR, HALF = (9, 99, 199, 0), (0, 100, 255, 128)
# (c * 128 + 255 * 127) / 255, rounded: 127, 50.2 + 127 and 128 + 127.
ON_WHITE = {CLEAR: (255, 255, 255), HALF: (127, 177, 255), (1, 2, 3, 255): (1, 2, 3)}


def pixels(image):
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def grey(rows):
    return [[(value,) * 3 for value in row] for row in rows]


def rgb_image():
    return Image.fromarray(np.array(RGB, np.uint8))


def of(mode, values):
    """A Pillow image of one row."""
    image = Image.new(mode, (len(values), 1))
    for place, value in enumerate(values):
        image.putpixel((place, 0), value)
    return image


def file_of(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(values, bits, sample, photometric=1):
    """A TIFF of one row, written by hand: Pillow does not write these."""
    data = b"".join(struct.pack(f"<{sample}", value) for value in values)
    if bits == 12:  # two numbers in three bytes
        a, b = values
        data = bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    kind = 3 if sample == "f" else 2 if sample in "hi" else 1
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0}
    tags |= {277: 1, 278: 1, 279: len(data), 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def png(header, data, *chunks):
    """A PNG of given IHDR fields (width, height, depth, colour type) and raw rows."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))]
    parts += [chunk(*other) for other in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (*parts, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", [0, 255], [(0,) * 3, (255,) * 3]),
        ("L", [0, 7, 255], [(0,) * 3, (7,) * 3, (255,) * 3]),
        ("LA", [(10, 255), (10, 0), (100, 128)], [(10,) * 3, (255,) * 3, (177,) * 3]),
        # Premultiplied: 50 of 128 is 100 unmultiplied.
        ("La", [(10, 255), (0, 0), (50, 128)], [(10,) * 3, (255,) * 3, (177,) * 3]),
        ("RGB", [(1, 2, 3), (255, 0, 9)], [(1, 2, 3), (255, 0, 9)]),
        ("RGBA", list(ON_WHITE), list(ON_WHITE.values())),
        ("RGBa", [(0, 0, 0, 0), (1, 2, 3, 255)], [(255,) * 3, (1, 2, 3)]),
        ("RGBX", [(1, 2, 3, 0), (9, 8, 7, 255)], [(1, 2, 3), (9, 8, 7)]),
        ("CMYK", [(0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0), (255, 0, 0, 51)],
         [(255, 0, 0), (0, 0, 0), (255, 255, 255), (0, 204, 204)]),
        ("YCbCr", [(0, 128, 128), (255, 128, 128), (76, 85, 255)],
         [(0, 0, 0), (255, 255, 255), (254, 0, 0)]),
        ("HSV", [(0, 0, 77), (0, 255, 255), (85, 255, 255)],
         [(77, 77, 77), (255, 0, 0), (0, 255, 0)]),
        # Lightness 0 and 100 of neutral colour; a* and b* are stored around 128.
        ("LAB", [(0, 128, 128), (255, 128, 128)], [(0, 0, 0), (255, 255, 255)]),
        *((mode, [0, 128, 129, 257, 32767, 65535],
           [(v,) * 3 for v in (0, 0, 1, 1, 127, 255)])
          for mode in ("I", "I;16", "I;16B", "I;16L", "I;16N")),
        ("I", [0, 0], [(0,) * 3] * 2),
        ("F", [0.0, 0.5, 1.0, 0.2], [(0,) * 3, (128,) * 3, (255,) * 3, (51,) * 3]),
    ],
)  # fmt: skip
def test_every_mode(mode, values, expected):
    found = to_rgb(of(mode, values))
    assert found.mode == "RGB"
    if mode in ("LAB", "YCbCr"):  # rounded on the way; by JFIF's matrix 76 + 1.402 * 127 = 254.05
        assert np.abs(np.asarray(found)[0].astype(int) - expected).max() <= 1
    else:
        assert pixels(found) == [expected]


@pytest.mark.parametrize(
    ("mode", "values", "found"),
    [
        ("I", [0, 65536], "mode I .* 0 to 65536"),
        ("I", [-1, 300], "mode I .* -1 to 300"),
        ("I", [0, 255], "mode I .* 0 to 255"),  # 8 bits in 32?
        ("I", [-(2**31), 2**31 - 1], "mode I"),
        ("F", [0.0, 1.5], "mode F .* 0 to 1.5"),
        ("F", [0.0, 255.0], "mode F .* 0 to 255"),
        ("F", [-0.1, 0.5], "mode F"),
        ("F", [0.0, float("nan")], "mode F"),
        ("F", [0.0, float("inf")], "mode F"),
    ],
)
def test_numbers_without_one_reading_are_refused(mode, values, found):
    with pytest.raises(Refused, match=found):
        to_rgb(of(mode, values))


def test_palettes():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 1, 2, 3, 200, 100, 50])
    image.putdata([2, 0, 1])
    assert pixels(to_rgb(image)) == [[(200, 100, 50), (10, 20, 30), (1, 2, 3)]]
    for format in ("PNG", "GIF", "BMP", "TIFF", "PCX", "TGA"):
        assert pixels(decode(encoded(image, format)).image) == pixels(to_rgb(image)), format
    one = decode(file_of(image, "GIF", transparency=0)).image
    assert pixels(one) == [[(200, 100, 50), (255, 255, 255), (1, 2, 3)]]
    several = decode(file_of(image, "PNG", transparency=bytes((0, 255, 128)))).image
    # 200, 100, 50 at 128 of 255 on white: 100.4 + 127 and so on.
    assert pixels(several) == [[(227, 177, 152), (255, 255, 255), (1, 2, 3)]]
    alpha = Image.merge("PA", (image.getchannel(0), of("L", [255, 0, 128])))
    alpha.putpalette([10, 20, 30, 1, 2, 3, 200, 100, 50])
    assert pixels(to_rgb(alpha)) == [[(200, 100, 50), (255, 255, 255), (128, 128, 129)]]


@pytest.mark.parametrize(
    "format", ["PNG", "BMP", "DIB", "TIFF", "PPM", "TGA", "PCX", "SGI", "DDS", "QOI", "ICO"]
)
def test_lossless_formats(format):
    assert pixels(decode(encoded(rgb_image(), format)).image) == RGB


@pytest.mark.parametrize(
    ("format", "options"),
    [("WEBP", {"lossless": True}), ("JPEG2000", {"irreversible": False, "num_resolutions": 1})],
)
def test_formats_that_can_be_lossless(format, options):
    image = picture(3, (16, 16))
    assert pixels(decode(file_of(image, format, **options)).image) == pixels(image)


@pytest.mark.parametrize("format", ["JPEG", "AVIF", "WEBP", "MPO", "JPEG2000"])
@pytest.mark.parametrize("colour", [(250, 10, 20), (0, 0, 0), (255, 255, 255), (10, 120, 240)])
def test_lossy_formats_keep_a_plain_colour(format, colour):
    if not is_image(f"x.{format.lower()}") and format == "AVIF":
        pytest.skip("this Pillow reads no AVIF")
    found = np.asarray(decode(encoded(Image.new("RGB", (16, 16), colour), format)).image)
    assert np.abs(found.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "GIF", "SGI", "PCX"])
def test_grey(format):
    image = Image.fromarray(np.array(GREY, np.uint8))
    assert pixels(decode(encoded(image, format)).image) == grey(GREY)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "BMP", "MSP", "XBM"])
def test_black_and_white(format):
    image = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], np.uint8)).convert("1")
    assert pixels(decode(encoded(image, format)).image) == grey([[0, 255, 255], [255, 0, 0]])


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("top", [65535, 200])  # dark pictures stay dark
def test_sixteen_bits(format, top):
    values = np.array([[0, 128, 129], [top // 2, top - 1, top]], np.uint16)
    options = {"num_resolutions": 1} if format == "JPEG2000" else {}
    found = decode(file_of(Image.fromarray(values), format, **options)).image
    assert pixels(found) == grey([[round(v * 255 / 65535) for v in row] for row in values.tolist()])


def test_transparent_pixels():
    image = of("RGBA", list(ON_WHITE))
    for format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        found = decode(file_of(image, format, **options)).image
        assert pixels(found) == [list(ON_WHITE.values())], format
    found = decode(file_of(of("LA", [(10, 255), (10, 0)]), "PNG")).image
    assert pixels(found) == grey([[10, 255]])


@pytest.mark.parametrize(
    ("header", "row", "key", "expected"),
    [
        ((2, 1, 8, 0), b"\x05\x06", 5, (255, 6)),
        ((2, 1, 4, 0), b"\x56", 5, (255, 6 * 17)),  # Pillow scales grey of few bits
        ((2, 1, 2, 0), b"\x10", 1, (0, 255)),  # 0, 1
        ((2, 1, 1, 0), b"\x40", 0, (255, 255)),  # 0, 1
        ((2, 1, 16, 0), b"\x01\x2c\x02\x02", 300, (255, 2)),  # 300, 514
    ],
)
def test_transparent_grey(header, row, key, expected):
    content = png(header, b"\0" + row, (b"tRNS", struct.pack(">H", key)))
    assert pixels(decode(content).image) == grey([expected])


def test_transparent_colour():
    key = (b"tRNS", struct.pack(">3H", 1, 2, 3))
    content = png((2, 1, 8, 2), bytes((0, 1, 2, 3, 1, 2, 4)), key)
    assert pixels(decode(content).image) == [[(255, 255, 255), (1, 2, 4)]]
    key = (b"tRNS", struct.pack(">3H", 4370, 0, 0))
    with pytest.raises(Refused, match="16 bits"):
        decode(png((1, 1, 16, 2), bytes((0, 17, 18, 0, 0, 0, 0)), key))
    # Without a key Pillow gives the high bytes.
    found = decode(png((1, 1, 16, 2), bytes((0, 17, 18, 34, 0, 255, 255)))).image
    assert pixels(found) == [[(17, 34, 255)]]


def test_tiffs_by_hand():
    expected = grey([[0, 1, 127, 255]])
    values = [0, 257, 32767, 65535]
    assert pixels(decode(tiff(values, 16, "H")).image) == expected
    assert pixels(decode(tiff(values, 32, "i")).image) == expected
    assert pixels(decode(tiff([0, 65535], 16, "H", photometric=0)).image) == grey([[255, 0]])
    assert pixels(decode(tiff([0, 4095], 12, "H")).image) == grey([[0, 255]])
    assert pixels(decode(tiff([2048, 100], 12, "H")).image) == grey([[128, 6]])
    assert pixels(decode(tiff([0.0, 0.5, 1.0], 32, "f")).image) == grey([[0, 128, 255]])
    assert pixels(decode(tiff([0.0, 1.0], 32, "f", photometric=0)).image) == grey([[255, 0]])
    for content in (tiff([-5, 300], 16, "h"), tiff([0, 70000], 32, "i"), tiff([0, 200], 32, "i")):
        with pytest.raises(Refused, match="mode I"):
            decode(content)
    with pytest.raises(Refused, match="mode F"):
        decode(tiff([0.0, 90.0], 32, "f"))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "RGBX"])
def test_colour_spaces_of_tiff(mode):
    """Plain red, written from its known numbers in each."""
    red = {"CMYK": (0, 255, 255, 0), "YCbCr": (76, 85, 255), "LAB": (138, 209, 198)}
    image = of(mode, [red.get(mode, (255, 0, 0, 77))] * 2)
    options = {"compression": "jpeg"} if mode == "YCbCr" else {}
    found = np.asarray(decode(file_of(image, "TIFF", **options)).image)[0].astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= 6  # LAB in whole steps comes this near


def test_cmyk_jpegs_are_inverted_as_adobe_writes_them():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    content = encoded(image, "JPEG")
    assert b"Adobe" in content
    found = np.asarray(decode(content).image).astype(int)
    assert np.abs(found - (255, 0, 0)).max() <= 4
    # Numbers of the file itself: 255 - C, so a file of zeros is full ink, black.
    black = np.asarray(decode(encoded(Image.new("CMYK", (8, 8), (255,) * 4), "JPEG")).image)
    assert black.max() <= 2


ORIENTED = {  # where the pixels of [[a, b, c], [d, e, f]] belong
    1: ["abc", "def"], 2: ["cba", "fed"], 3: ["fed", "cba"], 4: ["def", "abc"],
    5: ["ad", "be", "cf"], 6: ["da", "eb", "fc"], 7: ["fc", "eb", "da"], 8: ["cf", "be", "ad"],
}  # fmt: skip


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_orientation(orientation, mode, format):
    values = dict(zip("abcdef", range(10, 250, 40), strict=True))
    rows = np.array([[values[letter] for letter in row] for row in ("abc", "def")], np.uint8)
    if mode == "I;16":
        image = Image.fromarray(rows.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(rows).convert(mode)
    exif = Image.Exif()
    exif[274] = orientation
    if format == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = orientation
        content = file_of(image, format, tiffinfo=tags)
    else:
        content = file_of(image, format, exif=exif)
    found = pixels(decode(content).image)
    assert found == grey([[values[letter] for letter in row] for row in ORIENTED[orientation]])


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_orientation_of_photographs(format):
    if not is_image(f"x.{format.lower()}") and format == "AVIF":
        pytest.skip("this Pillow reads no AVIF")
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32] = 255
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise: left becomes top
    image = Image.fromarray(halves)
    content = file_of(image, "JPEG" if format == "MPO" else format, exif=exif)
    found = np.asarray(decode(content).image)
    assert found.shape == (64, 32, 3) and found[:28].min() > 200 and found[36:].max() < 50


def test_a_damaged_exif_block_counts_as_upright():
    image = picture(0, (6, 4))
    plain = encoded(image, "JPEG")
    for block in (b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*"):
        content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert pixels(decode(content).image) == pixels(Image.open(io.BytesIO(plain)))


@pytest.mark.parametrize(
    ("format", "options"),
    [("GIF", {}), ("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {})],
)
def test_the_first_of_several_frames(format, options):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 10, 10), (10, 10, 200))]
    content = file_of(frames[0], format, save_all=True, append_images=frames[1:], **options)
    image, count = decode(content)
    assert count == 2 and image.size == (8, 8)
    assert np.abs(np.asarray(image).astype(int) - (200, 10, 10)).max() <= 4
    assert decode(file_of(frames[0], format, **options)).frames == 1


def test_plain_files_are_what_pillow_reads():
    for mode in ("RGB", "L"):
        for format in ("PNG", "JPEG"):
            content = encoded(picture(5, mode=mode), format)
            expected = Image.open(io.BytesIO(content)).convert("RGB")
            assert decode(content).image.tobytes() == expected.tobytes()


def test_suffixes():
    for name in (
        "a.gif",
        "a.JPEG",
        "a.jfif",
        "A.WebP",
        "a.ppm",
        "a.TIF",
        "a.jp2",
        "a.tga",
        "a.b.png",
    ):
        assert is_image(name), name
    for name in ("a.txt", "png", ".png", "a.eps", "a.ps", "a.wmf", "a.mpg", "a.h5", "a.npy", "a"):
        assert not is_image(name), name
    assert not EXCLUDED_FORMATS & set(readable().values())


def test_postscript_is_not_run_under_another_suffix():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    with pytest.raises(Exception, match="cannot identify"):
        decode(content)


@pytest.mark.parametrize("side", [9_500, 30_000, 2**31 - 1])
def test_absurdly_many_pixels_are_refused_in_one_line(tmp_path, side):
    """Between Pillow's warning and its error, beyond its error, and the most that PNG can say."""
    files = class_files()
    content = png((side, side, 1, 0), b"")
    files["train/cat/0.png"] = content
    cache = tmp_path / "cache"
    root = write_folder(tmp_path / "set", files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(lambda: image_folder(root, cache_dir=cache), "cat/0.png", "pixels", cache=cache)
        refused(lambda: image_folder(root, 32, cache_dir=cache), "cat/0.png", "pixels", cache=cache)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (tiff([0.0, 90.0], 32, "f"), "mode F"),
        (tiff([0, 70000], 32, "i"), "mode I"),
        (b"P5 0 5 255\n", "train/cat/0"),
        (b"GIF89a\0\0\0\0\0\0\0;", "train/cat/0"),
        (b"", "damaged"),
    ],
)
def test_a_refusal_names_the_file(tmp_path, content, found):
    files = class_files()
    files["train/cat/0.png"] = content
    cache = tmp_path / "cache"
    root = write_folder(tmp_path / "set", files)
    refused(lambda: image_folder(root, 32, cache_dir=cache), "cat/0.png", found, cache=cache)


def test_a_row_of_pixels_is_an_image(tmp_path):
    files = {name: encoded(picture(1, (1, 9))) for name in class_files()}
    root = write_folder(tmp_path / "set", files)
    assert image_folder(root, cache_dir=tmp_path / "c").train_images.shape == (6, 9, 1, 3)
    assert image_folder(root, 8, cache_dir=tmp_path / "c").train_images.shape == (6, 8, 8, 3)
