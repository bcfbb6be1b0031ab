"""One run from its composed config: build everything, train, leave a record."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from eakd.config import ROOT, config_hash, identity, method_label, plain
from eakd.data import Pipeline
from eakd.data.pipeline import StrongView
from eakd.data.randaugment import randaugment
from eakd.distillers.base import Distiller
from eakd.errors import Diverged, Interrupted, UserError, check_choice, check_number
from eakd.files import write_atomically
from eakd.models.zoo import load_weights
from eakd.training.device import Compute
from eakd.training.evaluation import evaluate
from eakd.training.find_teacher import find_checkpoint, manifest_entry
from eakd.training.loop import fit
from eakd.training.parallel import ALONE, Processes, synchronize_batchnorm
from eakd.training.record import RunRecord, environment
from eakd.training.schedule import Recipe
from eakd.training.teacher import load_teacher
from eakd.training.tracking import NoTracking
from eakd.weighting import Weighting

log = logging.getLogger(__name__)

STRONG_VIEWS = {"none": None, "randaugment": randaugment}


def build(node: DictConfig, key: str, *, leave_out: tuple[str, ...] = (), **extra: Any) -> Any:
    """Instantiate a config node; a `UserError` of its constructor names the full config key."""
    arguments = {k: v for k, v in plain(node).items() if k not in leave_out}
    target = get_object(arguments.pop("_target_"))
    try:
        return target(**arguments, **extra)
    except UserError as error:
        raise UserError(f"{key}.{error}") from error


def build_compute(config: DictConfig, processes: Processes = ALONE) -> Compute:
    """The device and precision of ``configs/compute.yaml``'s keys; a GPU for each process."""
    device = processes.device(config.device)
    compute = Compute.create(
        *(device, config.precision, config.compile, config.channels_last, config.threads)
    )
    if processes.size > 1 and compute.device.type == "cuda":
        torch.cuda.set_device(compute.device)
    return compute


def strong_view(recipe: Recipe, method: type[Distiller]) -> StrongView | None:
    """The augmentation of the second view that ``recipe`` asks for, or ``None`` for no such view.

    Raises:
        UserError: ``method`` needs a second view and ``recipe`` has none.
    """
    name = recipe.strong_view
    if name == "auto":
        name = "randaugment" if method.needs_strong_view else "none"
    method.check_strong_view(name != "none")
    return STRONG_VIEWS[name]


def build_data(
    config: DictConfig,
    seed: int,
    batch_size: int,
    compute: Compute,
    view: StrongView | None = None,
    part: tuple[int, int] = (0, 1),
) -> Pipeline:
    """The data set and its device pipeline from ``config.data``."""
    data = build(config.data.load, "data")
    expected = config.data.num_classes
    if expected is not None and expected != data.num_classes:
        raise UserError(
            f"data.num_classes: found {expected}, allowed is {data.num_classes}, "
            f"the number of classes of {config.data.name}"
        )
    keys = ("mean", "std", "crop_padding", "flip", "rotation", "val_fraction")
    try:
        return Pipeline(
            data,
            batch_size=batch_size,
            device=compute.device,
            seed=seed,
            strong_view=view,
            part=part,
            **{key: plain(config.data[key]) for key in keys},
        )
    except UserError as error:
        raise UserError(f"data.{error}") from error


def build_model(node: DictConfig, role: str, num_classes: int) -> Any:
    """The network of ``config.student`` or ``config.teacher``."""
    return build(node, role, leave_out=("name", "checkpoint"), num_classes=num_classes)


def build_distiller(
    config: DictConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    weighting: Weighting,
    image_size: int,
    compute: Compute,
) -> Distiller:
    """The method of ``config.distiller`` around networks that are already on the device."""
    parts: dict[str, Any] = {"student": student, "teacher": teacher, "weighting": weighting}
    method = get_object(config.distiller._target_)
    if "image_size" in inspect.signature(method).parameters:  # modules sized by a dry run
        parts["image_size"] = image_size
    distiller = build(config.distiller, "distiller", leave_out=("name",), **parts)
    return compute.move(distiller)  # what the method trains besides the student


def write_hydra_files(record: RunRecord, config: DictConfig) -> None:
    """``.hydra/``: the composed config, the overrides and Hydra's own settings."""
    if not record.writes:
        return
    directory = record.directory
    files = {"config.yaml": config}
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    # A run started by another application, such as quickstart, has no command line of its own.
    if hydra is not None and Path(hydra.runtime.output_dir) == directory.absolute():
        files |= {"overrides.yaml": hydra.overrides.task, "hydra.yaml": hydra}
    for name, node in files.items():
        # Resolved, so that the file says what was run even when a published value is corrected.
        text = OmegaConf.to_yaml(node, resolve=node is config)
        write_atomically(directory / ".hydra" / name, lambda path, text=text: path.write_text(text))


class Parts(NamedTuple):
    """Everything that a run is built of."""

    recipe: Recipe
    compute: Compute
    data: Pipeline
    distiller: Distiller
    teacher_accuracy: dict[str, float]
    tracker: NoTracking


def build_parts(config: DictConfig, processes: Processes = ALONE) -> Parts:
    """All of a run, before anything is written.

    Raises:
        UserError: a wrong value, named.
    """
    recipe = build(config.recipe, "recipe")
    together = processes.size > 1
    shared = {"batch_mean": processes.mean} if together else {}
    weighting = build(config.weighting, "weighting", **shared)
    tracker = build(config.tracking, "tracking")
    compute = build_compute(config, processes)
    check_choice("sync_batchnorm", config.sync_batchnorm, (True, False))
    if config.sync_batchnorm and compute.device.type != "cuda":
        raise UserError(
            f"sync_batchnorm: found true on {compute.device.type}, allowed is false, or true on "
            "cuda"
        )
    synchronize = config.sync_batchnorm and together
    method = get_object(config.distiller._target_)
    view = strong_view(recipe, method)
    data = build_data(config, config.seed, recipe.batch_size, compute, view, processes.part)
    torch.manual_seed(config.seed)
    student = build_model(config.student, "student", data.num_classes)
    if synchronize:
        student = synchronize_batchnorm(student)
    student = compute.place(student)
    teacher, teacher_accuracy = None, {}
    if method_label(config) != "none":
        fold = config.fold_batchnorm and method.folds_teacher
        teacher, teacher_accuracy = build_teacher(config, data, compute, fold)
    distiller = build_distiller(config, student, teacher, weighting, data.image_size, compute)
    if synchronize:  # what the method trains besides the student, which it may hold lists of
        for name, module in distiller.named_children():
            if module is not student:
                setattr(distiller, name, synchronize_batchnorm(module))
    return Parts(recipe, compute, data, distiller, teacher_accuracy, tracker)


def run(config: DictConfig) -> dict[str, Any] | None:
    """Train what ``config`` describes, or return the summary if that is already done.

    Under torchrun, all processes train one model together. The first one writes, returns and
    raises; the others return None.

    Raises:
        UserError: a wrong value, named; nothing has been written then.
        Locked: another process works in the run's directory.
        Diverged, Interrupted: see `fit`.
    """
    processes = Processes.launched()
    if processes.first:
        return _run(config, processes)
    try:
        _run(config, processes)
    except (UserError, Diverged):  # the first process raises the same
        return None
    except Interrupted:
        raise SystemExit(0) from None  # a sweep ends too
    return None


def _run(config: DictConfig, processes: Processes) -> dict[str, Any]:
    check_number("seed", config.seed, at_least=0, integer=True)
    record = processes.in_turn(
        lambda: RunRecord(config.run_dir, identity(config), writes=processes.first)
    )
    with closing(record):
        return _recorded_run(config, record, processes)


def _recorded_run(
    config: DictConfig, record: RunRecord, processes: Processes
) -> dict[str, Any] | None:
    finished = processes.from_first(lambda: record.summary)
    if config.resume and finished is not None:
        log.info("finished before: %s", record.directory)
        if config.save_teacher:
            save_as_teacher(config, record)
        return finished
    began = time.perf_counter()

    # Everything that can be wrong is built before anything is written.
    recipe, compute, data, distiller, teacher_accuracy, tracker = processes.in_turn(
        lambda: build_parts(config, processes)
    )
    if not processes.first:
        tracker = NoTracking()

    processes.in_turn(lambda: record.begin(fresh=not config.resume))
    finished = processes.from_first(lambda: record.summary)
    if finished is not None:  # by another process since the first look
        return finished
    write_hydra_files(record, config)
    record.write_environment(device=str(compute.device), precision=compute.precision)
    label = method_label(config)
    names = {
        "data": config.data.name,
        "teacher": None if distiller.teacher is None else config.teacher.name,
        "student": config.student.name,
        "method": label,
        "weighting": config.weighting.kind,
        "seed": config.seed,
    }
    pair = "-".join(name for name in (names["teacher"], names["student"]) if name)
    tracker.start(
        record.directory,
        record.config,
        name=f"{label} {pair} seed {config.seed}",
        group=f"{names['data']} {pair}",
    )
    summary = None
    try:
        result = fit(
            distiller,
            data,
            recipe,
            compute,
            record,
            seed=config.seed,
            tracker=tracker,
            progress=config.progress,
            processes=processes,
        )
        summary = {
            **names,
            "recipe": recipe.name,
            "epochs": recipe.epochs,
            **result,
            **{f"teacher_{name}": value for name, value in teacher_accuracy.items()},
            "parameters": sum(p.numel() for p in distiller.student.parameters()),
            "seconds": time.perf_counter() - began,
            "peak_memory_bytes": compute.peak_memory(),
            "config_hash": config_hash(record.config),
            "data_fingerprint": data.fingerprint,
            "device": str(compute.device),
            "processes": processes.size,
            "precision": compute.precision,
            "environment": environment(),
        }
        record.write_summary(summary)
        record.set_status("finished")
    except (Interrupted, SystemExit):  # some handlers of SIGTERM exit
        record.set_status("interrupted")
        raise
    except Exception as error:
        state = "diverged" if isinstance(error, Diverged) else "failed"
        with contextlib.suppress(OSError):  # the error may be a full disk
            record.set_status(state, error=str(error))
        raise
    finally:
        tracker.finish(summary)
    if config.save_teacher:
        save_as_teacher(config, record)
    log.info(
        "%s: last %.2f %%, best %.2f %% (epoch %d, chosen on %s) in %s",
        *(label, summary["top1_last"], summary["top1_best"], summary["top1_best_epoch"]),
        *(summary["selection"], record.directory),
    )
    return summary


def save_as_teacher(config: DictConfig, record: RunRecord) -> None:
    """Copy the finished student to where ``teacher.checkpoint=auto`` looks."""
    if not record.writes:
        return
    folder = Path(config.checkpoint_root) / config.data.name
    target = folder / f"{config.student.name}.safetensors"
    source = record.directory / "last.safetensors"
    write_atomically(target, lambda path: shutil.copyfile(source, path))
    log.info("saved %s", target)


def build_teacher(
    config: DictConfig, data: Pipeline, compute: Compute, fold: bool
) -> tuple[Any, dict[str, float]]:
    """The trained teacher of ``config.teacher`` and its test accuracy."""
    root = Path(config.checkpoint_root)
    name = config.teacher.name
    entry = manifest_entry(ROOT / "checkpoints" / "manifest.yaml", config.data.name, name)
    path = find_checkpoint(config.teacher.checkpoint, config.data.name, name, root, entry)
    model = build_model(config.teacher, "teacher", data.num_classes)
    # The published accuracy belongs to the zoo's files, not to teachers trained here.
    expected = None if path.suffix == ".safetensors" else entry.get("top1")
    return load_teacher(model, path, data, compute, fold, expected, cache=root / "evaluations")


def evaluate_checkpoint(config: DictConfig) -> dict[str, float]:
    """Test accuracy of ``config.checkpoint``; printed, and returned in percent."""
    compute = build_compute(config)
    data = build_data(config, seed=0, batch_size=config.batch_size, compute=compute)
    model = build_model(config.model, "model", data.num_classes)
    root, name = Path(config.checkpoint_root), config.model.name
    entry = manifest_entry(ROOT / "checkpoints" / "manifest.yaml", config.data.name, name)
    path = find_checkpoint(config.checkpoint, config.data.name, name, root, entry)
    load_weights(model, path)
    result = evaluate(compute.place(model), data.evaluation("test"), compute)
    print(f"{path}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {data.name} test")
    return result
