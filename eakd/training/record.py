"""A run's directory: what was asked, what came out, and whether it is finished.

Local files are the truth; experiment trackers only mirror them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eakd.errors import Diverged, Interrupted, UserError
from eakd.files import write_json, write_text, writing
from eakd.training.environment import environment
from eakd.training.lock import NAME as LOCK
from eakd.training.lock import RunLock, read_owner
from eakd.training.reading import (
    DYNAMICS,
    LAST,
    METRICS,
    PREVIOUS,
    SAMPLES,
    SNAPSHOTS,
    checksum,
    differences,
    read_json,
    read_metrics,
    read_object,
    read_summary,
)

# What a run is made from, besides its config.
INPUTS = {
    "data_fingerprint": "data",
    "teacher_digest": "weights of the teacher",
    "student_digest": "weights that the student starts from",
    "teacher_table": "answers of the teacher",
}

log = logging.getLogger(__name__)


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
        self._texts: dict[str, str] = {}  # what the files of lines must hold
        existing = read_json(self.directory / "config.json")
        if existing is not None and existing != self.config:
            changed = ", ".join(differences(existing, self.config)[:3])
            raise UserError(
                f"run_dir: {self.directory} holds a run with another config: {changed}; "
                "allowed is an empty directory or the same config"
            )
        if existing is None:
            occupied = [n for n in (METRICS, "summary.json") if (self.directory / n).exists()]
            if not occupied and not fresh:
                read_object(self.directory / "config.json")  # a folder in its place, perhaps
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
        if self.writes:
            # Nobody else writes here now, so these are what killed processes left.
            for name in (".", SNAPSHOTS, SAMPLES, ".hydra"):
                for path in (self.directory / name).glob(".*.tmp"):
                    if path.is_dir():  # of a task whose students are folders
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
            for path in self.directory.glob(f".{LOCK}.*"):  # claims on locks
                path.unlink(missing_ok=True)
        if (fresh or self.fresh) and self.writes:
            for name in ("summary.json", METRICS, DYNAMICS, LAST, PREVIOUS):
                (self.directory / name).unlink(missing_ok=True)
            for name in (SNAPSHOTS, SAMPLES):
                shutil.rmtree(self.directory / name, ignore_errors=True)
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
                self._result["checksum"] = checksum(self._result)
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
        """The finished run's summary, or ``None``; a damaged one makes no finished run."""
        try:
            return read_summary(self.directory)
        except UserError as error:
            log.warning("%s; the run goes on from its checkpoint", error)
            return None

    def check_inputs(self, inputs: Mapping[str, str]) -> None:
        """Refuse to skip or continue what was made from other inputs.

        Args:
            inputs: name → digest, as the run would use them now.

        Raises:
            UserError: the one that differs from what the directory's run was made from.
        """
        if self.fresh:
            return
        recorded = self.summary or read_json(self.directory / "environment.json") or {}
        for name, digest in inputs.items():
            known = recorded.get(name)
            if known is not None and known != digest:
                raise UserError(
                    f"{name}: found {digest[:12]}, but {self.directory} was made with "
                    f"{str(known)[:12]}: other {INPUTS.get(name, 'inputs')} than then; "
                    "resume=false starts this run again, another output_root keeps both"
                )

    def heal(self) -> None:
        """Let the status of a finished run say so: a kill may have come between the two files."""
        status = read_json(self.directory / "status.json") or {}
        if self.writes and status.get("state") != "finished" and read_owner(self.directory) is None:
            with contextlib.suppress(OSError):  # a disk that may only be read
                write_json(self.directory / "status.json", {"state": "finished", "time": _now()})

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
        path, text = self.directory / name, json.dumps(line) + "\n"
        self._texts[name] = self._texts.get(name, "") + text
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)
            # As durable as the checkpoint that follows: after a power cut it must not be ahead.
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.directory)

    def lines(self) -> dict[str, str]:
        """The text of each file of lines, as this process wrote or restored it."""
        return dict(self._texts)

    def restore_lines(self, texts: Mapping[str, str]) -> None:
        """Make the files of lines what they were at a checkpoint, and say so if one was damaged.

        Args:
            texts: file → text of the epochs until the checkpoint. What follows it in a file will be
                trained again.
        """
        for name in (METRICS, DYNAMICS):
            text, path = texts.get(name, ""), self.directory / name
            self._texts[name] = text
            try:
                found = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                found = ""
            if not self.writes or found == text:
                continue
            if not found.startswith(text):
                log.warning("%s: lost or damaged lines are written again", path)
            write_text(path, text)

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of epochs that will run again after a restart from epoch ``epochs``.

        Raises:
            UserError: a damaged line of an epoch that is kept.
        """
        texts = {}
        for name in (METRICS, DYNAMICS) if epochs else ():
            kept = [line for line in read_metrics(self.directory, name) if line["epoch"] <= epochs]
            texts[name] = "".join(json.dumps(line) + "\n" for line in kept)
        self.restore_lines(texts)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
