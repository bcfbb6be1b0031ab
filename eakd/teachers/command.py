"""``scripts/teachers.py``: list, fetch, train and check the teachers of the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eakd.classification.build import MANIFEST, build_data, build_model
from eakd.classification.evaluation import evaluate
from eakd.classification.teacher import TOLERANCE
from eakd.composing import compose, options
from eakd.config import plain
from eakd.errors import UserError, check_boolean, check_choice, check_text, shortened
from eakd.models.weights import load_weights
from eakd.reproduce.escaping import one_line, printable
from eakd.reproduce.launch import launch
from eakd.teachers.fetch import Measure, fetch
from eakd.teachers.teacher import Teacher, needed
from eakd.training.find_teacher import weights_digest
from eakd.training.hints import teacher_command, teacher_overrides
from eakd.training.run import build_compute
from eakd.training.save_teacher import recorded
from eakd.training.schedule import Recipe

# Seeds differ by tenths: a teacher trained here is amiss if it is further than this (percentage
# points) below the published accuracy, or below the one in its own header.
TRAINED_TOLERANCE = 1.0


def teachers(config: DictConfig, manifest: Path = MANIFEST) -> None:
    """Do what ``configs/teachers.yaml`` describes, and print it.

    Args:
        manifest: what is published.

    Raises:
        UserError: a wrong value; or, after all others were done, teachers that could not be
            fetched or trained, or that are not what they should be.
    """
    check_choice("mode", config.mode, ("list", "fetch", "train", "check"))
    check_boolean("replace", config.replace)
    _check_texts("overrides", plain(config.overrides))
    if config.mirrors is not None:
        _check_texts("mirrors", plain(config.mirrors), at_least=1)
    if config.archive is not None:
        check_text("archive", config.archive)
    root, data = Path(config.checkpoint_root), config.data.name
    wanted = {data: _chosen(config)}
    if config.mode == "list" and config.teachers is None:
        published = yaml.safe_load(manifest.read_text(encoding="utf-8"))
        wanted = {each: needed(each) for each in published} | wanted
    found = [
        Teacher.listed(manifest, root, each, name)
        for each, names in wanted.items()
        for name in names
    ]
    if config.mode == "list":
        print(printable(_table(found)))
        return
    work: Callable[[DictConfig, list[Teacher]], Mapping[str, str]]
    work = {"fetch": _fetch, "train": _train, "check": _check}[config.mode]
    problems = work(config, found)
    if problems:  # the same reason of several is told once
        reasons = "; ".join(dict.fromkeys(problems.values()))
        raise UserError(f"{len(problems)} of {len(found)} teachers failed: {one_line(reasons)}")


def _check_texts(key: str, value: object, at_least: int = 0) -> None:
    """Raise `UserError` unless ``value`` is a list of so many texts."""
    listed = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not listed or len(value) < at_least:
        raise UserError(f"{key}: found {shortened(value)}, allowed is a list of texts")


def _chosen(config: DictConfig) -> list[str]:
    """The teachers that were asked for, by default those that are needed."""
    names = plain(config.teachers)
    if names is None:
        return needed(config.data.name)
    _check_texts("teachers", names, at_least=1)
    for name in names:
        check_choice("teachers", name, options("model"))
    return list(dict.fromkeys(names))


def _table(found: Sequence[Teacher]) -> str:
    rows = [("data", "teacher", "published", "recorded", "digest", "source")]
    rows += [(t.data, t.name, _percent(t.top1), *_state(t)) for t in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _state(teacher: Teacher) -> tuple[str, str, str]:
    """Accuracy on record, digest of the weights, and where they are from."""
    path, pin = teacher.file, teacher.pin()
    if path is None:
        return "-", "-", f"absent: mode={'fetch' if teacher.member else 'train'}"
    digest = weights_digest(path)
    if pin and digest in (pin["weights"], pin["sha256"]):
        return _percent(pin["top1"]), digest[:12], str(pin["source"])
    ours = "trained here" if path.suffix == ".safetensors" else "a file put here"
    source = "other weights than pinned" if pin else ours
    return _percent(recorded(path, "test_top1")), digest[:12], source


def _percent(top1: float | None) -> str:
    return "-" if top1 is None else f"{top1:.2f}"


def _fetch(config: DictConfig, found: Sequence[Teacher]) -> dict[str, str]:
    problems, todo = {}, []
    for teacher in found:
        if teacher.file is not None and not config.replace:
            again = "; replace=true fetches it all the same" if teacher.member else ""
            print(f"{teacher.name}: there already, {teacher.file}{again}")
            try:
                teacher.check_pin()
            except UserError as error:
                problems[teacher.name] = str(error)
        elif teacher.member is not None:
            todo.append(teacher)
        elif config.teachers is not None or not any(each.member for each in found):
            problems[teacher.name] = f"{teacher.name} is not published for {teacher.data}: train it"
    if todo:
        archive = None if config.archive is None else Path(config.archive)
        problems |= fetch(todo, _measure(config), archive, plain(config.mirrors))
    for teacher in found:
        if teacher.file is None:
            command = teacher_command(_with_model(config, teacher.name), teacher.train)
            print(f"{teacher.name}: absent; train it with: {command}")
    return problems


def _train(config: DictConfig, found: Sequence[Teacher]) -> dict[str, str]:
    absent = [teacher for teacher in found if teacher.file is None]
    jobs = [training(config, teacher) for teacher in absent]
    for job in jobs:
        compose(job)  # a wrong override is told before anything is trained
    # With the launcher that was chosen on the command line.
    chosen = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    failures = launch(jobs, list(chosen))
    for teacher in found:
        if teacher.file is not None:
            print(f"{teacher.name}: {teacher.file}")
    return {
        teacher.name: f"{teacher.name}: {failure or 'another process trains it'}"
        for teacher, failure in zip(absent, failures, strict=True)
        if teacher.file is None
    }


def training(config: DictConfig, teacher: Teacher) -> list[str]:
    """The overrides of the run that trains a teacher: the one that ``reproduce`` would take."""
    words = teacher_overrides(_with_model(config, teacher.name))
    return [*words, *teacher.train, *plain(config.overrides)]


def _check(config: DictConfig, found: Sequence[Teacher]) -> dict[str, str]:
    there = [teacher for teacher in found if teacher.file is not None]
    if not there:
        raise UserError(
            f"checkpoint_root: found none of {', '.join(each.name for each in found)} in "
            f"{found[0].root / found[0].data}, allowed is a folder that has one: mode=fetch, train"
        )
    measure, problems = _measure(config), {}
    for teacher in there:
        top1, verdict = None, "ok"
        try:
            top1 = measure(teacher.name, teacher.file)[1]["top1"]
            teacher.check_pin()
            _check_accuracy(teacher, teacher.file, top1)
        except UserError as error:
            problems[teacher.name], verdict = str(error), "FAILED"
        print(f"{teacher.name}: {_percent(top1)}, published {_percent(teacher.top1)}: {verdict}")
    return problems


def _check_accuracy(teacher: Teacher, path: Path, top1: float) -> None:
    """Raise `UserError` if a teacher is not as good as it should be."""
    lowest, highest, own = 0.0, 100.0, recorded(path, "test_top1")
    if path.suffix == ".pth" or teacher.pin() is not None:  # the published weights themselves
        if teacher.top1 is not None:
            lowest, highest = teacher.top1 - TOLERANCE, teacher.top1 + TOLERANCE
    else:
        lowest = max([x for x in (own, teacher.top1) if x is not None], default=0.0)
        lowest -= TRAINED_TOLERANCE
    if not round(lowest, 2) <= round(top1, 2) <= round(highest, 2):
        raise UserError(
            f"{path}: reaches {top1:.2f} % top-1, allowed is {lowest:.2f} to {highest:.2f}"
        )


def _measure(config: DictConfig) -> Measure:
    """Evaluates weights on the test images of ``config.data``, which it reads at once."""
    compute, recipe = build_compute(config), Recipe(epochs=1, batch_size=config.batch_size)
    try:
        data = build_data(config, seed=0, compute=compute, recipe=recipe)
    except UserError as error:
        raise UserError(
            f"{error}; no accuracy can be checked without the test images of {config.data.name}"
        ) from error

    def measure(name, path):
        model = build_model(_with_model(config, name).model, "model", data.num_classes)
        load_weights(model, path)
        return model, evaluate(compute.place(model), data.evaluation("test"), compute)

    return measure


def _with_model(config: DictConfig, name: str) -> DictConfig:
    """The config of an evaluation, as `teacher_overrides` wants it."""
    model = compose([f"model={name}"], "evaluate").model
    raw = OmegaConf.to_container(config)
    return OmegaConf.create({**raw, "model": OmegaConf.to_container(model)})
