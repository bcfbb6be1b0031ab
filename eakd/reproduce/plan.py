"""What a table needs: its runs, which are finished, what remains and how long that takes."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from eakd.config import ROOT, compose, identity, name_of, needs_teacher, plain
from eakd.errors import UserError, check_choice, check_number
from eakd.reproduce.overrides import check_overrides, of_teacher
from eakd.reproduce.table import Cell, Table, method_overrides, pair_overrides
from eakd.training.find_teacher import manifest_entry, teacher_files
from eakd.training.hints import written
from eakd.training.lock import describe, read_owner
from eakd.training.record import differences, read_json, read_metrics

PROTOCOLS = ("authors", "common")
ABOUT = {
    "paper": "the protocol's own epochs",
    "short": "a twentieth of the protocol's epochs, its drops and warm-ups at the same fractions",
}
SCALES = (*ABOUT, "smoke")  # the last one is what the table's data set says
SHORT = 1 / 20
ROLES = ("teacher", "student")


@dataclass(frozen=True)
class Job:
    """One run of a plan.

    Attributes:
        directory: where it leaves its record.
        overrides: its command line for ``scripts/train.py``.
        identified: the `identity` of its config.
        label: for people.
        kind: jobs of one kind take equally long.
        teacher: the file of the teacher that it needs, or ``None``.
        saves: the teacher's file that it leaves, or ``None``.
    """

    directory: Path
    overrides: tuple[str, ...]
    identified: dict[str, Any]
    label: str
    kind: str
    teacher: Path | None = None
    saves: Path | None = None

    @property
    def epochs(self) -> int:
        return self.identified["recipe"]["epochs"]


class State(NamedTuple):
    """Where a run stands: ``done``, ``running``, ``interrupted``, ``failed`` or ``to do``.

    Attributes:
        text: one line of details.
        epochs: finished ones.
    """

    name: str
    text: str
    epochs: int


@dataclass(frozen=True)
class Plan:
    """The runs of a table.

    Attributes:
        about_scale: what ``scale`` stands for, in words.
        teachers: runs that train the teachers that were not found.
        cells: ``{cell: {seed: job}}``; cells may share a job.
    """

    table: Table
    protocol: str
    scale: str
    about_scale: str
    seeds: tuple[int, ...]
    teachers: tuple[Job, ...]
    cells: dict[Cell, dict[int, Job]]

    @property
    def students(self) -> list[Job]:
        """Every run once, seed by seed, so that an unfinished table holds whole seeds."""
        jobs = [by_seed[seed] for seed in self.seeds for by_seed in self.cells.values()]
        return list({job.directory: job for job in jobs}.values())

    @property
    def jobs(self) -> list[Job]:
        return [*self.teachers, *self.students]


def make_plan(
    table: Table,
    *,
    seeds: Sequence[int],
    protocol: str = "authors",
    scale: str = "paper",
    overrides: Sequence[str] = (),
    output_root: str = "outputs",
    checkpoint_root: str | None = None,
) -> Plan:
    """Find the run of each cell and seed.

    Args:
        overrides: of every run, such as ``data.root=PATH``; see `check_overrides`.
        checkpoint_root: where teachers are; by default ``checkpoints``, and below it a folder for
            the teachers that another ``scale`` trains.

    Raises:
        UserError: an unknown protocol or scale, an override that contradicts the table or that a
            run does not accept, a scale that the table's data set does not offer.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    check_choice("scale", scale, SCALES)
    if not isinstance(seeds, list | tuple | range) or not seeds:
        found = "an empty list" if isinstance(seeds, list | tuple | range) else repr(seeds)
        raise UserError(f"seeds: found {found}, allowed is a list of integers >= 0")
    seeds = tuple(dict.fromkeys(seeds))
    for seed in seeds:
        check_number("seeds", seed, at_least=0, integer=True)
    overrides = check_overrides(overrides, table)
    root = checkpoint_root or ("checkpoints" if scale == "paper" else f"checkpoints/{scale}")
    if scale == "smoke":
        common, epochs, about = _smoke(table)
    else:
        common, epochs, about = [f"data={table.data}", f"recipe={protocol}"], None, ABOUT[scale]
    common += [
        *overrides,
        f"output_root={written(output_root)}",
        f"checkpoint_root={written(root)}",
    ]
    tracked = "tracking=wandb" in overrides

    cells: dict[Cell, dict[int, Job]] = {}
    needed: dict[str, DictConfig] = {}
    for cell, config in _compose(table, common):
        config, scaled = _scale(config, scale, epochs)
        line = [*cell.overrides, *common, *scaled]
        if tracked:
            line.append(f"tracking.group='table {table.name}: {cell.label}'")
        # Without the weighting, which costs nothing that one would see: EA-KD takes as long as KD.
        kind = f"{config.data.name} {cell.pair} {config.distiller.name}"
        cells[cell] = _jobs(config, seeds, line, cell.label, kind)
        if needs_teacher(config):
            needed.setdefault(config.teacher.name, config)
    cells = {cell: cells[cell] for cell in table.cells if cell in cells}
    teachers = [
        _teacher_job(name, config, table, common, scale, epochs)
        for name, config in needed.items()
        if not _has_teacher(config)
    ]
    return Plan(table, protocol, scale, about, seeds, tuple(teachers), cells)


def _smoke(table: Table) -> tuple[list[str], int, str]:
    """Overrides, epochs and a description of ``scale=smoke``, as the table's data set has them.

    Raises:
        UserError: its file says nothing.
    """
    plan = plain(compose([f"data={table.data}"]).data.get("plan")) or {}
    for key in ("smoke", "smoke_epochs"):
        if key not in plan:
            raise UserError(
                f"scale: found smoke, but no plan.{key} in the file of data={table.data}, allowed "
                "is paper or short"
            )
    network = [f"teacher.{key}={written(value)}" for key, value in table.smoke_teacher.items()]
    text = plan.get("smoke_text", f"{plan['smoke_epochs']} epochs with {' '.join(plan['smoke'])}")
    about = f"{text}, whatever the table's data set"
    return [*plan["smoke"], *network], plan["smoke_epochs"], about


def _compose(table: Table, common: list[str]) -> Iterator[tuple[Cell, DictConfig]]:
    """The config of each cell that has runs.

    Hydra takes a tenth of a second a config. So one is composed for all cells that differ in their
    pair only, and the networks are exchanged in it, which comes to the same unless a network's own
    values are overridden.
    """
    alike = defaultdict(list)
    for cell in table.cells:
        if cell.overrides:
            alike[cell.method, cell.variant].append(cell)
    if len(table.pairs) == 1 or any(text.lstrip("+~").startswith(ROLES) for text in common):
        for cell in itertools.chain(*alike.values()):
            yield cell, compose([*cell.overrides, *common])
        return
    networks = {pair: compose(pair_overrides(pair)) for pair in table.pairs}
    for cells in alike.values():
        first = compose([*cells[0].overrides, *common])
        for cell in cells:
            config = first.copy()
            for role in ROLES:
                config[role] = networks[cell.pair][role]
            yield cell, config


def _scale(config: DictConfig, scale: str, epochs: int | None) -> tuple[DictConfig, list[str]]:
    """Shorten a config; also what does the same on a command line.

    Args:
        epochs: of ``scale=smoke``.
    """
    if scale == "paper":
        return config, []
    recipe, method = config.recipe, config.distiller
    epochs = epochs or max(2, round(recipe.epochs * SHORT))
    factor = epochs / recipe.epochs
    values: dict[str, Any] = {"recipe.epochs": epochs}
    if recipe.milestones:
        values["recipe.milestones"] = [m if m < 1 else m / recipe.epochs for m in recipe.milestones]
    if recipe.warmup_epochs:
        values["recipe.warmup_epochs"] = recipe.warmup_epochs * factor
    for key in method.get("scales_with_epochs", ()):
        if method.get(key):
            values[f"distiller.{key}"] = max(1, round(method[key] * factor))
    config = config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config, [f"{key}={written(value)}" for key, value in values.items()]


def _jobs(
    config: DictConfig, seeds: Sequence[int], overrides: Sequence[str], label: str, kind: str
) -> dict[int, Job]:
    """The runs of one config with several seeds."""
    common, jobs = identity(config), {}
    teacher = _teacher_file(config, config.teacher.name) if "teacher" in common else None
    saves = _teacher_file(config, config.student.name) if config.save_teacher else None
    for seed in seeds:
        identified = {**common, "seed": seed}
        jobs[seed] = Job(
            directory=Path(config.output_root) / name_of(identified),
            overrides=(*overrides, f"seed={seed}"),
            identified=identified,
            label=f"{label}, seed {seed}",
            kind=kind,
            teacher=teacher,
            saves=saves,
        )
    return jobs


def _teacher_file(config: DictConfig, name: str) -> Path:
    """Where a run that trains this teacher leaves it."""
    return teacher_files(Path(config.checkpoint_root), config.data.name, name)[0]


def _has_teacher(config: DictConfig) -> bool:
    """Whether ``teacher.checkpoint`` leads to a file, here or behind a link."""
    if config.teacher.checkpoint != "auto":
        return True
    data, name = config.data.name, config.teacher.name
    entry = manifest_entry(ROOT / "checkpoints" / "manifest.yaml", data, name)
    files = teacher_files(Path(config.checkpoint_root), data, name)
    return any(path.is_file() for path in files) or bool(entry.get("url") and entry.get("sha256"))


def _teacher_job(
    name: str, config: DictConfig, table: Table, common: list[str], scale: str, epochs: int | None
) -> Job:
    """The run that trains a teacher as ``docs/recipes.md`` says."""
    overrides = [f"student={name}", *method_overrides("none", table.group), *of_teacher(common)]
    if "pretrained" in config.teacher and scale != "smoke":
        overrides = [text for text in overrides if not text.startswith("recipe=")]
        overrides += ["recipe=finetune", "student.pretrained=true"]
    overrides += ["save_teacher=true"]
    composed, scaled = _scale(compose(overrides), scale, epochs)
    line, kind = [*overrides, *scaled], f"{config.data.name} {name}"
    return _jobs(composed, [0], line, f"teacher {name}", kind)[0]


def state_of(job: Job) -> State:
    """Read a run's directory; nothing in it is changed."""
    status = read_json(job.directory / "status.json") or {}
    if not status and not job.directory.exists():
        return State("to do", "", 0)
    found = read_json(job.directory / "config.json")
    if found is not None and found != job.identified:
        changed = ", ".join(differences(found, job.identified)[:3])
        return State("failed", f"{job.directory} holds another config: {changed}", 0)
    summary = job.directory / "summary.json"
    if read_json(summary) is not None:
        return State("done", "", job.epochs)
    epochs = max((line["epoch"] for line in read_metrics(job.directory)), default=0)
    owner = read_owner(job.directory)
    progress = f"epoch {epochs} of {job.epochs}"
    if owner is not None and owner["alive"]:
        return State("running", f"{progress}, {describe(owner)}", epochs)
    if status.get("state") in ("failed", "diverged"):
        return State("failed", status.get("error", status["state"]), epochs)
    if not status:
        return State("to do", "", 0)
    text = f"{summary} is damaged" if summary.exists() else progress
    return State("interrupted", text, epochs)


class Estimate(NamedTuple):
    """Hours of computation that remain on a kind of device.

    Attributes:
        device: as recorded by the runs that were timed.
        hours: of the remaining runs whose speed is known.
        known, unknown: how many runs that covers, and how many not.
    """

    device: str
    hours: float
    known: int
    unknown: int


def speed_file(output_root: str) -> Path:
    """``{device: {kind of run: seconds per epoch}}`` of what was timed for a plan."""
    return Path(output_root) / "speed.json"


def recorded_epochs(
    plan: Plan, states: dict[Path, State], output_root: str
) -> dict[str, dict[str, float]]:
    """``{device: {kind of run: mean seconds per epoch}}``, from runs or else from `speed_file`."""
    taken: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for job in plan.jobs:
        if states[job.directory].epochs:
            device = device_of(read_json(job.directory / "environment.json") or {})
            for line in read_metrics(job.directory):
                taken[device][job.kind].append(line["train_seconds"])
    speeds: dict[str, dict[str, float]] = read_json(speed_file(output_root)) or {}
    for device, kinds in taken.items():
        known = {kind: sum(seconds) / len(seconds) for kind, seconds in kinds.items()}
        speeds[device] = {**speeds.get(device, {}), **known}
    return speeds


def estimate(plan: Plan, states: dict[Path, State], output_root: str) -> list[Estimate]:
    """Time that remains on each kind of device on which something was timed."""
    remaining = [job for job in plan.jobs if states[job.directory].name not in ("done", "failed")]
    found = []
    for device, seconds in recorded_epochs(plan, states, output_root).items():
        known = [job for job in remaining if job.kind in seconds]
        left = [(job.epochs - states[job.directory].epochs) * seconds[job.kind] for job in known]
        hours = sum(left) / 3600
        found.append(Estimate(device, hours, len(known), len(remaining) - len(known)))
    return found


def device_of(environment: dict[str, Any]) -> str:
    """``NVIDIA H100``, or ``x86_64 with 2 threads``."""
    threads = f"{environment.get('processor')} with {environment.get('threads')} threads"
    return environment.get("accelerator") or threads


def describe_plan(
    plan: Plan, states: dict[Path, State], output_root: str, *, every_run: bool
) -> str:
    """The plan as text: counts, time that remains, and every run or the unfinished begun ones."""
    table, jobs = plan.table, plan.jobs
    counts = Counter(states[job.directory].name for job in jobs)
    order = ("done", "running", "interrupted", "failed", "to do")
    lines = [
        f"table {table.name} (protocol {plan.protocol}, scale {plan.scale}): {len(jobs)} runs, "
        f"{len(plan.teachers)} of them teachers",
        "  " + ", ".join(f"{counts[name]} {name}" for name in order),
    ]
    for device, hours, known, unknown in estimate(plan, states, output_root):
        rest = f"; the speed of {unknown} more is not known" if unknown else ""
        if known:
            lines.append(f"  {hours:.1f} hours remain on one {device} for {known} runs{rest}")
    for job in jobs:
        name, text, _ = states[job.directory]
        if every_run or name in ("running", "interrupted", "failed"):
            detail = f": {text}" if text else ""
            lines.append(f"  {name:<11} {job.label} ({job.directory}){detail}")
    return "\n".join(lines)
