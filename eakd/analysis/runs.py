"""The finished runs that a figure is made from, opened without torch."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, overload

from omegaconf import DictConfig, OmegaConf

from eakd.config import DEFAULT_TASK, EA, base_method
from eakd.errors import UserError, check_text
from eakd.reproduce.agreement import facts
from eakd.reproduce.comparison import find_runs, first_metric
from eakd.reproduce.escaping import one_line
from eakd.reproduce.groups import check_groups
from eakd.training.find_teacher import file_version
from eakd.training.reading import DYNAMICS, read_metrics, read_object

# What data sets call their tasks.
DETECTION, LANGUAGE = "eakd.detection.Detection", "eakd.language.Language"


@dataclass(frozen=True, eq=False)
class Run:
    """One run's record; what is long is read when it is asked for.

    Attributes:
        method: its label: ``kd``, ``ea_kd``, ``kd+matched``.
        variant: what else tells it from other runs of the method, such as ``β=2``; mostly ``""``.
        teacher, student: names of networks; ``teacher`` is ``""`` without one.
        config: the `identity` of its config, as ``config.json`` holds it.
        summary: ``summary.json``; empty for a run that is not finished.
    """

    directory: Path
    method: str
    variant: str
    seed: int
    teacher: str
    student: str
    config: Mapping[str, Any] = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, one an epoch.

        Raises:
            UserError: a damaged file, named.
        """
        return read_metrics(self.directory)

    @cached_property
    def dynamics(self) -> list[dict[str, Any]]:
        """The lines of ``dynamics.jsonl``, see `eakd.training.dynamics.segments`; ``[]`` without.

        Raises:
            UserError: a damaged file, named.
        """
        return read_metrics(self.directory, DYNAMICS)

    @cached_property
    def task(self) -> str:
        """Its domain, as ``data.task`` names it; that of images where the record does not tell.

        Raises:
            UserError: a damaged file, named.
        """
        known = (self.directory / ".hydra" / "config.yaml").is_file()
        return composed(self)[1] if known else DEFAULT_TASK

    @property
    def entropy_temperature(self) -> float:
        """τ′ of the run's entropies; the default where nothing was weighted."""
        weighting = self.config.get("weighting")
        found = weighting.get("entropy_temperature") if isinstance(weighting, Mapping) else None
        if found is None and self.dynamics:
            found = self.dynamics[-1].get("entropy_temperature")
        return float(3.0 if found is None else found)

    @property
    def epochs(self) -> int:
        """Of the whole run, also while it trains."""
        return int(self.config["recipe"]["epochs"])

    @property
    def metric(self) -> str:
        """What its best epoch was chosen by, such as ``top1``."""
        return first_metric([self.summary])[0]


class Runs(Sequence[Run]):
    """Some runs of one pair of networks.

    Attributes:
        names: methods in drawing order: as ``order`` says, then by name, a plain method before its
            EA form and that before its controls.
        left_out: a sentence for each directory that holds a run which cannot be used.
    """

    def __init__(
        self, runs: Iterable[Run], order: Sequence[str] = (), left_out: Sequence[str] = ()
    ):
        found, self.left_out = list(runs), list(left_out)
        known = {run.method for run in found}
        rest = sorted(known - set(order), key=_plain_first)
        self.names: list[str] = [name for name in order if name in known] + rest
        self._runs = sorted(found, key=lambda run: (self.names.index(run.method), run.seed))

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> list[Run]: ...
    def __getitem__(self, index: int | slice) -> Run | list[Run]:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def of(self, name: str, variant: str | None = None) -> list[Run]:
        """The runs of a method, and of a variant if one is named, by seed."""
        return [
            run
            for run in self._runs
            if run.method == name and (variant is None or run.variant == variant)
        ]

    @property
    def variants(self) -> list[str]:
        """In the order in which the runs came."""
        return list(dict.fromkeys(run.variant for run in self._runs))

    @property
    def seeds(self) -> list[int]:
        """Every seed that any run has."""
        return sorted({run.seed for run in self._runs})

    @property
    def pair(self) -> str:
        """``TEACHER-STUDENT``, or the student alone.

        Raises:
            UserError: the runs are of several pairs.
        """
        for role in ("student", "teacher"):
            names = sorted({getattr(run, role) for run in self._runs} - {""})
            if len(names) > 1:
                raise UserError(
                    f"runs: found {role}s {' and '.join(map(one_line, names))}, allowed is one "
                    "pair; narrow runs"
                )
        teachers = {run.teacher for run in self._runs} - {""}
        students = {run.student for run in self._runs}
        return "-".join([*teachers, *students])

    def only(self, names: Iterable[str]) -> Runs:
        """The runs of some methods."""
        wanted = set(names)
        return Runs((run for run in self._runs if run.method in wanted), self.names, self.left_out)


def _plain_first(name: str) -> tuple[str, int, str]:
    return base_method(name), 1 if name.startswith(EA) else 2 if "+" in name else 0, name


def open_run(directory: Path) -> Run | None:
    """A run's record, also of a run that is still training; ``None`` where there is none."""
    config = read_object(directory / "config.json")
    if config is None:
        return None
    finished, _ = find_runs([directory])
    return as_run(finished[0] if finished else {"directory": directory, "config": config})


def as_run(found: Mapping[str, Any], variant: str = "") -> Run:
    """A run as `eakd.reproduce.comparison.read_runs` gives it; without a summary, of its config."""
    config = found["config"]
    summary = {k: v for k, v in found.items() if k not in ("directory", "config", "finished")}
    return Run(
        directory=Path(found["directory"]),
        method=str(found.get("method") or config["distiller"]["name"]),
        variant=variant,
        seed=int(found.get("seed", config["seed"])),
        teacher=str((config.get("teacher") or {}).get("name", "")),
        student=str(config["student"]["name"]),
        config=config,
        summary=summary,
    )


def glob_runs(pattern: str, by: Sequence[str] = (), order: Sequence[str] = ()) -> Runs:
    """The finished runs among the directories of a glob, grouped as ``scripts/report.py`` does.

    Args:
        by: keys that tell runs of one method apart, such as ``distiller.beta``: their variant.
        order: of methods, see `Runs`.

    Raises:
        UserError: no finished run; two of one method, variant and seed, or some that differ in more
            than that; runs of several pairs.
    """
    check_text("runs", pattern)
    places = map(Path, glob.glob(pattern, recursive=True))
    found, gone = find_runs(place for place in places if place.is_dir())
    reasons = [f"{one_line(path)}: {reason}" for path, reason in gone.items()]
    if not found:
        first = f" ({reasons[0]})" if reasons else ""
        raise UserError(
            f"runs: found no finished run in {pattern!r}{first}, allowed is a glob of runs"
        )

    def variant(run: dict[str, Any]) -> str:
        known = facts(run)
        return ", ".join(f"{key.rpartition('.')[2]}={known[key]}" for key in by if key in known)

    told = [f"Left out: {reason}." for reason in reasons]
    runs = Runs((as_run(run, variant(run)) for run in found), order, told)
    _ = runs.pair
    known = {key for run in found for key in facts(run)}
    check_groups(found, ["method", *(key for key in by if key in known)])
    return runs


def composed(run: Run) -> tuple[DictConfig, str]:
    """The composed config of a run, which says where its data and teacher lie, and its task.

    Raises:
        UserError: it is not there or damaged.
    """
    path = run.directory / ".hydra" / "config.yaml"
    return _composed(path, file_version(path))


@lru_cache(maxsize=512)
def _composed(path: Path, _: tuple[int, ...]) -> tuple[DictConfig, str]:
    try:
        config = OmegaConf.load(path)
        return config, config.data.get("task") or DEFAULT_TASK
    except FileNotFoundError:
        raise UserError(f"{path}: found no file, which says where data and teacher are") from None
    except Exception as error:  # whatever YAML and OmegaConf raise
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path}: found a damaged file ({reason})") from error
