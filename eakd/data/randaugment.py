"""The strong view of multi-level distillation: RandAugment in batches, on the images' device.

Each operation reproduces Pillow's to the grey level, but works on all its samples at once. A
sample gets two operations, drawn with replacement, at a magnitude that is uniform in the
operation's range, and then a cutout: the variant of the authors of MLD (Jin et al., 2023), which
they took from a FixMatch code base (Cubuk et al., 2020; Sohn et al., 2020).

Images are ``(N, H, W, 3)`` uint8, magnitudes ``(N,)`` float64 on the same device (float32 where a
device has no float64; then a rare pixel differs by one grey level or one position).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eakd.errors import UserError

OPERATIONS_PER_IMAGE = 2
CUTOUT_COLOUR = (125, 123, 114)


# --- operations on grey levels ---


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images themselves."""
    return images


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to 0..255. The magnitude has no effect."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    low, high = low.to(magnitude.dtype), high.to(magnitude.dtype)
    # A true division: ``255 / tensor`` is a product with the reciprocal, rounded differently.
    scale = torch.full_like(high, 255) / (high - low)
    stretched = images * scale - low * scale
    return torch.where(high > low, stretched.clamp(0, 255), images).to(torch.uint8)


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Flatten each channel's histogram. The magnitude has no effect."""
    n, h, w, channels = images.shape
    levels = images.permute(0, 3, 1, 2).reshape(n * channels, h * w).long()
    counts = levels.new_zeros(n * channels, 256).scatter_add_(1, levels, torch.ones_like(levels))
    brightest = counts.gather(1, levels.amax(dim=1, keepdim=True))
    step = (h * w - brightest).div(255, rounding_mode="floor")
    below = counts.cumsum(dim=1) - counts
    table = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    # Pillow leaves a channel of few levels alone.
    equalized = torch.where(step > 0, table.gather(1, levels), levels)
    return equalized.to(torch.uint8).reshape(n, channels, h, w).permute(0, 2, 3, 1)


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the ``int(magnitude)`` highest bits."""
    mask = 256 - 2 ** (8 - magnitude.long().clamp(1, 8))
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the levels that are not below the magnitude."""
    return torch.where(images < magnitude[:, None, None, None], images, 255 - images)


def _blend(degenerate: Tensor | int, images: Tensor, magnitude: Tensor) -> Tensor:
    """``degenerate + magnitude · (images - degenerate)``, cut off as Pillow does."""
    factor = magnitude.float()[:, None, None, None]
    images = images.float()
    return (degenerate + factor * (images - degenerate)).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """``(N, H, W, 1)`` int64: Pillow's fixed-point luma (ITU-R 601-2)."""
    red, green, blue = images.long().unbind(dim=-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16)[..., None]


def brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend black (0) with the image (1)."""
    return _blend(0, images, magnitude)


def color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend the grey image (0) with the image (1)."""
    return _blend(_grey(images), images, magnitude)


def contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend the image's mean grey (0) with the image (1)."""
    pixels = images.shape[1] * images.shape[2]
    total = _grey(images).sum(dim=(1, 2), keepdim=True)
    mean = (2 * total + pixels).div(2 * pixels, rounding_mode="floor")  # rounded half up
    return _blend(mean, images, magnitude)


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend the smoothed image (0) with the image (1). The outermost pixels are not smoothed."""
    levels = images.int()
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = levels[:, 1:-1, 1:-1]
    smooth = levels.clone()
    # Kernel 1 1 1, 1 5 1, 1 1 1 over 13, rounded.
    smooth[:, 1:-1, 1:-1] = (2 * (box + 4 * inner) + 13).div(26, rounding_mode="floor")
    return _blend(smooth, images, magnitude)


# --- geometric operations: nearest neighbour, black outside ---


def _affine(images: Tensor, matrix: list[Tensor | int]) -> Tensor:
    """Fetch pixel (x, y) from (a x + b y + c, d x + e y + f), in Pillow's 16.16 fixed point.

    Each entry of the matrix is one integer for all images or a tensor ``(N,)``.
    """

    def fixed(entry: Tensor | float) -> Tensor | int:
        if isinstance(entry, Tensor):
            return (entry * 65536 + 0.5).floor().long()[:, None, None]
        return int(entry * 65536)

    n, h, w, channels = images.shape
    a, b, c, d, e, f = matrix
    y = torch.arange(h, device=images.device)[:, None]
    x = torch.arange(w, device=images.device)
    column = fixed(a) * x + fixed(b) * y + fixed(c + a * 0.5 + b * 0.5) >> 16
    row = fixed(d) * x + fixed(e) * y + fixed(f + d * 0.5 + e * 0.5) >> 16
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    source = torch.where(inside, row * w + column, 0).reshape(n, h * w, 1)
    fetched = images.reshape(n, h * w, channels).gather(1, source.expand(-1, -1, channels))
    return fetched.reshape(images.shape) * inside[..., None]


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Rotate counter-clockwise around the centre, by degrees."""
    angle = torch.deg2rad(-magnitude)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = images.shape[2] / 2, images.shape[1] / 2
    matrix = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    return _affine(images, matrix)


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift row ``y`` by ``-magnitude · y`` pixels."""
    return _affine(images, [1, magnitude, 0, 0, 1, 0])


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift column ``x`` by ``-magnitude · x`` pixels."""
    return _affine(images, [1, 0, 0, magnitude, 1, 0])


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift by ``-magnitude`` widths, to whole pixels."""
    shift = (magnitude * images.shape[2] + 0.5).floor()
    return _affine(images, [1, 0, shift, 0, 1, 0])


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift by ``-magnitude`` heights, to whole pixels."""
    shift = (magnitude * images.shape[1] + 0.5).floor()
    return _affine(images, [1, 0, 0, 0, 1, shift])


def cutout(images: Tensor, size: Tensor, centre: Tensor) -> Tensor:
    """Paint a square in `CUTOUT_COLOUR`.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        size: ``(N,)`` side as a fraction of the width; nothing is painted at 0.
        centre: ``(N, 2)`` its x and y in pixels, before it is cut at the image's edges.
    """
    side = size * images.shape[2]

    def span(centre: Tensor, length: int) -> Tensor:
        start = (centre - side / 2).clamp(min=0).floor()
        stop = (start + side).clamp(max=length).floor()  # included, as Pillow's rectangles do
        place = torch.arange(length, device=images.device)
        return (place >= start[:, None]) & (place <= stop[:, None])

    columns, rows = span(centre[:, 0], images.shape[2]), span(centre[:, 1], images.shape[1])
    hidden = rows[:, :, None] & columns[:, None, :] & (side > 0)[:, None, None]
    colour = torch.tensor(CUTOUT_COLOUR, dtype=torch.uint8, device=images.device)
    return torch.where(hidden[..., None], colour, images)


# --- the policy ---


class Operation(NamedTuple):
    """A batched operation and the range of its magnitude.

    The enhancing operations only weaken: 1 would be the image itself.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float


OPERATIONS = (
    Operation(autocontrast, 0, 1),
    Operation(brightness, 0.05, 0.95),
    Operation(color, 0.05, 0.95),
    Operation(contrast, 0.05, 0.95),
    Operation(equalize, 0, 1),
    Operation(identity, 0, 1),
    Operation(posterize, 4, 8),
    Operation(rotate, -30, 30),
    Operation(sharpness, 0.05, 0.95),
    Operation(shear_x, -0.3, 0.3),
    Operation(shear_y, -0.3, 0.3),
    Operation(solarize, 0, 256),
    Operation(translate_x, -0.3, 0.3),
    Operation(translate_y, -0.3, 0.3),
)


class Parameters(NamedTuple):
    """Everything random about the strong views of ``N`` images, on the CPU.

    Attributes:
        operations: ``(N, 2)`` int64, positions in `OPERATIONS`, in the order of application.
        magnitudes: ``(N, 2)`` float64.
        cutout_size: ``(N,)`` float64, fraction of the width.
        cutout_centre: ``(N, 2)`` float64, x and y in pixels.
    """

    operations: Tensor
    magnitudes: Tensor
    cutout_size: Tensor
    cutout_centre: Tensor


def draw_parameters(
    n: int, height: int, width: int, generator: torch.Generator | None = None
) -> Parameters:
    """Draw the strong views of ``n`` images.

    Args:
        n: number of images.
        height, width: of an image, in pixels.
        generator: on the CPU, so that every device sees the same views.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    shape = n, OPERATIONS_PER_IMAGE
    operations = torch.randint(len(OPERATIONS), shape, generator=generator)
    low, high = (
        torch.tensor(ends, dtype=torch.float64)[operations]
        for ends in zip(*(operation[1:] for operation in OPERATIONS), strict=True)
    )
    magnitudes = low + (high - low) * uniform(*shape)
    cutout_size = 0.5 * uniform(n)
    # Uniform on (1, size]: the authors call numpy's uniform(size), whose argument is the low end
    # of an interval that ends at 1.
    size = torch.tensor([width, height], dtype=torch.float64)
    cutout_centre = size + (1 - size) * uniform(n, 2)
    return Parameters(operations, magnitudes, cutout_size, cutout_centre)


def apply_parameters(images: Tensor, parameters: Parameters) -> Tensor:
    """The strong views that ``parameters`` describe.

    Each view depends on its own parameters alone, so any slice of a batch gives the same views.
    The work is many small kernels, whatever ``N``: on a GPU, a block of several steps costs hardly
    more than one.

    Args:
        images: ``(N, H, W, 3)`` uint8, on any device.
        parameters: of ``N`` images.

    Returns:
        ``(N, H, W, 3)`` uint8.

    Raises:
        UserError: images of another kind, or parameters of another number of images.
    """
    n = len(parameters.operations)
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[::3] != (n, 3):
        raise UserError(
            f"images: found {tuple(images.shape)} {images.dtype}, allowed is ({n}, H, W, 3) uint8"
        )
    device = images.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    for operations, magnitudes in zip(
        parameters.operations.unbind(1), parameters.magnitudes.unbind(1), strict=True
    ):
        # Samples of the same operation become neighbours, one call per operation, then go back.
        order = operations.argsort()
        sizes = operations.bincount(minlength=len(OPERATIONS)).tolist()
        place = order.to(device)
        groups = images[place].split(sizes)
        values = magnitudes[order].to(device, dtype).split(sizes)
        changed = [
            operation.apply(group, value)
            for operation, group, value in zip(OPERATIONS, groups, values, strict=True)
            if len(group)
        ]
        images = torch.empty_like(images).index_copy_(0, place, torch.cat(changed))
    size, centre = (x.to(device, dtype) for x in parameters[2:])
    return cutout(images, size, centre)


def randaugment(
    images: Tensor,
    generator: torch.Generator | None = None,
    batch: int | None = None,
    at: slice = slice(None),
) -> Tensor:
    """A strong view of each image: two random operations and a cutout.

    Args:
        images: ``(N, H, W, 3)`` uint8, on any device; cropped and flipped already.
        generator: on the CPU. The same state gives the same views on every device.
        batch: size of the batch whose slice ``at`` the images are, if they are not all of it. They
            get the views that they would get among all.

    Returns:
        ``(N, H, W, 3)`` uint8.
    """
    n, height, width = images.shape[:3]
    drawn = draw_parameters(n if batch is None else batch, height, width, generator)
    return apply_parameters(images, Parameters(*(draws[at] for draws in drawn)))
