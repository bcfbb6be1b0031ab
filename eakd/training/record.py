"""A run's directory: what was asked, what came out, and whether it is finished.

Local files are the truth; experiment trackers only mirror them.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from eakd.errors import Diverged, Interrupted, UserError
from eakd.files import write_atomically, write_json, writing
from eakd.training.lock import RunLock

LAST, PREVIOUS = "last.pt", "previous.pt"  # checkpoints
METRICS, DYNAMICS = "metrics.jsonl", "dynamics.jsonl"  # a line an epoch
SNAPSHOTS = "snapshots"  # a folder of weights


def read_json(path: Path) -> Any | None:
    """The parsed file, or ``None`` if it is missing or was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_metrics(directory: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Every whole line of a run's ``metrics.jsonl``, or of another such file."""
    path = directory / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:  # the line being written when the process was killed
            continue
    return parsed


def differences(found: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested dictionaries."""
    if not (isinstance(found, dict) and isinstance(wanted, dict)):
        return [] if found == wanted else [f"{prefix} (found {found!r}, wanted {wanted!r})"]
    lines = []
    for key in sorted({*found, *wanted}):
        name = f"{prefix}.{key}" if prefix else key
        lines += differences(found.get(key), wanted.get(key), name)
    return lines


def remember_failure(directory: Path, config: dict[str, Any], error: Exception) -> None:
    """Note why a run that did not get as far as its record failed; another run's is left alone."""
    if read_json(directory / "config.json") in (None, config):
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        write_json(directory / "status.json", {"state": "failed", "time": _now(), "error": text})


class RunRecord:
    """The files of one run, open to one process at a time.

    ``config.json`` (what identifies the run), ``environment.json``, ``status.json``,
    ``metrics.jsonl`` and ``dynamics.jsonl`` (one line an epoch), ``summary.json`` (only when
    finished), checkpoints and weights. Within ::

        with RunRecord("outputs/mine", {"method": "ea_kd", "seed": 0}) as record:
            fit(distiller, data, recipe, compute, record)

    the directory is locked; the end of the block writes the summary, and the status that tells how
    the block was left. The same block again continues an interrupted run and leaves a finished one
    alone.

    Args:
        directory: created when the record is opened.
        config: the plain nested dictionary that identifies the run.
        writes: false for a process that only watches another one write.
        fresh: remove what an earlier run of the same config left.

    Raises:
        UserError: the directory already holds a run with another config.
    """

    def __init__(
        self,
        directory: Path | str,
        config: dict[str, Any],
        writes: bool = True,
        fresh: bool = False,
    ):
        self.directory = Path(directory)
        self.writes = writes
        self.config = config
        self.fresh = fresh
        self.lock = RunLock(self.directory)
        self._open = False
        self._result: dict[str, Any] | None = None
        existing = read_json(self.directory / "config.json")
        if existing is not None and existing != self.config:
            changed = ", ".join(differences(existing, self.config)[:3])
            raise UserError(
                f"run_dir: {self.directory} holds a run with another config: {changed}; "
                "allowed is an empty directory or the same config"
            )
        if existing is None:
            occupied = [n for n in (METRICS, "summary.json") if (self.directory / n).exists()]
            if occupied:
                raise UserError(
                    f"run_dir: {self.directory} holds {occupied[0]} but no readable config.json; "
                    "allowed is an empty directory or the same config"
                )

    def begin(self, fresh: bool = False) -> RunRecord:
        """Create the directory and lock it; ``fresh`` removes what an earlier run left.

        Raises:
            Locked: another process works there.
        """
        if self.writes:
            self.lock.acquire()
        self._open = True
        if (fresh or self.fresh) and self.writes:
            for name in ("summary.json", METRICS, DYNAMICS, LAST, PREVIOUS):
                (self.directory / name).unlink(missing_ok=True)
            shutil.rmtree(self.directory / SNAPSHOTS, ignore_errors=True)
        if self.summary is None:  # a finished run stays as it is
            self._write("config.json", self.config)
            self.set_status("running")
        return self

    def close(self) -> None:
        """Let other processes in again."""
        self._open = False
        self.lock.release()

    def __enter__(self) -> RunRecord:
        return self if self._open else self.begin()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None and self._result is not None:
                self.write_summary(self._result)
                self.set_status("finished")
            elif self.summary is None:
                self._note(error)
        except Exception as problem:  # a full disk, just at the end
            self._note(problem)
            raise
        finally:
            self.close()

    def _note(self, error: BaseException | None) -> None:
        """Record how the block was left, if the error that left it lets us."""
        with contextlib.suppress(OSError, UserError):
            # Some handlers of SIGTERM exit, and a second Ctrl-C stops at once.
            if error is None or isinstance(error, Interrupted | SystemExit | KeyboardInterrupt):
                self.set_status("interrupted")
            else:
                state = "diverged" if isinstance(error, Diverged) else "failed"
                self.set_status(state, error=str(error))

    def check_open(self) -> RunRecord:
        """This record.

        Raises:
            UserError: it is not open, so that another process might write to the directory too.
        """
        if not self._open:
            raise UserError(
                f"record: found {self.directory} not open, allowed is a call inside `with record:`"
            )
        return self

    def finish(self, summary: dict[str, Any]) -> None:
        """What ``summary.json`` will hold when the block ends without an error."""
        self._result = summary

    @property
    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary, or ``None``."""
        return read_json(self.directory / "summary.json")

    def set_status(self, state: str, **details: Any) -> None:
        """Record ``running``, ``interrupted``, ``failed``, ``diverged`` or ``finished``."""
        self._write("status.json", {"state": state, "time": _now(), **details})

    def write_environment(self, **details: Any) -> None:
        self._write("environment.json", {**environment(), **details})

    def write_summary(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", summary)

    def _write(self, name: str, value: Any) -> None:
        if self.writes:
            # A process that slept may have lost its lock, and the directory with it.
            self.lock.check()
            write_json(self.directory / name, value)

    def append_metrics(self, line: dict[str, Any]) -> None:
        self.append(METRICS, line)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add a line to a file of one JSON object a line."""
        if not self.writes:
            return
        self.lock.check()
        path = self.directory / name
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory)

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs that will run again after a restart from epoch ``epochs``."""
        for name in (METRICS, DYNAMICS):
            path = self.directory / name
            if not self.writes or not (path.exists() or name == METRICS):
                continue
            kept = [line for line in read_metrics(self.directory, name) if line["epoch"] <= epochs]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@cache
def environment() -> dict[str, Any]:
    """Versions, machine kind, the part of it that this process keeps to, and git commit."""
    import torch

    packages = ("torchvision", "timm", "hydra-core", "numpy", "safetensors")
    return {
        "eakd": metadata.version("eakd") if _installed("eakd") else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in packages if _installed(name)},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processor": platform.machine(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        **git_state(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def git_state() -> dict[str, Any]:
    """Commit of this source tree and whether it has uncommitted changes."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if not (root / ".git").exists():
        return {"commit": None, "modified": None}
    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "modified": None if status is None else bool(status),
    }
