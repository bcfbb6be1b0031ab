"""One run from its composed config: build everything, train, leave a record."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from eakd.config import (
    check_domain,
    config_hash,
    identity,
    method_label,
    needs_teacher,
    weighting_kind,
)
from eakd.errors import (
    Diverged,
    Interrupted,
    UserError,
)
from eakd.files import write_atomically
from eakd.targets import build, target_of
from eakd.training.device import Compute
from eakd.training.environment import environment
from eakd.training.loop import fit
from eakd.training.parallel import ALONE, Processes
from eakd.training.protocol import describe_protocol
from eakd.training.record import RunRecord
from eakd.training.recording import Recording
from eakd.training.save_teacher import save_teacher, save_teacher_folder
from eakd.training.schedule import Recipe
from eakd.training.state import repair_lines
from eakd.training.task import Built, load_task
from eakd.training.tracking import NoTracking
from eakd.weighting import WeightFunction

log = logging.getLogger(__name__)


def build_compute(config: DictConfig, processes: Processes = ALONE) -> Compute:
    """The device and precision of ``configs/compute.yaml``'s keys; a GPU for each process."""
    compute = Compute.create(
        device=processes.device(config.device),
        precision=config.precision,
        compile=config.compile,
        channels_last=config.channels_last,
        threads=config.threads,
        processes=processes,
    )
    if processes.size > 1 and compute.device.type == "cuda":
        torch.cuda.set_device(compute.device)
    return compute


def build_weighting(config: DictConfig, compute: Compute) -> Any:
    """The weighting of ``config.weighting``, over the batches of all processes."""
    target = target_of(config.weighting, "weighting", WeightFunction)
    shared = compute.processes.size > 1 and "batch_mean" in inspect.signature(target).parameters
    extra = {"batch_mean": compute.processes.mean} if shared else {}
    return build(config.weighting, "weighting", WeightFunction, **extra)


def check_num_classes(config: DictConfig, found: int) -> None:
    """Refuse a ``data.num_classes`` that is not what the set turned out to have.

    Raises:
        UserError: with both numbers.
    """
    expected = config.data.get("num_classes")
    if expected is not None and expected != found:
        raise UserError(
            f"data.num_classes: found {expected}, allowed is {found}, "
            f"the number of classes of {config.data.name}"
        )


Pictures = Callable[[Path], Mapping[str, bytes]]


def run(config: DictConfig, pictures: Pictures | None = None) -> dict[str, Any] | None:
    """Train what ``config`` describes, or return the summary if that is already done.

    Under torchrun, all processes train one model together. The first one writes, returns and
    raises; the others return None.

    Args:
        pictures: of a finished run's directory, for trackers: ``{name: image file}``.

    Raises:
        UserError: a wrong value, named; nothing has been written then.
        Locked: another process works in the run's directory.
        Diverged, Interrupted: see `fit`.
    """
    processes = Processes.launched()
    if processes.first:
        return _run(config, processes, pictures)
    try:
        _run(config, processes, None)
    except (UserError, Diverged):
        return None  # the first process raises the same, and one line is enough
    except Interrupted:
        raise SystemExit(0) from None  # a sweep ends too
    return None


def _run(config: DictConfig, processes: Processes, pictures: Pictures | None) -> dict[str, Any]:
    record = processes.in_turn(
        lambda: RunRecord(
            config.run_dir, identity(config), writes=processes.first, fresh=not config.resume
        )
    )
    # Before anything is built: a sweep that is launched again skips a finished run in no time, even
    # where neither data nor teacher lie any more.
    summary = processes.from_first(lambda: record.summary)
    if config.resume and summary is not None:
        processes.in_turn(lambda: check_finished(config, record))
        log.info("finished before: %s", record.directory)
    else:
        summary = _train(config, record, processes, pictures)
    if config.save_teacher and record.writes:
        save_as_teacher(config, record)
    return summary


def _train(
    config: DictConfig, record: RunRecord, processes: Processes, pictures: Pictures | None
) -> dict[str, Any]:
    began = time.perf_counter()
    # Everything that can be wrong is built before anything is written, cheap things first: a
    # refusal leaves no trace, and comes before the data is decoded.
    check_domain(config)
    recipe = build(config.recipe, "recipe", Recipe)
    recording = build(config.record, "record", Recording)
    recording.snapshot_epochs(recipe.epochs)
    recording.sample_epochs(recipe.epochs)
    tracker = build(config.tracking, "tracking", NoTracking) if processes.first else NoTracking()
    compute = processes.in_turn(lambda: build_compute(config, processes))
    task = load_task(config.data.get("task"))
    # In turn: the first process may download and fill caches, which the others then find.
    built = processes.in_turn(lambda: task.build(config, recipe, compute))

    inputs = {"data_fingerprint": built.data.fingerprint, **built.inputs}
    processes.in_turn(lambda: record.check_inputs(inputs))

    log.info("%s", describe_protocol(config))
    with processes.in_turn(record.begin):
        summary = processes.from_first(lambda: record.summary)
        if summary is not None:  # finished by another process since the first look
            return summary
        write_hydra_files(record, config)
        # Here and not at the end: a run that fails must tell where it ran.
        record.write_environment(
            device=str(compute.device), precision=compute.precision, **built.notes | inputs
        )
        try:
            names = start_tracking(tracker, record, config)
            result = fit(
                built.distiller,
                built.data,
                recipe,
                compute,
                record,
                task=task,
                seed=config.seed,
                tracker=tracker,
                progress=config.progress,
                recording=recording,
                teacher_entropy=built.teacher_entropy,
                inputs=inputs,
            )
            summary = {
                **names,
                "recipe": recipe.name,
                **result,
                **{f"teacher_{name}": value for name, value in built.teacher.items()},
                **describe_computation(built, compute),
                "seconds": time.perf_counter() - began,
                "config_hash": config_hash(record.config),
                "environment": environment(),
            }
            record.finish(summary)
            if pictures is not None:
                tracker.show(lambda: pictures(record.directory))
        finally:  # a tracker that is never closed keeps its process alive
            tracker.finish(summary)
    first = next(iter(task.metrics))
    log.info(
        "%s: last %.2f, best %.2f %s (epoch %d, chosen on %s) in %s",
        names["method"],
        summary[f"{first}_last"],
        summary[f"{first}_best"],
        task.metrics[first],
        summary[f"{first}_best_epoch"],
        summary["selection"],
        record.directory,
    )
    return summary


def validated(summary: Mapping[str, Any] | None) -> float | None:
    """The best epoch's first metric on the validation split, ``None`` of a run that has none."""
    first = next(iter((summary or {}).get("metrics", ())), None)
    return (summary or {}).get(f"val_{first}_best")


def check_finished(config: DictConfig, record: RunRecord) -> None:
    """Whether what a finished run was made from is still what lies there.

    Raises:
        UserError: something else does: the result on record is not that of this command.
    """
    try:
        inputs = load_task(config.data.get("task")).inputs(config)
    except UserError as error:  # moved away, perhaps: the result on record stands
        log.warning("not compared with what it was made from: %s", error)
    else:
        record.check_inputs(inputs)
    if record.writes:
        repair_lines(record)
        record.heal()


def start_tracking(
    tracker: NoTracking, record: RunRecord, config: DictConfig
) -> dict[str, str | int | None]:
    """Tell the tracker of a run that begins; returns what the run is called."""
    label = method_label(config)
    names = {
        "data": config.data.name,
        "teacher": config.teacher.name if needs_teacher(config) else None,
        "student": config.student.name,
        "method": label,
        "weighting": weighting_kind(config),
        "seed": config.seed,
    }
    pair = "-".join(name for name in (names["teacher"], names["student"]) if name)
    tracker.start(
        record.directory,
        record.config,
        name=f"{label} {pair} seed {config.seed}",
        group=f"{names['data']} {pair}",
    )
    return names


def describe_computation(built: Built, compute: Compute) -> dict[str, Any]:
    """How a run was computed, and of what."""
    return {
        "parameters": sum(p.numel() for p in built.distiller.student.parameters()),
        "peak_memory_bytes": compute.peak_memory(),
        "device": str(compute.device),
        "processes": compute.processes.size,
        "precision": compute.precision,
        **built.notes,
    }


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


def save_as_teacher(config: DictConfig, record: RunRecord) -> None:
    """Keep the finished student where ``teacher.checkpoint=auto`` looks; see `save_teacher`."""
    metrics = (record.summary or {}).get("metrics") or load_task(config.data.get("task")).metrics
    # A task that exports folders keeps the epoch that its selection chose.
    folder = record.directory / "best"
    save = save_teacher_folder if folder.is_dir() else save_teacher
    save(
        folder if folder.is_dir() else record.directory / "last.safetensors",
        Path(config.checkpoint_root),
        config.data.name,
        config.student.name,
        metric=f"test_{next(iter(metrics))}",
    )
