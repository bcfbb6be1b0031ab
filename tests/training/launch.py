"""``torchrun --standalone``, but that it forks: ``launch.py --nproc-per-node=2 SCRIPT …``

The agent, its rendezvous and what it does about a failure are torchrun's own; only the start is
another one, because the interpreter is warm already (see `processes`).
"""

import multiprocessing
import os
import runpy
import signal
import sys
import traceback

from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args


def script(*words: str) -> None:
    multiprocessing.current_process().name = "MainProcess"
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's own handlers are not theirs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = list(words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Exception:
        traceback.print_exc()  # as an interpreter does; the agent tells of the first failure alone
        raise


if __name__ == "__main__":
    # What --standalone stands for: a rendezvous of this launch's own, at a free port.
    standalone = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={os.getpid()}"]
    arguments = parse_args([*standalone, *sys.argv[1:]])
    config, _, _ = config_from_args(arguments)
    config.start_method = "fork"
    elastic_launch(config, script)(arguments.training_script, *arguments.training_script_args)
