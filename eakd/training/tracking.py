"""Experiment trackers. They mirror the run directory and can never stop a run."""

from __future__ import annotations

import io
import logging
import netrc
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eakd.errors import check_choice
from eakd.files import write_atomically

log = logging.getLogger(__name__)


class NoTracking:
    """``tracking=none``: only the run directory."""

    def start(self, directory: Path, config: dict[str, Any], name: str, group: str) -> None: ...

    def log(self, metrics: dict[str, Any]) -> None: ...

    def show(self, pictures: Callable[[], Mapping[str, bytes]]) -> None: ...

    def finish(self, summary: dict[str, Any] | None) -> None: ...


class WandbTracking(NoTracking):
    """``tracking=wandb``: Weights & Biases.

    Args:
        project, entity: where runs go.
        mode: ``"auto"`` (online when an API key is known, else offline), ``"online"``,
            ``"offline"`` or ``"disabled"``; the variable ``WANDB_MODE`` wins.
        group: of the run, instead of the one that `start` is given.
    """

    def __init__(
        self,
        project: str = "eakd",
        entity: str | None = None,
        mode: str = "auto",
        group: str | None = None,
    ):
        check_choice("mode", mode, ("auto", "online", "offline", "disabled"))
        self.project, self.entity, self.mode, self.group = project, entity, mode, group
        self._run = None

    def start(self, directory: Path, config: dict[str, Any], name: str, group: str) -> None:
        mode = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if has_credentials() else "offline"
        if mode == "disabled":
            return
        self._attempt(lambda: self._start(mode, directory, config, name, group))
        if self._run is not None and mode == "offline":
            log.info("W&B is offline; to upload this run: wandb sync %s", self._run.dir[:-6])

    def _start(self, mode: str, directory: Path, config: dict, name: str, group: str) -> None:
        import wandb

        # The id lives in the run directory, so that a continued run continues there too.
        id_file = directory / "wandb_id"
        if not id_file.exists():
            new = secrets.token_hex(4)
            write_atomically(id_file, lambda temporary: temporary.write_text(new))
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=directory,
            id=id_file.read_text().strip(),
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=config,
            name=name,
            group=self.group or group,
            reinit="create_new",  # several runs of one process must not merge
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )

    def log(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            self._attempt(lambda: self._run.log(metrics, step=metrics["epoch"]))

    def show(self, pictures: Callable[[], Mapping[str, bytes]]) -> None:
        """Upload pictures, each the content of an image file; what cannot be drawn is left out."""
        if self._run is None:
            return
        try:
            found = pictures()
        except Exception as error:  # as with W&B itself: the run is finished, whatever this raises
            log.warning("no pictures for W&B (%s)", " ".join(str(error).split()))
            return
        self._attempt(lambda: self._show(found))

    def _show(self, pictures: Mapping[str, bytes]) -> None:
        import wandb
        from PIL import Image

        images = {name: Image.open(io.BytesIO(content)) for name, content in pictures.items()}
        self._run.log({name: wandb.Image(image) for name, image in images.items()})

    def finish(self, summary: dict[str, Any] | None) -> None:
        if self._run is None:
            return
        if summary is not None:
            self._attempt(lambda: self._run.summary.update(summary))
        self._attempt(lambda: self._run.finish(exit_code=0 if summary else 1))
        self._run = None

    def _attempt(self, action) -> None:
        try:
            action()
        except Exception as error:  # whatever W&B raises, the run goes on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("W&B failed and is off for this run (%s); training goes on", reason)
            self._run = None


def has_credentials() -> bool:
    """Whether W&B can log in without asking: an API key in the environment or in ``.netrc``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        return netrc.netrc().authenticators(urlsplit(base).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
