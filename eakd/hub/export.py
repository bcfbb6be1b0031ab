"""``scripts/export.py``: a finished run's student as a folder that anybody opens."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import nn

from eakd import __version__
from eakd.data import ImageData
from eakd.errors import UserError, check_boolean, check_choice, check_folder, check_text, shortened
from eakd.files import write_folder, write_json, write_text
from eakd.hub.card import Facts, card
from eakd.hub.folder import (
    BOXES,
    CARD,
    CONFIG,
    FORMAT,
    IMAGES,
    SECTION,
    TEXT,
    WEIGHTS,
    build_network,
    describe_network,
    digests,
)
from eakd.hub.remote import check_push, push
from eakd.models.timm_models import TimmModel
from eakd.models.weight_files import TIED
from eakd.models.weights import load_weights, save_weights
from eakd.targets import build
from eakd.training.reading import read_object, read_summary

log = logging.getLogger(__name__)

CATEGORIES = "categories"  # in the header of a detector's weights


class Finished(NamedTuple):
    """A run that can be exported.

    Attributes:
        weights: a file, or the folder of a language model.
        which: ``last`` or ``best``.
        metadata: what is written beside the weights: the metrics they were measured at.
    """

    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    weights: Path
    which: str
    metadata: dict[str, str]


def export(config: DictConfig) -> Path:
    """Write what ``configs/export.yaml`` describes, and upload it if that is asked for.

    Returns:
        The folder.

    Raises:
        UserError: a wrong value, no finished run, or a folder that is taken; nothing has been
            written then. An upload that fails leaves the folder whole.
    """
    check_choice("which", config.which, ("auto", "last", "best"))
    check_boolean("overwrite", config.overwrite)
    check_boolean("private", config.private)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(config.license)):
        raise UserError(
            f"license: found {shortened(config.license)}, allowed is an identifier of the hub's, "
            "such as mit, cc-by-4.0, other or unknown"
        )
    check_folder("to", config.to)
    if config.push is not None:
        check_push(config.push)
    run, to = open_run(config.run, config.which), Path(config.to)
    check_free(to, config.overwrite)
    write = write_directory if run.weights.is_dir() else write_network
    write_folder(to, lambda folder: write(run, folder, str(config.license)))
    metric, heading = next(iter(run.summary["metrics"].items()))
    value = run.summary[f"{metric}_{run.which}"]
    print(f"{to}: {run.weights}, {value:.2f} {heading} in the {run.which} epoch")
    if config.push is not None:
        print(push(to, config.push, config.private))
    return to


def check_free(to: Path, overwrite: bool) -> None:
    """Refuse to write where something lies that may not be replaced.

    Raises:
        UserError: it is not empty, or not an export.
    """
    if not to.is_dir() or not os.listdir(to):
        return
    if not overwrite:
        raise UserError(
            f"to: found {to}, which is not empty, allowed is a new folder, or overwrite=true"
        )
    try:
        ours = SECTION in (read_object(to / CONFIG) or {})
    except UserError:
        ours = False
    if not ours:
        raise UserError(
            f"to: found {to}, which no export has written, allowed with overwrite=true is an export"
        )


def open_run(place: object, which: str = "auto") -> Finished:
    """A finished run and the weights of one of its epochs.

    Args:
        place: its directory, or a glob of one.
        which: ``last`` or ``best``; ``auto`` is ``last`` as in tables, and ``best`` of language
            models, whose best epoch is what becomes a teacher.

    Raises:
        UserError: no finished run of a command, or no such weights.
    """
    check_text("run", place)
    found = [str(place)] if os.path.isdir(str(place)) else glob.glob(str(place))
    if len(found) > 1:
        raise UserError(f"run: found {len(found)} directories in {place!r}, allowed is one")
    directory = Path(*found or [str(place)])
    config, summary = read_object(directory / CONFIG), read_summary(directory)
    if config is None or summary is None:
        raise UserError(
            f"run: found no finished run in {directory}, allowed is the directory of one, with "
            f"{CONFIG} and summary.json"
        )
    parts = [config.get(key) for key in ("student", "data", "recipe", "distiller")]
    if not all(isinstance(part, dict) for part in parts) or "metrics" not in summary:
        raise UserError(
            f"run: found a run in {directory} whose {CONFIG} names no network, allowed is one that "
            "a command has trained"
        )
    if which == "auto":
        which = "best" if (directory / "best").is_dir() else "last"
    folder, file = directory / which, directory / f"{which}.safetensors"
    weights = folder if folder.is_dir() else file
    if not weights.exists():
        raise UserError(f"run: found no {file}, allowed is a run that kept its weights")
    metadata = header(weights)
    for name in summary["metrics"]:
        found, wanted = metadata.get(f"test_{name}"), summary[f"{name}_{which}"]
        if found is not None and found != str(wanted):
            raise UserError(
                f"run: found weights in {weights} with {name} {shortened(found)}, allowed are "
                f"those of summary.json, with {wanted}"
            )
    return Finished(directory, config, summary, weights, which, metadata)


def header(weights: Path) -> dict[str, str]:
    """What was noted beside weights: metrics, epoch, categories.

    Raises:
        UserError: the file is damaged.
    """
    if weights.is_dir():
        return read_object(weights / "eakd.json") or {}
    try:
        with safe_open(weights, "pt") as file:
            return {k: v for k, v in (file.metadata() or {}).items() if k != TIED}
    except (SafetensorError, OSError) as error:
        raise UserError(f"run: found a damaged file {weights} ({error})") from error


def write_network(run: Finished, folder: Path, license: str) -> None:
    """The folder of an image network or a detector."""
    network = describe_network(run.config["student"])
    data, classes = run.config["data"], None
    categories = json.loads(run.metadata[CATEGORIES]) if CATEGORIES in run.metadata else None
    size = None
    if categories is None:
        classes, size = about_images(run)
    found = categories or classes
    count = len(found) if found else data.get("num_classes")
    if count is None:
        raise UserError(
            f"run: found no number of classes for {run.directory}, allowed is a run whose data is "
            "where it was"
        )
    model = build_network(network, count, "student", own_code=True)  # it is the user's own
    load_weights(model, run.weights)
    detects = callable(getattr(model, "detect", None))
    described: dict[str, Any] = {
        **_section(run, BOXES if detects else IMAGES),
        "network": network,
        "num_classes": count,
    }
    if detects:
        described |= {
            "categories": categories or [(k, str(k)) for k in range(1, count + 1)],
            "short_side": data.get("test_short_side"),
            "long_side": data.get("long_side"),
        }
    else:
        described |= {
            "classes": classes,
            "image_size": size,
            "mean": data.get("mean"),
            "std": data.get("std"),
        }
    plain: nn.Module = model.model if isinstance(model, TimmModel) else model
    folder.mkdir()
    save_weights(plain, folder / WEIGHTS, run.metadata)
    timms = timm_keys(model, classes) if isinstance(model, TimmModel) else {}
    library = "timm" if timms else "eakd"
    _describe(run, folder, described, {"library_name": library, **timms}, library, license)


def write_directory(run: Finished, folder: Path, license: str) -> None:
    """The folder of a language model, which transformers opens: the run's, and the card."""
    shutil.copytree(run.weights, folder)
    (folder / "eakd.json").unlink(missing_ok=True)  # the card tells it
    kept = read_object(folder / CONFIG) or {}
    _describe(run, folder, _section(run, TEXT), kept, "transformers", license)


def _section(run: Finished, task: str) -> dict[str, Any]:
    metrics = {name: run.summary[f"{name}_{run.which}"] for name in run.summary["metrics"]}
    return {
        "format": FORMAT,
        "version": __version__,
        "task": task,
        "epoch": run.which,
        "test_metrics": metrics,
        "data": run.summary["data"],
        "method": run.summary["method"],
    }


def _describe(
    run: Finished,
    folder: Path,
    section: dict[str, Any],
    others: Mapping[str, Any],
    library: str,
    license: str,
) -> None:
    """Write config and card beside the weights; ``others`` are keys that other libraries read."""
    section["weights"] = digests(folder)
    write_json(folder / CONFIG, {**others, SECTION: section})
    facts = Facts(run.which, run.config, run.summary, section, library, license)
    write_text(folder / CARD, card(facts))


def about_images(run: Finished) -> tuple[list[str] | None, int | None]:
    """The names of the classes and the side of the images, as far as they are known.

    They are the data set's, so it must be where it was when the run was trained.
    """
    path = run.directory / ".hydra" / "config.yaml"
    try:
        composed = OmegaConf.load(path)
        load = composed.data.load
        if "download" in load:
            load.download = False
        found = build(load, "data", ImageData)
    except (OSError, ValueError, AttributeError, OmegaConfBaseException) as error:
        log.warning("names of classes are left out: %s", " ".join(str(error).split()))
        return None, run.config["data"].get("image_size")
    if found.fingerprint != run.summary.get("data_fingerprint"):
        log.warning("names of classes are left out: the data has changed since the run")
        return None, run.config["data"].get("image_size")
    return list(found.classes), int(found.train_images.shape[1])


def timm_keys(model: TimmModel, classes: list[str] | None) -> dict[str, Any]:
    """What timm reads in a ``config.json`` to build the network and to prepare its images."""
    from timm.data import resolve_model_data_config

    known, own = resolve_model_data_config(model.model), model.model.pretrained_cfg
    arguments = {k: v for k, v in model.arguments.items() if k not in ("pretrained", "num_classes")}
    count = model.arguments["num_classes"]
    prepared = {
        "input_size": [3, model.input_size, model.input_size],
        "interpolation": model.interpolation,
        "crop_pct": 1.0,  # the whole image, as in training
        "mean": list(known["mean"]),
        "std": list(known["std"]),
        "num_classes": count,
        **({} if classes is None else {"label_names": classes}),
    }
    kept = {k: own[k] for k in ("first_conv", "classifier", "fixed_input_size") if own.get(k)}
    return {
        "architecture": model.architecture.partition(".")[0],  # behind the dot: whose weights
        "num_classes": count,
        "pretrained_cfg": {**kept, **prepared},
        "model_args": arguments,
    }
