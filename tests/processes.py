"""Commands in processes of their own that start at once: a server with torch in it forks them.

Importing torch and Hydra costs a command five seconds of CPU, and the tests start hundreds of
commands. Each is a process all the same, with its own directory, environment, output and exit
status, to be killed at any moment. What is not a script of ours, or needs another interpreter,
starts by `subprocess`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch", "torch._dynamo", "torchvision", "hydra", "sklearn.datasets", "scipy.stats"),
        *("eakd.command_line", "eakd.training.run", "eakd.classification"),
    ]
)


def _main(words: list[str], cwd: str, env: dict[str, str], outputs: list[str], alone: bool) -> None:
    """Become ``python *words``."""
    if alone:
        os.setsid()
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    script = os.path.join(cwd, words[0])
    sys.path[:0] = [os.path.dirname(script), *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = list(words)
    os.chdir(cwd)
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        # As an interpreter ends. Multiprocessing leaves out what was registered, and waits for
        # children first, though joblib's workers wait for what ends with the threads.
        threading._shutdown()
        atexit._run_exitfuncs()


class Command:
    """Like `subprocess.Popen` of ``python *words``; its outputs are text files.

    Args:
        words: a script and its arguments.
        cwd: relative paths start here.
        env: the whole environment, that of this process by default.
        merged: standard error goes into the same output as standard output.
        alone: in a process group of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        cwd: str | Path = ROOT,
        env: Mapping[str, str] | None = None,
        merged: bool = False,
        alone: bool = False,
    ):
        self.args = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "err")]
        for path in self._outputs:
            path.touch()
        outputs = [str(self._outputs[0 if merged else place]) for place in range(2)]
        environment = dict(os.environ if env is None else env)
        # Its name is how our commands tell a worker of a sweep from the main process.
        self._process = SERVER.Process(
            target=_main,
            args=(self.args, os.path.abspath(cwd), environment, outputs, alone),
            name="MainProcess",
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed."""
        self.wait(timeout)
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """Standard output and standard error so far."""
        out, err = (path.read_text(encoding="utf-8") for path in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(words: Sequence[str], timeout: float = 600, **options) -> subprocess.CompletedProcess:
    """Run a `Command` to its end."""
    process = Command(words, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition, process: Command, timeout: float = 300) -> None:
    """Return once ``condition()`` holds while ``process`` is running."""
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, process.printed()
        time.sleep(0.02)
