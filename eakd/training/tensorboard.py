"""TensorBoard as a tracker: the numbers of ``metrics.jsonl`` as event files of a run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eakd.errors import UserError
from eakd.training.tracking import Service

FOLDER = "tensorboard"


class TensorBoardTracking(Service):
    """``tracking=tensorboard``: event files in ``tensorboard/``, by the names of ``metrics.jsonl``.

    Steps are epochs. A run that continues, or starts again, takes back what earlier files say of
    the epochs that it trains.

    Raises:
        UserError: the package is not installed.
    """

    label = "TensorBoard"

    def __init__(self) -> None:
        super().__init__()
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise UserError(
                "tensorboard: found no such package: pip install 'eakd[tensorboard]'"
            ) from None
        self._folder: Path | None = None
        self._epoch = 0

    def start(self, directory: Path, config: dict[str, Any], name: str, group: str) -> None:
        self._folder = directory / FOLDER

    def log(self, metrics: dict[str, Any]) -> None:
        if self._folder is not None:  # the first epoch of this process, which only it knows
            folder, self._folder = self._folder, None
            self._attempt(lambda: self._open(folder, metrics["epoch"]))
        super().log(metrics)

    def _open(self, folder: Path, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = SummaryWriter(folder, purge_step=epoch)

    def _log(self, metrics: dict[str, Any]) -> None:
        self._epoch = metrics["epoch"]
        for name, value in metrics.items():
            if name != "epoch" and isinstance(value, int | float):
                self._run.add_scalar(name, value, self._epoch)
        self._run.flush()  # an epoch is rare, and a kill must not lose it

    def _show(self, pictures: Mapping[str, bytes]) -> None:
        from PIL import Image

        for name, content in pictures.items():
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            self._run.add_image(name, pixels, self._epoch, dataformats="HWC")

    def _finish(self, summary: dict[str, Any] | None) -> None:
        self._run.close()
