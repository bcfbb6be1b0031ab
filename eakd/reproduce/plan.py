"""What a table needs: its runs, which are finished, what remains and how long that takes."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from eakd.composing import compose
from eakd.config import identity, name_of, needs_teacher, plain
from eakd.errors import UserError, check_choice, check_number
from eakd.places import MANIFEST
from eakd.reproduce.overrides import check_overrides, of_teacher, read
from eakd.reproduce.table import Cell, Table, method_overrides, pair_overrides
from eakd.training.find_teacher import manifest_entry, shipped_teacher, teacher_files
from eakd.training.hints import written
from eakd.training.protocol import kind_of

PROTOCOLS = ("authors", "common", "default")  # the last one is the data set's own recipe
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
        answers: ``(views, bytes)`` of a table of its teacher's answers; see `_answers`.
    """

    directory: Path
    overrides: tuple[str, ...]
    identified: dict[str, Any]
    label: str
    kind: str
    teacher: Path | None = None
    saves: Path | None = None
    answers: tuple[int, int] | None = None

    @property
    def epochs(self) -> int:
        return self.identified["recipe"]["epochs"]


# Name → the letter that stands for it in a grid, and what it means.
STATES = {
    "done": "d",
    "running": "r",
    "interrupted": "i",
    "failed": "f",
    "damaged": "x",  # a file that cannot be read
    "stale": "s",  # done, but with other data or another teacher than is used now
    "to do": "t",
}


class State(NamedTuple):
    """Where a run stands, one of `STATES`.

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
        about_data: what people call the data set, from its file.
        teachers: runs that train the teachers that were not found.
        cells: ``{cell: {seed: job}}``; cells may share a job.
        overrides, output_root: as they were given.
    """

    table: Table
    protocol: str
    scale: str
    about_scale: str
    about_data: str
    seeds: tuple[int, ...]
    teachers: tuple[Job, ...]
    cells: dict[Cell, dict[int, Job]]
    overrides: tuple[str, ...] = ()
    output_root: str = "outputs"

    @property
    def students(self) -> list[Job]:
        """Every run once, seed by seed, so that an unfinished table holds whole seeds."""
        # Plans of several figures may have cells with fewer seeds.
        cells = self.cells.values()
        jobs = [by_seed[seed] for seed in self.seeds for by_seed in cells if seed in by_seed]
        return list({job.directory: job for job in jobs}.values())

    def each(self) -> Iterator[tuple[Cell, Job]]:
        """Every cell with each of its runs."""
        return ((cell, job) for cell, by_seed in self.cells.items() for job in by_seed.values())

    @property
    def jobs(self) -> list[Job]:
        return [*self.teachers, *self.students]


# Configs by their overrides, for plans that share some.
Composed = dict[tuple[str, ...], DictConfig]


def plan_as_typed(table: Table, config: DictConfig, composed: Composed | None = None) -> Plan:
    """`make_plan` with what the command line says, of a table or of a figure's runs."""
    return make_plan(
        table,
        composed=composed,
        seeds=plain(config.seeds),
        protocol=config.protocol,
        scale=config.scale,
        overrides=plain(config.overrides),
        output_root=config.output_root,
        checkpoint_root=config.checkpoint_root,
    )


def make_plan(
    table: Table,
    *,
    seeds: Sequence[int] | None = None,
    protocol: str | None = None,
    scale: str = "paper",
    overrides: Sequence[str] = (),
    output_root: str = "outputs",
    checkpoint_root: str | None = None,
    composed: Composed | None = None,
) -> Plan:
    """Find the run of each cell and seed.

    Args:
        seeds, protocol: ``None`` for the table's own.
        overrides: of every run, such as ``data.root=PATH``; see `check_overrides`.
        checkpoint_root: where teachers are; by default ``checkpoints``, and below it a folder for
            the teachers that another ``scale`` trains.
        composed: what other plans have composed; it is added to.

    Raises:
        UserError: an unknown protocol or scale, an override that contradicts the table or that a
            run does not accept, a scale that the table's data set does not offer.
    """
    seeds = table.seeds if seeds is None else seeds
    protocol = table.protocol if protocol is None else protocol
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
        table, common, epochs, about = _smoke(table)
    else:
        common, epochs, about = [f"data={table.data}"], None, ABOUT[scale]
        if protocol != "default":
            common.append(f"recipe={protocol}")
    common += [
        *overrides,
        f"output_root={written(output_root)}",
        f"checkpoint_root={written(root)}",
    ]
    tracked = "tracking=wandb" in overrides

    cells: dict[Cell, dict[int, Job]] = {}
    needed: dict[str, DictConfig] = {}
    for cell, config in _compose(table, common, {} if composed is None else composed):
        config, scaled = _scale(config, scale, epochs, overrides)
        line = [*cell.overrides, *common, *scaled]
        if tracked:
            line.append(f"tracking.group='table {table.name}: {cell.label}'")
        cells[cell] = _jobs(config, seeds, line, cell.label)
        if needs_teacher(config):
            needed.setdefault(config.teacher.name, config)
    cells = {cell: cells[cell] for cell in table.cells if cell in cells}
    teachers = [
        _teacher_job(name, config, table, common, scale, epochs)
        for name, config in needed.items()
        if not _has_teacher(config)
    ]
    about_data = (plain(config.data.get("plan")) or {}).get("title", config.data.name)
    return Plan(
        *(table, protocol, scale, about, about_data, seeds, tuple(teachers), cells),
        *(tuple(overrides), str(output_root)),
    )


def _smoke(table: Table) -> tuple[Table, list[str], int | None, str]:
    """What ``scale=smoke`` makes of a table, as its data set's file says.

    Returns:
        The table on other data, where the paper's numbers mean nothing; overrides; epochs, ``None``
        for the recipe's own; a description.

    Raises:
        UserError: the file says nothing.
    """
    plan = plain(compose([f"data={table.data}"]).data.get("plan")) or {}
    if "smoke" not in plan:
        raise UserError(
            f"scale: found smoke, but no plan.smoke in the file of data={table.data}, allowed "
            "is paper or short"
        )
    words, epochs = plan["smoke"], plan.get("smoke_epochs")
    data = [text.removeprefix("data=") for text in words if text.startswith("data=")]
    cells = tuple(replace(cell, paper={}) for cell in table.cells)
    length = f"{epochs} epochs with " if epochs else ""
    about = f"{plan.get('smoke_text', length + ' '.join(words))}, whatever the table's data set"
    table = replace(table, data=(data or [table.data])[0], cells=cells)
    if "smoke_metrics" in plan:  # of training itself: the table's test sets may not be there
        table = replace(table, metrics=tuple(plan["smoke_metrics"]), evaluation="")
        table = replace(table, quantity="value", quantities="values")
    return table, words, epochs, about


def _compose(
    table: Table, common: list[str], composed: Composed
) -> Iterator[tuple[Cell, DictConfig]]:
    """The config of each cell that has runs.

    Hydra takes a tenth of a second a config. So one is composed for all cells that differ in their
    pair only, and the networks are exchanged in it, which comes to the same unless a network's own
    values are overridden; and one for variants that differ in plain values, such as
    ``distiller.beta=2``.
    """

    def compose_cell(cell: Cell) -> DictConfig:
        values = [text for text in cell.overrides if re.match(r"[a-z_]+\.[\w.]+=", text)]
        words = (*(text for text in cell.overrides if text not in values), *common)
        if words not in composed:
            composed[words] = compose(list(words))
        config = composed[words].copy()
        read_values = {(found := read(text)).key_or_group: found.value() for text in values}
        known = all(OmegaConf.select(config, key) is not None for key in read_values)
        if not known:  # Hydra says what is wrong
            return compose([*cell.overrides, *common])
        for key, value in read_values.items():
            OmegaConf.update(config, key, value)
        return config

    alike = defaultdict(list)
    for cell in table.cells:
        if cell.overrides:
            alike[cell.method, cell.variant].append(cell)
    if len(table.pairs) == 1 or any(text.lstrip("+~").startswith(ROLES) for text in common):
        for cell in itertools.chain(*alike.values()):
            yield cell, compose_cell(cell)
        return
    networks = {pair: compose(pair_overrides(pair)) for pair in table.pairs}
    for cells in alike.values():
        first = compose_cell(cells[0])
        for cell in cells:
            config = first.copy()
            for role in ROLES:
                config[role] = networks[cell.pair][role]
            yield cell, config


def _scale(
    config: DictConfig, scale: str, epochs: int | None, overrides: Sequence[str] = ()
) -> tuple[DictConfig, list[str]]:
    """Shorten a config; also what does the same on a command line.

    Args:
        epochs: of ``scale=smoke``, ``None`` for the recipe's own.
        overrides: of every run.

    Raises:
        UserError: one of them sets what the scale sets.
    """
    if scale == "paper" or (scale == "smoke" and epochs is None):
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
    for text in overrides:
        key = read(text).key_or_group
        if key in values:
            raise UserError(
                f"overrides: found {text!r}, but scale={scale} sets {key} itself, allowed is "
                f"scale=paper, which leaves {key} to overrides"
            )
    config = config.copy()
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    return config, [f"{key}={written(value)}" for key, value in values.items()]


def _jobs(
    config: DictConfig, seeds: Sequence[int], overrides: Sequence[str], label: str
) -> dict[int, Job]:
    """The runs of one config with several seeds."""
    common, jobs = identity(config), {}
    teacher = _teacher_file(config) if "teacher" in common else None
    kind, saved = kind_of(config), _places(config, config.student.name)[0]
    for seed in seeds:
        identified = {**common, "seed": seed}
        jobs[seed] = Job(
            directory=Path(config.output_root) / name_of(identified),
            overrides=(*overrides, f"seed={seed}"),
            identified=identified,
            label=f"{label}, seed {seed}",
            kind=kind,
            teacher=teacher,
            saves=saved if config.save_teacher else None,
            answers=_answers(config) if teacher else None,
        )
    return jobs


def _answers(config: DictConfig) -> tuple[int, int] | None:
    """The views of a training image, and the bytes of a table of logits for all of them.

    ``None`` where the run takes no table (it compares features, or images are rotated), where it is
    told what to do (``teacher.table``), or where the file of the data does not say how large it is.
    """
    data, samples = config.data, OmegaConf.select(config, "data.plan.samples")
    free = config.teacher.get("table", "auto") == "auto" and config.distiller.get("logits_only")
    known = all(isinstance(x, int) for x in (samples, data.get("num_classes")))
    if not (free and known) or data.get("rotation", 1) or "crop_padding" not in data:
        return None
    views = (2 * data.crop_padding + 1) ** 2 * (2 if data.flip else 1)
    return views, 4 * views * samples * data.num_classes


def _teacher_file(config: DictConfig) -> Path:
    """The file of the teacher that a run takes: the one that is there, or that will be trained."""
    if config.teacher.checkpoint != "auto":
        return Path(config.teacher.checkpoint)
    places = _places(config, config.teacher.name)
    return next((path for path in places if is_model(path)), places[0])


def _places(config: DictConfig, name: str) -> list[Path]:
    """Where a model is kept as a teacher: a file, or a folder where the data's file says so."""
    root, data = Path(config.checkpoint_root), config.data.name
    if (plain(config.data.get("plan")) or {}).get("folders"):
        shipped = shipped_teacher(config) if name == config.teacher.name else None
        return [root / data / name, *([shipped] if shipped else [])]
    return teacher_files(root, data, name)


def is_model(path: Path) -> bool:
    """Whether a file of weights lies there, or a folder that ``save_pretrained`` wrote."""
    return path.is_file() or (path / "config.json").is_file()


def _has_teacher(config: DictConfig) -> bool:
    """Whether ``teacher.checkpoint`` leads to a file, here or behind a link."""
    if config.teacher.checkpoint != "auto":
        return True
    data, name = config.data.name, config.teacher.name
    entry = manifest_entry(MANIFEST, data, name)
    return any(map(is_model, _places(config, name))) or bool(
        entry.get("url") and entry.get("sha256")
    )


def _teacher_job(
    name: str, config: DictConfig, table: Table, common: list[str], scale: str, epochs: int | None
) -> Job:
    """The run that trains a teacher as ``docs/recipes.md`` says, or its data set's file."""
    own = (plain(config.data.get("plan")) or {}).get("teacher", [])
    trained = any(text.startswith("distiller=") for text in own)  # by a method of its own
    overrides = [f"student={name}", *([] if trained else method_overrides("none", table.group))]
    overrides += [*own, *of_teacher(common)]
    if "pretrained" in config.teacher and scale != "smoke":
        overrides = [text for text in overrides if not text.startswith("recipe=")]
        overrides += ["recipe=finetune", "student.pretrained=true"]
    overrides += ["save_teacher=true"]
    composed, scaled = _scale(compose(overrides), scale, epochs)
    return _jobs(composed, [0], [*overrides, *scaled], f"teacher {name}")[0]
