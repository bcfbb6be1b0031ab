"""Experiment trackers. They mirror the run directory and can never stop a run."""

from __future__ import annotations

import http.client
import io
import logging
import netrc
import os
import secrets
import shlex
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eakd.errors import check_choice, check_number
from eakd.files import write_atomically

ID = "wandb_id"  # the file

log = logging.getLogger(__name__)


class NoTracking:
    """``tracking=none``: only the run directory."""

    def start(self, directory: Path, config: dict[str, Any], name: str, group: str) -> None: ...

    def log(self, metrics: dict[str, Any]) -> None: ...

    def show(self, pictures: Callable[[], Mapping[str, bytes]]) -> None: ...

    def finish(self, summary: dict[str, Any] | None) -> None: ...


class Service(NoTracking):
    """A tracker that may fail at any time: one line says so, and the run goes on without it.

    Subclasses open ``self._run`` in `start`, and implement `_log`, `_show` and `_finish`.
    """

    label = ""

    def __init__(self) -> None:
        self._run: Any = None

    def log(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            self._attempt(lambda: self._log(metrics))

    def show(self, pictures: Callable[[], Mapping[str, bytes]]) -> None:
        """Hand pictures on, each the content of an image file; what cannot be drawn is left out."""
        if self._run is None:
            return
        try:
            found = pictures()
        except Exception as error:  # as with the service: the run is finished, whatever this raises
            log.warning("no pictures for %s (%s)", self.label, " ".join(str(error).split()))
            return
        self._attempt(lambda: self._show(found))

    def finish(self, summary: dict[str, Any] | None) -> None:
        if self._run is not None:
            self._attempt(lambda: self._finish(summary))
        self._run = None

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it raises, the run goes on
            log.warning(
                "%s failed and is off for this run (%s); training goes on",
                *(self.label, _first_line(error)),
            )
            self._run = None

    def _log(self, metrics: dict[str, Any]) -> None:
        raise NotImplementedError

    def _show(self, pictures: Mapping[str, bytes]) -> None:
        raise NotImplementedError

    def _finish(self, summary: dict[str, Any] | None) -> None:
        raise NotImplementedError


class WandbTracking(Service):
    """``tracking=wandb``: Weights & Biases.

    A server that does not answer costs ``timeout`` seconds, at the start or at the end; the run is
    offline then, and the log says how to upload it. Runs of a sweep of W&B's own (``wandb agent``)
    report to it. Files lie in the run directory, or where ``WANDB_DIR`` says.

    Args:
        project, entity: where runs go.
        mode: ``"auto"`` (online when an API key is known, else offline), ``"online"``,
            ``"offline"`` or ``"disabled"``; the variable ``WANDB_MODE`` wins.
        group: of the run, instead of the one that `start` is given.
        timeout: seconds > 0 that a server has to answer.

    Raises:
        UserError: an unknown mode, a timeout that is not positive.
    """

    label = "W&B"

    def __init__(
        self,
        project: str = "eakd",
        entity: str | None = None,
        mode: str = "auto",
        group: str | None = None,
        timeout: float = 15.0,
    ):
        super().__init__()
        check_choice("mode", mode, ("auto", "online", "offline", "disabled"))
        self.project, self.entity, self.mode, self.group = project, entity, mode, group
        self.timeout = check_number("timeout", timeout, above=0)

    def start(self, directory: Path, config: dict[str, Any], name: str, group: str) -> None:
        mode = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if has_credentials() else "offline"
        if mode == "disabled":
            return
        described = {"config": config, "name": name, "group": self.group or group}
        self._attempt(lambda: self._open(mode, directory, described))

    def _open(self, mode: str, directory: Path, described: dict[str, Any]) -> None:
        """Begin a run online if that can be, and offline otherwise."""
        if mode == "online" and (reason := self._unreachable()):
            log.warning("W&B cannot be reached (%s)", reason)
            mode = "offline"
        try:
            self._start(mode, directory, described)
        except Exception as error:  # a key that is not valid, or a server that is none of W&B's
            if mode != "online":
                raise
            log.warning("W&B cannot be used online (%s)", _first_line(error))
            (directory / ID).unlink()  # its service still holds the name of what did not begin
            mode = "offline"
            self._start(mode, directory, described)
        if mode == "offline":
            log.info("W&B is offline; to upload this run: %s", self.upload)

    @property
    def upload(self) -> str:
        """The command that uploads what this run left on the disk."""
        return f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"

    def _unreachable(self) -> str | None:
        """Why the server says nothing at all; W&B's own client would retry for long."""
        import wandb

        url = wandb.setup().settings.base_url
        try:
            urllib.request.urlopen(url, timeout=self.timeout).close()
        except urllib.error.HTTPError:  # an answer
            return None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            # W&B knows certificates of its own.
            return None if isinstance(reason, ssl.SSLError) else f"{url}: {reason}"
        return None

    def _start(self, mode: str, directory: Path, described: dict[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", init_timeout=self.timeout)
        if hasattr(settings, "finish_timeout"):  # of later versions
            settings.finish_timeout, settings.finish_timeout_raises = self.timeout, True
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=os.environ.get("WANDB_DIR") or directory,
            id=run_id(directory),
            resume="allow" if mode == "online" else None,
            mode=mode,
            reinit="create_new",  # several runs of one process must not merge
            settings=settings,
            **described,
        )

    def _log(self, metrics: dict[str, Any]) -> None:
        self._run.log(metrics, step=metrics["epoch"])

    def _show(self, pictures: Mapping[str, bytes]) -> None:
        import wandb
        from PIL import Image

        images = {name: Image.open(io.BytesIO(content)) for name, content in pictures.items()}
        self._run.log({name: wandb.Image(image) for name, image in images.items()})

    def _finish(self, summary: dict[str, Any] | None) -> None:
        try:
            if summary is not None:
                self._run.summary.update(summary)
            self._run.finish(exit_code=0 if summary else 1)
        except TimeoutError:
            log.warning("W&B did not take all of this run; to upload it: %s", self.upload)


def run_id(directory: Path) -> str:
    """W&B's name for a run: in its directory, so that it continues there too, or from a sweep."""
    file = directory / ID
    # An agent of W&B waits for the run that it named.
    given = os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID")
    if given or not file.exists():
        new = given or secrets.token_hex(4)
        write_atomically(file, lambda temporary: temporary.write_text(new))
    return file.read_text().strip()


def has_credentials() -> bool:
    """Whether W&B can log in without asking: an API key in the environment or in ``.netrc``."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        return netrc.netrc().authenticators(urlsplit(base).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
