"""Running many jobs through whichever Hydra launcher was chosen."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from eakd.command_line import JobFunction
from eakd.config import CONFIGS, identity
from eakd.errors import Diverged, Interrupted
from eakd.training.lock import Locked
from eakd.training.record import remember_failure

log = logging.getLogger(__name__)


def launch(
    jobs: Sequence[Sequence[str]],
    settings: Sequence[str] = (),
    task: Callable[[DictConfig], Any] | None = None,
    config_name: str = "train",
) -> list[Exception | None]:
    """Run each list of overrides as ``scripts/train.py`` would; the failures, in the same order.

    Hydra offers launchers to its own sweeper only, which knows products of values but not a list of
    runs; hence the steps that its sweeper takes before it calls a launcher.

    Args:
        settings: overrides of the whole launch: ``hydra/launcher=workers hydra.launcher.n_jobs=2``.
        task, config_name: another command's task, and its root file.
    """
    if not jobs:
        return []
    settings = [*settings, "hydra.mode=MULTIRUN"]
    if GlobalHydra.instance().is_initialized():  # this command's, with its --config-dir
        search_path = GlobalHydra.instance().config_loader().get_search_path()
    else:
        search_path = create_config_search_path(str(CONFIGS))
    loader = ConfigLoaderImpl(config_search_path=search_path)
    config = loader.load_configuration(config_name, settings, run_mode=RunMode.MULTIRUN)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=JobFunction(task or train, config_name, exits=True),
            config=config,
        )
        return [_failure(done) for done in launcher.launch([list(job) for job in jobs], 0)]
    finally:
        HydraConfig.instance().cfg = before


def _failure(done: JobReturn) -> Exception | None:
    return done._return_value if done.status == JobStatus.FAILED else None


def train(config: DictConfig) -> None:
    """The task of a job: one run; why it failed is kept in its directory, for reports."""
    from eakd.training.run import run

    try:
        run(config)
    except Locked as error:  # another process is at it
        log.info("left out: %s", error)
    except (Interrupted, Diverged):  # no failure; on record already
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # the error may be a full disk
            remember_failure(Path(config.run_dir), identity(config), error)
        raise
