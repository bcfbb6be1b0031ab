"""What a figure is: a file of ``configs/figures``, the runs it needs and the function it calls."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eakd.analysis.result import Result
from eakd.analysis.retraining import both
from eakd.analysis.runs import Run, Runs
from eakd.errors import UserError, check_choice, nearest, shortened
from eakd.places import config_folders, read_yaml
from eakd.reproduce.plan import Job, Plan
from eakd.reproduce.table import DEFAULTS, Table, check_definition, make_table
from eakd.targets import locate, returns, unknown_key
from eakd.training.reading import DYNAMICS, SNAPSHOTS

NEEDS = (
    *("accuracy", "weights", "snapshots", "dynamics", "samples", "teacher", "speed"),
    "regions",  # runs of detectors
)
TABLE_DEFAULTS: Mapping[str, Any] = {
    **DEFAULTS,
    "data": "cifar100",
    "pairs": ["resnet32x4-resnet8x4"],
    "smoke_pairs": ["resnet20-resnet8"],
    "metrics": ["top1"],
    "quantity": "accuracy",
    "quantities": "accuracies",
    "unit": "%",
}
KEYS = ("name", "title", "kind", "group", "needs", "runs", "by", "control", "settings",
        "statements", "paper", "smoke")  # fmt: skip
STATEMENT = ("text", "paper", "ours", "smaller", "larger", "positive", "test")


@dataclass(frozen=True)
class Figure:
    """A figure's file.

    Attributes:
        kind: the dotted name of its function ``(runs: Runs, *, output_root, …) -> Result``.
        group: of ``configs/figure.yaml``, whose keys that are not null win over ``settings``.
        needs: of `NEEDS`.
        runs: keys of a table's file, see ``configs/tables``; empty for figures of any runs.
        by: keys of the config that tell runs of one method apart.
        control: methods that ``control=true`` adds.
        settings: keyword arguments of the function.
        statements: of the paper or about it, see `eakd.analysis.statements`.
        paper: whether ``figure=all`` draws it.
        smoke: what ``scale=smoke`` changes: ``settings``, and the ``variants`` that remain.
    """

    name: str
    title: str
    kind: str
    group: str
    needs: tuple[str, ...]
    runs: Mapping[str, Any]
    by: tuple[str, ...]
    control: tuple[str, ...]
    settings: Mapping[str, Any]
    statements: tuple[Mapping[str, Any], ...]
    paper: bool
    smoke: Mapping[str, Any]

    def in_small(self) -> Figure:
        """The same for ``scale=smoke``: as few runs and points as show that every part works."""
        runs, few = dict(self.runs), self.smoke.get("variants")
        if few is not None:
            runs["variants"] = {name: runs["variants"][name] for name in few}
        settings = {**self.settings, **self.smoke.get("settings", {})}
        return replace(self, runs=runs, settings=settings)

    def table(self, pairs: Sequence[str] | None, control: bool) -> Table:
        """The runs as a table, which `eakd.reproduce` plans and runs."""
        definition = {**TABLE_DEFAULTS, **self.runs, "title": self.title}
        # Not a bare number, which would be a table of the paper.
        definition["name"] = f"figure {self.name}"
        if control:
            more = [each for each in self.control if each not in definition["methods"]]
            definition["methods"] = [*definition["methods"], *more]
        try:
            check_definition(definition, definition["name"])
        except UserError as error:
            raise UserError(f"figures/{self.name}.yaml: runs: {error}") from error
        return make_table(definition, pairs=pairs)

    def settings_with(self, groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The file's settings, and over them those of the command line that are not null.

        A key of the group that this figure does not have belongs to another figure of the group.
        """
        given = groups.get(self.group) or {}
        more = {k: v for k, v in given.items() if v is not None and k in self.settings}
        return {**self.settings, **more}

    @property
    def code(self) -> str:
        """A digest of the package of the function, so that no result of older code is taken."""
        try:
            found = find_spec(self.kind.rpartition(".")[0])
        except ModuleNotFoundError:  # told in words when it is called
            found = None
        source = Path(found.origin or "") if found is not None else Path()
        digest = hashlib.sha256()
        for path in sorted(source.parent.glob("*.py")) if source.suffix == ".py" else ():
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def function(self) -> Callable[..., Result]:
        """What ``kind`` names; its module, and torch with it, is imported here.

        Raises:
            UserError: no function of that name that is declared to return a `Result`.
        """
        key = f"figures/{self.name}.yaml: kind"
        found = locate(self.kind, key)
        if not (inspect.isfunction(found) and returns(found, Result)):
            raise UserError(
                f"{key}: found {self.kind!r}, allowed is a function that is declared to return an "
                "eakd.analysis.Result"
            )
        return found

    def compute(self, runs: Runs, settings: Mapping[str, Any], output_root: str) -> Result:
        """Call the function.

        Raises:
            UserError: a setting that it does not take, or a wrong value, named as it is typed.
        """
        function = self.function()
        known = list(inspect.signature(function).parameters)[1:]
        for key in settings:
            if key not in known:
                raise unknown_key(f"{self.group}.{key}", known, self.kind)
        try:
            return function(runs, output_root=output_root, **settings)
        except UserError as error:
            key = str(error).partition(":")[0].partition("[")[0]
            prefix = f"{self.group}." if key in settings else ""
            raise UserError(f"{prefix}{error}") from error


def figure_names() -> list[str]:
    """Every ``figure=``, those of a ``--config-dir`` included, in the paper's order."""
    return sorted(_files(), key=lambda name: (not name[:1].isdigit(), name[:1] != "A", name))


def _files() -> dict[str, Path]:
    folders = reversed(config_folders())  # ours wins, as in every group
    return {path.stem: path for folder in folders for path in (folder / "figures").glob("*.yaml")}


def load_figure(name: str) -> Figure:
    """Read a figure's file.

    Raises:
        UserError: no such figure, or a wrong value in its file.
    """
    check_choice("figure", name, [*figure_names(), "all"])
    path = _files()[name]
    found = read_yaml(path)
    try:
        return _figure(found, name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _figure(found: Mapping[str, Any], name: str) -> Figure:
    for key in found:
        if key not in KEYS:
            raise unknown_key(key, KEYS)
    check_choice("name", str(found.get("name", name)), [name])
    kind = found.get("kind")
    if not isinstance(kind, str) or "." not in kind:
        raise UserError(f"kind: found {shortened(kind)}, allowed is the dotted name of a function")
    for each in found.get("needs") or ():
        check_choice("needs", each, NEEDS)
    for key in ("runs", "settings", "smoke"):
        if not isinstance(found.get(key) or {}, dict):
            raise UserError(f"{key}: found {shortened(found[key])}, allowed are lines KEY: VALUE")
    for statement in found.get("statements") or ():
        for key in statement:
            if key not in STATEMENT:
                raise UserError(f"statements: found {key}, allowed {nearest(key, STATEMENT)}")
    runs, smoke = found.get("runs") or {}, found.get("smoke") or {}
    for key, kind_of in (("settings", dict), ("variants", list)):
        if not isinstance(smoke.get(key, kind_of()), kind_of):
            raise UserError(
                f"smoke.{key}: found {shortened(smoke[key])}, allowed is a "
                f"{'list of names' if kind_of is list else 'line KEY: VALUE for each'}"
            )
    for key in smoke:
        check_choice("smoke", key, ("settings", "variants"))
    for each in smoke.get("variants", ()):
        check_choice("smoke.variants", each, list(runs.get("variants") or ()))
    both = set(runs.get("methods", ())) == {"kd", "ea_kd"}
    return Figure(
        name=name,
        title=str(found.get("title", name)),
        kind=kind,
        group=str(found.get("group") or kind.split(".")[-2]),
        needs=tuple(found.get("needs") or ()),
        runs=runs,
        by=tuple(found.get("by") or ()),
        # Is a difference due to the choice of samples, or to the scale of the weight?
        control=tuple(found.get("control", ["kd+matched"] if both else [])),
        settings=found.get("settings") or {},
        statements=tuple(found.get("statements") or ()),
        paper=bool(found.get("paper", bool(runs))),
        smoke=smoke,
    )


def merged(plans: Iterable[Plan]) -> Plan:
    """One plan with the jobs of several, each of them once."""
    plans = list(plans)
    cells: dict[Any, dict[int, Job]] = {}
    teachers: dict[Path, Job] = {}
    for plan in plans:
        teachers |= {job.directory: job for job in plan.teachers}
        for cell, jobs in plan.cells.items():
            known = cells.get(cell, {})
            if any(jobs[s].directory != known[s].directory for s in set(jobs) & set(known)):
                cell, known = replace(cell, variant=f"{cell.variant} ({plan.table.name})"), {}
            cells[cell] = known | {
                seed: both(known[seed], job) if seed in known else job for seed, job in jobs.items()
            }
    table = plans[0].table
    if len(plans) > 1:
        table = replace(table, name=f"{plans[0].table.name} and {len(plans) - 1} more")
    seeds = tuple(sorted({seed for plan in plans for seed in plan.seeds}))
    return replace(
        plans[0], table=table, seeds=seeds, teachers=tuple(teachers.values()), cells=cells
    )


def moments_of(settings: Mapping[str, Any]) -> Sequence[float]:
    """The epochs, or fractions of a run, whose snapshots a figure needs."""
    return settings.get("epochs") or settings.get("snapshots") or ()


def lacking(run: Run, figure: Figure, settings: Mapping[str, Any]) -> str | None:
    """What a finished run does not have of what a figure needs, in words; ``None`` if nothing."""
    folder = run.directory
    if "dynamics" in figure.needs and not (folder / DYNAMICS).is_file():
        return f"no {DYNAMICS} (recorded with record.dynamics)"
    if "samples" in figure.needs and not any((folder / "samples").glob("*.npz")):
        return "no values of single samples (recorded with record.samples)"
    weights = (folder / "last.safetensors", folder / "last")  # language models are folders
    if "weights" in figure.needs and not any(path.exists() for path in weights):
        return "no last.safetensors"
    if "snapshots" in figure.needs:
        wanted = moments_of(settings)
        epochs = {max(1, round(v * run.epochs)) if v < 1 else int(v) for v in wanted if v != 1}
        gone = [
            str(epoch)
            for epoch in sorted(epochs - {run.epochs})
            if not (folder / SNAPSHOTS / f"epoch{epoch:03d}.safetensors").is_file()
        ]
        if gone:
            return f"no snapshot of epoch {' and '.join(gone)} (recorded with record.snapshots)"
    return None
