"""``hydra/sweeper=search``: a search over hyper-parameters that continues where it stopped.

Hydra's plugin hands Optuna's proposals to a launcher. It counts the trials of one command, forgets
what a kill left, and asks a seeded sampler for the same values again; `Search` does not.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins

from eakd.config import UNIDENTIFYING
from eakd.errors import Diverged, UserError, check_name, check_number
from eakd.files import write_json
from eakd.places import command_words
from eakd.training.lock import RunLock

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its own plugins
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of SQLAlchemy, about SQLAlchemy 2
    try:
        import optuna
        from hydra_plugins.hydra_optuna_sweeper._impl import (
            OptunaSweeperImpl,
            create_params_from_overrides,
        )
        from optuna.trial import TrialState
    except ImportError as error:
        raise UserError(
            f"hydra/sweeper: found no plugin 'optuna' ({error}):  pip install 'eakd[optuna]'"
        ) from error

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)


class Search(OptunaSweeperImpl):
    """Propose values, train, and learn from the validation accuracy: Optuna's TPE sampler.

    ``output_root/searches/<study>/`` holds the study and, when all trials are done, ``best.json``.
    The same command continues it: runs that were killed first, from their checkpoints, then new
    trials until there are ``n_trials``. A trial that diverges counts, and tells the sampler so.

    Args:
        n_trials: of the study, however many commands it takes.
        n_jobs: trials that are proposed at once, for launchers that run several.
        study_name: ``None`` derives it from the overrides.
        seed: of the sampler.

    Raises:
        UserError: a wrong value.
    """

    def __init__(
        self, n_trials: int = 20, n_jobs: int = 1, study_name: str | None = None, seed: int = 0
    ):
        check_number("hydra.sweeper.n_trials", n_trials, at_least=1, integer=True)
        check_number("hydra.sweeper.n_jobs", n_jobs, at_least=1, integer=True)
        check_number("hydra.sweeper.seed", seed, at_least=0, integer=True)
        if study_name is not None:
            check_name("hydra.sweeper.study_name", study_name)
        unused = (
            "sampler",
            "direction",
            "storage",
            "search_space",
            "custom_search_space",
            "params",
        )
        super().__init__(
            **dict.fromkeys(unused),
            study_name=study_name,
            n_trials=n_trials,
            n_jobs=n_jobs,
            max_failure_rate=0.0,
        )
        self.seed = seed

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has all.

        Raises:
            UserError: nothing to search over, no validation split, or what a run refuses.
            Locked: another process works on the study.
        """
        space, fixed = create_params_from_overrides(arguments)
        space = {key: values for key, values in space.items() if key not in fixed}
        if not space:
            raise UserError(
                "hydra/sweeper: found no key to search over, allowed is one or more, such as "
                "'recipe.lr=interval(0.01,0.2)'"
            )
        check_validation(self.config.data)
        folder = Path(self.config.output_root) / "searches" / (self.study_name or name(arguments))
        with RunLock(folder):
            self._search(folder, space, fixed)

    def _search(self, folder: Path, space: dict[str, Any], fixed: dict[str, str]) -> None:
        study = optuna.create_study(
            study_name=folder.name,
            storage=f"sqlite:///{folder.absolute()}/study.db",
            direction="maximize",
            load_if_exists=True,
        )
        reopen(study)
        # Another seed each time: the same one would propose what the study knows already.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        while (left := self.n_trials - len(done(study))) > 0:
            trials = [study.ask() for _ in range(min(left, self.n_jobs))]
            try:
                jobs = self._configure_trials(trials, space, fixed)
            except ValueError as error:
                raise UserError(
                    f"hydra.sweeper.study_name: found {folder}, a search over other values "
                    f"({error}), allowed is another name"
                ) from error
            results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            failures = [tell(study, *pair) for pair in zip(trials, results, strict=True)]
            for failure in filter(None, failures):
                raise failure
        self._report(folder, study, fixed)

    def _report(self, folder: Path, study: optuna.Study, fixed: dict[str, str]) -> None:
        trials = done(study)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            raise Diverged(f"{folder}: each of {len(trials)} trials diverged")
        best = study.best_trial
        words = [f"{key}={value}" for key, value in best.params.items()]
        found = {"value": best.value, "trial": best.number, "trials": len(trials), "best": words}
        write_json(folder / "best.json", found)
        kept = [f"{key}={value}" for key, value in fixed.items() if key != "seed"]
        again = shlex.join([*command_words("train"), "-m", *kept, *words, "seed=1,2,3"])
        print(f"{folder}: {len(trials)} trials, best on val {best.value:.2f}: {' '.join(words)}")
        print(f"with other seeds: {again}")


def check_validation(data: Any) -> None:
    """Refuse to choose values by the test set.

    Raises:
        UserError: the data set could have a validation split, and has none.
    """
    if data.get("val_fraction", 1) == 0:
        raise UserError(
            "data.val_fraction: found 0, allowed in a search is above 0, such as 0.1: values that "
            "were chosen on the test set make its accuracy too good"
        )


def name(arguments: list[str]) -> str:
    """What a search is called that was given no name: the same for the same keys and values."""
    keys = {word: re.split(r"[.=]", word.lstrip("+"))[0] for word in arguments}
    text = "\n".join(sorted(word for word in arguments if keys[word] not in UNIDENTIFYING))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: with a result, or diverged."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def reopen(study: optuna.Study) -> None:
    """Make what earlier commands left open the next trials: their runs continue."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)  # which the sampler does not look at
            if trial.params:
                study.enqueue_trial(trial.params)


def tell(study: optuna.Study, trial: optuna.Trial, result: Any) -> Exception | None:
    """Tell the study how a run ended; the failure that leaves its trial open, if one does."""
    try:
        value = result.return_value  # raises what the run raised
        if value is None:
            raise UserError(
                "hydra/sweeper: found a run without a validation split, allowed is one that does "
                "not choose on the test set"
            )
        study.tell(trial, value)
    except Diverged:
        study.tell(trial, state=TrialState.PRUNED)  # the sampler takes it for the worst
    except Exception as error:
        return error
    return None


def is_plugin(
    target: str, known: Callable[[str], bool] = Plugins.is_in_toplevel_plugins_module
) -> bool:
    """Whether Hydra may call a target: one from its packages of plugins, or `Search`."""
    return target == f"{__name__}.{Search.__name__}" or known(target)


# Hydra takes sweepers from the package hydra_plugins alone, all of which it imports at each start.
Plugins.is_in_toplevel_plugins_module = staticmethod(is_plugin)
Plugins.instance().register(Search)
