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


def _choose(chosen: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """`torch.where` for bytes: the same, in bit operations that a CPU does sixteen at a time."""
    mask = -chosen.view(torch.uint8)  # 0 or 255
    return others ^ ((images ^ others) & mask)


# --- operations on grey levels ---


def identity(images: Tensor, magnitude: Tensor) -> Tensor:
    """The images themselves."""
    return images


def autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch each channel to 0..255. The magnitude has no effect."""
    planes = images.permute(0, 3, 1, 2).flatten(2)
    low, high = planes.amin(2, keepdim=True), planes.amax(2, keepdim=True)
    low, high = low.to(magnitude.dtype), high.to(magnitude.dtype)
    # A true division: ``255 / tensor`` is a product with the reciprocal, rounded differently. A
    # channel of one level stays as it is.
    scale = torch.where(high > low, torch.full_like(high, 255) / (high - low), 1)
    offset = torch.where(high > low, low * scale, 0)
    stretched = (planes * scale).sub_(offset).clamp_(0, 255).to(torch.uint8)
    return _pixels(stretched, images.shape)


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
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return _pixels(table.to(torch.uint8).gather(1, levels), images.shape)


def _pixels(planes: Tensor, shape: torch.Size) -> Tensor:
    """Channel by channel ``(N, 3, H·W)``, of any shape, as ``(N, H, W, 3)``."""
    n, h, w, channels = shape
    return planes.reshape(n, channels, h, w).permute(0, 2, 3, 1).contiguous()


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the ``int(magnitude)`` highest bits."""
    mask = 256 - 2 ** (8 - magnitude.long().clamp(1, 8))
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the levels that are not below the magnitude."""
    # Whole numbers, in two bytes: a comparison with float64 would widen every pixel eightfold.
    threshold = magnitude.ceil().short()[:, None, None, None]
    return _choose(images.short() < threshold, images, 255 - images)


def _blend(degenerate: Tensor | int, images: Tensor, magnitude: Tensor) -> Tensor:
    """``degenerate + magnitude · (images - degenerate)``, cut off as Pillow does."""
    factor = magnitude.float()[:, None, None, None]
    if isinstance(degenerate, Tensor):  # before the sum: a sum of two types converts slowly
        degenerate = degenerate.float()
    blended = degenerate + factor * (images.float() - degenerate)
    return blended.int().to(torch.uint8)  # in two conversions, each of which a CPU vectorises


def _grey(images: Tensor) -> Tensor:
    """``(N, H, W, 1)`` int32: Pillow's fixed-point luma (ITU-R 601-2)."""
    red, green, blue = images.int().unbind(dim=-1)
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


def _by_26(numbers: Tensor) -> Tensor:
    """``numbers // 26`` of int32 in [0, 6643], without a slow division."""
    return numbers * 10083 >> 18  # 10083 / 2¹⁸ is 1/26 and a little; tried for all of them


def sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend the smoothed image (0) with the image (1). The outermost pixels are not smoothed."""
    # Rows of pixels, whose channels lie three apart: an inner dimension of three would be slow.
    levels = images.flatten(2).int()
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    box = rows[:, :, :-6] + rows[:, :, 3:-3] + rows[:, :, 6:]
    inner = levels[:, 1:-1, 3:-3]
    smooth = levels.clone()
    # Kernel 1 1 1, 1 5 1, 1 1 1 over 13, rounded.
    smooth[:, 1:-1, 3:-3] = _by_26(2 * (box + 4 * inner) + 13)
    return _blend(smooth.reshape(images.shape), images, magnitude)


# --- geometric operations: nearest neighbour, black outside ---


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Fetch pixel (x, y) from (a x + b y + c, d x + e y + f), in Pillow's 16.16 fixed point.

    Args:
        images: ``(N, H, W, 3)``.
        matrix: ``(6, N)`` float64, a to f.
    """
    a, b, c, d, e, f = matrix
    centre = torch.stack((a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5))
    # Four bytes hold the coordinates of images of up to ten thousand pixels.
    fixed = (centre * 65536 + 0.5).floor().int()[..., None, None]
    n, h, w, channels = images.shape
    y = torch.arange(h, device=images.device, dtype=torch.int32)[:, None]
    x = torch.arange(w, device=images.device, dtype=torch.int32)
    column = fixed[0] * x + fixed[1] * y + fixed[2] >> 16
    row = fixed[3] * x + fixed[4] * y + fixed[5] >> 16
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    first = torch.arange(n, device=images.device)[:, None, None] * (h * w)
    source = torch.where(inside, first + (row * w + column), n * h * w)  # the last one is black
    pixels = images.reshape(-1, channels)
    pixels = torch.cat((pixels, pixels.new_zeros(1, channels)))
    return pixels.index_select(0, source.flatten()).reshape(images.shape)


def _matrix(images: Tensor, **magnitudes: Tensor) -> Tensor:
    """What `_affine` takes, ``(6, N)``, from the magnitudes of one or more operations, by name.

    Of each image only one may differ from 0: then the sums below are exact, so that all operations
    can share one call.
    """
    nothing = torch.zeros_like(next(iter(magnitudes.values())))
    names = "rotate", "shear_x", "shear_y", "translate_x", "translate_y"
    rotation, shear_x, shear_y, across, down = (magnitudes.get(name, nothing) for name in names)
    height, width = images.shape[1:3]
    angle = torch.deg2rad(-rotation)
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = width / 2, height / 2
    across, down = (across * width + 0.5).floor(), (down * height + 0.5).floor()
    return torch.stack(
        (
            *(cos, sin + shear_x, x - cos * x - sin * y + across),
            *(shear_y - sin, cos, y + sin * x - cos * y + down),
        )
    )


def rotate(images: Tensor, magnitude: Tensor) -> Tensor:
    """Rotate counter-clockwise around the centre, by degrees."""
    return _affine(images, _matrix(images, rotate=magnitude))


def shear_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift row ``y`` by ``-magnitude · y`` pixels."""
    return _affine(images, _matrix(images, shear_x=magnitude))


def shear_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift column ``x`` by ``-magnitude · x`` pixels."""
    return _affine(images, _matrix(images, shear_y=magnitude))


def translate_x(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift by ``-magnitude`` widths, to whole pixels."""
    return _affine(images, _matrix(images, translate_x=magnitude))


def translate_y(images: Tensor, magnitude: Tensor) -> Tensor:
    """Shift by ``-magnitude`` heights, to whole pixels."""
    return _affine(images, _matrix(images, translate_y=magnitude))


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
        return (place >= start[:, None]) & (place <= stop[:, None]) & (side > 0)[:, None]

    height, width = images.shape[1:3]
    columns, rows = span(centre[:, 0], width), span(centre[:, 1], height)
    # On rows of pixels, as `sharpness`.
    hidden = rows[:, :, None] & columns.repeat_interleave(3, dim=1)[:, None, :]
    colour = torch.tensor(CUTOUT_COLOUR, dtype=torch.uint8, device=images.device).repeat(width)
    return _choose(hidden, colour, images.flatten(2)).reshape(images.shape)


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


# Positions of the operations that move pixels, and for each operation the number of its call.
GEOMETRIC = tuple(
    k
    for k, each in enumerate(OPERATIONS)
    if each.apply in (rotate, shear_x, shear_y, translate_x, translate_y)
)
CALLS = tuple(k if k not in GEOMETRIC else GEOMETRIC[0] for k in range(len(OPERATIONS)))


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
        # Geometric operations are one call.
        order = torch.tensor(CALLS)[operations].argsort()
        operations, magnitudes = operations[order], magnitudes[order]
        place, values = order.to(device), magnitudes.to(device, dtype)
        groups, first = images[place], 0
        changed = []
        for call, count in enumerate(torch.tensor(CALLS)[operations].bincount().tolist()):
            part = slice(first, first + count)
            if count and call == CALLS[GEOMETRIC[0]]:
                one_each = {
                    OPERATIONS[k].apply.__name__: values[part]
                    * (operations[part] == k).to(device, dtype)
                    for k in GEOMETRIC
                }
                changed.append(_affine(groups[part], _matrix(groups[part], **one_each)))
            elif count:
                apply = OPERATIONS[CALLS.index(call)].apply
                changed.append(apply(groups[part], values[part]))
            first += count
        images = torch.empty_like(images).index_copy_(0, place, torch.cat(changed))
    size, centre = (x.to(device, dtype) for x in parameters[2:])
    return cutout(images, size, centre)


class RandAugment:
    """Two random operations and a cutout, as `eakd.data.pipeline.StrongView`."""

    draw = staticmethod(draw_parameters)
    apply = staticmethod(apply_parameters)


def randaugment(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A strong view of each image.

    Args:
        images: ``(N, H, W, 3)`` uint8, on any device; cropped and flipped already.
        generator: on the CPU. The same state gives the same views on every device.

    Returns:
        ``(N, H, W, 3)`` uint8.
    """
    return apply_parameters(images, draw_parameters(*images.shape[:3], generator))
