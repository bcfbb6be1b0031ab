"""What a table needs: its runs, which are finished, what remains and how long that takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from eakd.config import CONFIGS, ROOT, compose, identity, method_label, name_of
from eakd.errors import UserError, check_choice, check_number
from eakd.reproduce.table import Cell, Table
from eakd.training.find_teacher import manifest_entry, teacher_files
from eakd.training.lock import describe, read_owner
from eakd.training.record import differences, read_json, read_metrics

PROTOCOLS = ("authors", "common")
SCALES = {
    "paper": "the protocol's own epochs",
    "short": "a twentieth of the protocol's epochs, its drops and warm-ups at the same fractions",
    "smoke": "two epochs of the embedded digits at a rate of 0.01, whatever the table's data set",
}
SHORT, SMOKE_EPOCHS = 1 / 20, 2
# Lengths in epochs that belong to a method; they shrink with the protocol.
METHOD_EPOCHS = ("decay_epochs", "ramp_epochs", "warmup", "warmup_epochs")


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
        teachers: runs that train the teachers that were not found.
        cells: ``{cell: {seed: job}}``; cells may share a job.
    """

    table: Table
    protocol: str
    scale: str
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
        overrides: of every run, such as ``data.root=PATH``.
        checkpoint_root: where teachers are; by default ``checkpoints``, and below it a folder for
            the teachers that another ``scale`` trains.

    Raises:
        UserError: an unknown protocol or scale, or an override that no run accepts.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    check_choice("scale", scale, SCALES)
    seeds = tuple(dict.fromkeys(seeds))
    if not seeds:
        raise UserError("seeds: found an empty list, allowed is a list of integers >= 0")
    for seed in seeds:
        check_number("seeds", seed, at_least=0, integer=True)
    root = checkpoint_root or ("checkpoints" if scale == "paper" else f"checkpoints/{scale}")
    common = [f"data={table.data}", f"recipe={protocol}"]
    if scale == "smoke":
        # The rate of the paper's MobileNetV2, with which no method diverges in its first steps.
        common = ["data=digits", "recipe=digits", "recipe.lr=0.01"]
        common += [f"teacher.{key}={value}" for key, value in table.smoke_teacher.items()]
    common += [*overrides, f"output_root={output_root}", f"checkpoint_root={root}"]
    tracked = "tracking=wandb" in overrides

    cells: dict[Cell, dict[int, Job]] = {}
    needed: dict[str, DictConfig] = {}
    by_method = defaultdict(list)
    for cell in table.cells:
        if cell.overrides:
            by_method[cell.method, cell.variant].append(cell)
    for same_method in by_method.values():
        for cell, config in _compose_pairs(same_method, common):
            config, scaled = _scale(config, scale)
            label = method_label(config)
            line = [*cell.overrides, *common, *scaled]
            if tracked:
                line.append(f"tracking.group='table {table.name}: {cell.label}'")
            # Weights cost nothing that one would see: EA-KD takes as long as KD.
            kind = f"{config.data.name} {cell.pair} {config.distiller.name.removeprefix('ea_')}"
            cells[cell] = _jobs(config, seeds, line, cell.label, kind)
            if label != "none":
                needed.setdefault(config.teacher.name, config)
    cells = {cell: cells[cell] for cell in table.cells if cell in cells}
    teachers = [
        _teacher_job(name, config, common, scale)
        for name, config in needed.items()
        if not _has_teacher(config)
    ]
    return Plan(table, protocol, scale, seeds, tuple(teachers), cells)


def _compose_pairs(cells: list[Cell], common: list[str]) -> list[tuple[Cell, DictConfig]]:
    """The configs of cells that differ in their pair only.

    Hydra takes a tenth of a second a config, so one is composed and the networks are exchanged in
    it, which comes to the same unless a network's own values are overridden.
    """
    if any(text.lstrip("+~").startswith(("teacher", "student")) for text in common):
        return [(cell, compose([*cell.overrides, *common])) for cell in cells]
    first = compose([*cells[0].overrides, *common])
    composed = []
    for cell in cells:
        config = first.copy()
        OmegaConf.set_struct(config, False)
        for role, name in zip(("teacher", "student"), cell.pair.split("-"), strict=True):
            network = OmegaConf.load(CONFIGS / "model" / f"{name}.yaml")
            if role == "teacher":
                network.checkpoint = config.teacher.checkpoint
            config[role] = network
        composed.append((cell, config))
    return composed


def _scale(config: DictConfig, scale: str) -> tuple[DictConfig, list[str]]:
    """Shorten a config; also what does the same on a command line."""
    if scale == "paper":
        return config, []
    recipe, method = config.recipe, config.distiller
    epochs = SMOKE_EPOCHS if scale == "smoke" else max(2, round(recipe.epochs * SHORT))
    factor = epochs / recipe.epochs
    values: dict[str, Any] = {"recipe.epochs": epochs}
    if recipe.milestones:
        values["recipe.milestones"] = [m if m < 1 else m / recipe.epochs for m in recipe.milestones]
    if recipe.warmup_epochs:
        values["recipe.warmup_epochs"] = recipe.warmup_epochs * factor
    for key in METHOD_EPOCHS:
        if method.get(key):
            values[f"distiller.{key}"] = max(1, round(method[key] * factor))
    config = config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config, [f"{key}={value}".replace(" ", "") for key, value in values.items()]


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


def _teacher_job(name: str, config: DictConfig, common: list[str], scale: str) -> Job:
    """The run that trains a teacher as ``docs/recipes.md`` says."""
    network = CONFIGS / "model" / f"{name}.yaml"
    overrides = [f"student={name}", "distiller=none"]
    overrides += [text.replace("teacher.", "student.", 1) for text in common]
    if "pretrained" in OmegaConf.load(network) and scale != "smoke":
        overrides = [text for text in overrides if not text.startswith("recipe=")]
        overrides += ["recipe=finetune", "student.pretrained=true"]
    overrides += ["save_teacher=true"]
    composed, scaled = _scale(compose(overrides), scale)
    return _jobs(
        composed, [0], (*overrides, *scaled), f"teacher {name}", f"{config.data.name} {name}"
    )[0]


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
