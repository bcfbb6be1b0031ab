"""What an epoch measured of every single sample: ``samples/epoch040.npz``. Imports no torch.

A file holds one array a value, in the order of the training set, in half precision: its spacing is
0.004 between 4 and 8 nats, which is finer than any figure.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eakd.errors import UserError
from eakd.files import write_atomically
from eakd.training.reading import SAMPLES

if TYPE_CHECKING:
    from eakd.training.meters import Meters

LARGEST = float(np.finfo(np.float16).max)  # 65,504
# Rows of `Meters` that are left out: the product of two others.
DERIVED = ("weighted_loss",)
RIGHT = "top1"  # 0 or 100 percent of a sample: a bit is enough


def sample_values(meters: Meters) -> dict[str, np.ndarray]:
    """What a file of an epoch holds; ``{}`` of a method that measures no single sample.

    Args:
        meters: of the whole epoch, of all processes.

    Returns:
        ``(n,)`` float16 each, by position in the training set; values that a method does not have
        are left out, and what float16 cannot hold is its largest number, so that it stays finite.
        ``correct`` is packed: ``(ceil(n / 8),)`` uint8. ``index`` ``(n,)`` int32, the positions, is
        there only if the epoch did not see each of 0 … n - 1 once.
    """
    index = meters.index[: meters.seen].cpu().numpy()
    order = np.argsort(index, kind="stable")  # the same for every number of processes
    found = {}
    for name in (name for name in meters.rows if name not in DERIVED):
        values = meters.column(name).cpu().numpy()[order]
        if np.isnan(values).all():
            continue
        if name == RIGHT:
            found["correct"] = np.packbits(values > 50)
        else:
            found[name] = np.clip(values, -LARGEST, LARGEST).astype(np.float16)
    index = index[order]
    if found and not np.array_equal(index, np.arange(len(index))):
        found["index"] = index.astype(np.int32)
    return found


def sample_file(directory: Path, epoch: int) -> Path:
    """Where a run keeps the values of an epoch."""
    return directory / SAMPLES / f"epoch{epoch:03d}.npz"


def sample_epochs(directory: Path) -> list[int]:
    """The epochs of which a run has such a file."""
    names = (path.name for path in (directory / SAMPLES).glob("epoch*.npz"))
    matches = (re.fullmatch(r"epoch(\d+)\.npz", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def write_samples(path: Path, values: dict[str, np.ndarray]) -> None:
    """Write `sample_values`, whole or not at all; the same values give the same bytes.

    Raises:
        OSError: naming the file.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:  # by its name, numpy would add an ending
            np.savez_compressed(stream, **values)  # type: ignore[arg-type]

    write_atomically(path, write)


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """The values of an epoch, ``index`` always among them and ``correct`` as ``(n,)`` booleans.

    Raises:
        UserError: the file is missing or damaged, or its arrays do not belong together.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:  # which checks a sum of each array
            found = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: found no file (written with record.samples)") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.error) as error:
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: found a damaged file ({reason})") from error
    lengths = {len(values) for name, values in found.items() if name != "correct"}
    bits = 8 * len(found.get("correct", ()))
    if len(lengths) != 1 or ("correct" in found and not 0 <= bits - min(lengths) < 8):
        raise UserError(f"{path}: found arrays of different lengths, allowed is one value a sample")
    count = lengths.pop()
    if "correct" in found:
        found["correct"] = np.unpackbits(found["correct"], count=count).astype(bool)
    found.setdefault("index", np.arange(count, dtype=np.int32))
    return found
