"""What every command shares: one-line errors, exit statuses, and jobs for any launcher."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from eakd.checking import SWEEPS
from eakd.composing import explain_config
from eakd.config import CONFIGS, register
from eakd.errors import Diverged, Interrupted, UserError
from eakd.places import check_config_dir, config_dirs
from eakd.workers import is_orphan, is_worker, pin

log = logging.getLogger(__name__)

# The user can put these right: a full, read-only, broken or forbidden place to write to.
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
}


def entry_point(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run ``task`` as a Hydra application.

    A `UserError` becomes one line on standard error and exit status 2, a `Diverged` run status 1,
    `Interrupted` 128 plus the signal. In a sweep the other jobs go on first, whichever launcher
    runs them, and the first failed job decides the status; a signal ends a sweep that runs inside
    this process.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand every error to this function
    job = JobFunction(task, config_name, exits=True)
    job.__module__ = config_name  # Hydra calls its jobs by it
    try:
        refuse_pickles(sys.argv)
        for folder in job.config_dirs:
            check_config_dir(Path(folder))
        register(job.config_dirs)
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    except KeyboardInterrupt:
        print("SIGINT: the same command runs what is missing", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        status = _exit_status(error)
        if status is None:
            raise
        if not getattr(error, "reported", False):
            print(_line(error, config_name), file=sys.stderr)
        _remove_empty_sweeps()
        sys.exit(status)


def refuse_pickles(words: Sequence[str]) -> None:
    """Refuse Hydra's ``--experimental-rerun``, which unpickles a file, and so runs what is in it.

    Raises:
        UserError: it is among the words, whole or as the beginning that argparse takes for it.
    """
    for word in words[1:]:
        option = word.partition("=")[0]
        if len(option) > 3 and "--experimental-rerun".startswith(option):
            raise UserError(
                f"{option}: found an option that loads a pickle, allowed is the command of the run "
                "once more, from .hydra/overrides.yaml in its directory"
            )


class JobFunction:
    """A task function for any launcher: `guard` around ``task``.

    A worker process that unpickles it imports this module, which gives it resolvers and config
    groups before Hydra composes the job's config, and goes to this directory, so that relative
    folders are the same everywhere.

    Args:
        task: what a job does with its config.
        config_name: the root config, for error messages.
        exits: a failure ends the process where no other job could follow.
    """

    def __init__(self, task: Callable[[DictConfig], Any], config_name: str, exits: bool = False):
        self.task, self.config_name, self.exits = task, config_name, exits
        self.directory = os.getcwd()
        self.config_dirs, self.program = config_dirs(sys.argv), sys.argv[0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        sys.argv[0] = self.program  # messages show commands as they were typed
        register(self.config_dirs)
        if os.path.isdir(self.directory):
            os.chdir(self.directory)

    def __call__(self, config: DictConfig) -> Any:
        try:
            return guard(self.task, config, self.config_name)
        except Exception as error:
            status = _exit_status(error)
            if self.exits and status is not None and self._is_last(error):
                sys.exit(status)
            raise

    def _is_last(self, error: Exception) -> bool:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            return True
        inside = _launcher() in ("BasicLauncher", "JoblibLauncher") and not is_worker()
        return inside and isinstance(error, Interrupted)


def guard(task: Callable[[DictConfig], Any], config: DictConfig, config_name: str = "train") -> Any:
    """Run one job, wherever a launcher put it: ``task(config)``, a failure told in one line.

    The line is printed by the job, and the error goes on as one that can be pickled, so that the
    launcher carries it to the main process. It is marked ``reported`` where the job's standard
    error reaches the user.

    Raises:
        UserError: also for config errors and full disks. Diverged, Interrupted: as they come.
    """
    # A full disk under the log would otherwise print a traceback for every message.
    logging.raiseExceptions = False
    failure: Exception
    try:
        if _launcher() == "JoblibLauncher" and is_worker():
            pin(HydraConfig.get().launcher.n_jobs, config.get("device"), config.get("threads"))
        return task(config)
    except (Diverged, Interrupted) as error:
        failure = error
    except Exception as error:
        if _exit_status(error) is None:
            if _launcher() not in (None, "BasicLauncher"):
                log.exception("failed")  # pickling drops the traceback
            raise
        failure = UserError(explain(error, config_name))
    print(_line(failure, config_name), file=sys.stderr, flush=True)
    failure.reported = _launcher() not in ("LocalLauncher", "SlurmLauncher")  # these write files
    if isinstance(failure, Interrupted):
        failure.hand_on()
        if _launcher() == "JoblibLauncher" and is_worker() and is_orphan():
            os._exit(failure.exit_status)  # and take no further run from the queue
    elif HydraConfig.initialized():
        _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
    raise failure


def _launcher() -> str | None:
    """The class of the launcher whose job this process runs, ``None`` for a single run."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return str(HydraConfig.get().launcher.get("_target_")).rpartition(".")[2]


def _exit_status(error: Exception) -> int | None:
    """What the process says about an error, ``None`` for an error in the program."""
    if isinstance(error, Interrupted):
        return error.exit_status
    if isinstance(error, Diverged) or _from_launcher(error):
        return 1
    expected = isinstance(error, UserError | HydraException | OmegaConfBaseException)
    return 2 if expected or _is_disk_error(error) else None


def _is_disk_error(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_ERRORS


def _from_launcher(error: Exception) -> bool:
    """Whether the machinery of a launcher failed: a worker died, a queue refused the job."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    places = [type(error).__module__, frames[-1].f_globals.get("__name__", "") if frames else ""]
    return any(place.partition(".")[0] in ("joblib", "submitit", "ray") for place in places)


def _line(error: Exception, config_name: str) -> str:
    if isinstance(error, Interrupted):
        return str(error)
    return f"error: {explain(error, config_name)}"


def _remove_if_empty(directory: Path) -> None:
    """Hydra creates the run directory before the config is checked; leave no trace of a refusal.

    A directory with a log alone has none but this job's lines, and those of other refused ones.
    """
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()
    with contextlib.suppress(OSError):
        if os.listdir(directory) == ["train.log"]:
            (directory / "train.log").unlink()
    here = Path.cwd()
    for path in (directory, *directory.parents[:3]):
        if path.absolute() in (here, *here.parents):
            return  # the user's own, empty or not
        try:
            path.rmdir()
        except OSError:  # not empty, or gone
            return


def _remove_empty_sweeps() -> None:
    """Hydra describes a sweep in a file before it composes its jobs; without any it is in vain."""
    for folder in map(Path, SWEEPS):
        if folder.is_dir() and os.listdir(folder) == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
            _remove_if_empty(folder)


def explain(error: Exception, config_name: str) -> str:
    """One line for any expected error: what was found, and what is allowed."""
    if isinstance(error, UserError | Diverged):
        return str(error)
    if _is_disk_error(error):
        return f"{error.filename or 'a file'}: {error.strerror}"
    if _from_launcher(error):
        first = str(error).strip().partition("\n")[0]
        lost = type(error).__module__ != "builtins"  # a job is, as opposed to a refused launch
        return f"hydra/launcher: {first}" + "; the same command runs what is missing" * lost
    return explain_config(error, config_name)
