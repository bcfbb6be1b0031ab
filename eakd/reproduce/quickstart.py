"""The main job in small, in any domain: a teacher, students with and without it, one table."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from eakd.composing import compose
from eakd.config import method_label, needs_teacher, plain
from eakd.errors import UserError, check_choice, check_folder, check_number, check_text, shortened
from eakd.files import write_text
from eakd.reproduce.comparison import (
    compare,
    first_metric,
    metrics_of,
    paired_difference,
    plot_curves,
    read_runs,
    spread,
    to_markdown,
)
from eakd.reproduce.overrides import INSTEAD, check_each, of_teacher
from eakd.reproduce.table import method_overrides
from eakd.training.find_teacher import shipped_teacher
from eakd.training.hints import group_words, written
from eakd.training.run import run

log = logging.getLogger(__name__)

ROOTS = ("output_root", "checkpoint_root")
# What is run where neither the command line nor the data set's file, in plan.quickstart, says.
DEMONSTRATION: Mapping[str, Any] = {
    "teacher": "resnet20",
    "student": "resnet8",
    "group": "",  # of distiller, in which the methods are
    "methods": ["none", "kd", "ea_kd", "kd+matched"],
    "seeds": [*range(10)],
    "threads": 1,  # more of them cost such small networks time
    "overrides": [],  # of the students
    "next": "ea_dkd",
}
METHODS = "methods=[METHOD,METHOD+WEIGHTING]"
# What an override must not set → the key of quickstart that does.
KEYS = {"distiller": METHODS, "weighting": METHODS, "seed": "seeds=[…]", "run_dir": "output_root=…"}
MINE = {
    key: KEYS.get(part := key.partition(".")[0], f"{part}=…") for key in INSTEAD if key != "recipe"
}

# Whose losses are compared; a method that learns from labels alone is called none or sft.
COMPARED = (("kd", "none"), ("kd", "sft"), ("ea_kd", "kd"), ("ea_kd", "kd+matched"))


def quickstart(config: DictConfig) -> str:
    """Run what is not finished yet; write the table and the picture; return what to print.

    Leaves ``comparison.md`` and ``curves.png`` in ``<output_root>/quickstart``; others that lie
    there are kept as ``previous-…``.

    Raises:
        UserError: a wrong value, before anything is trained or written.
    """
    jobs = plan(config)
    with logging_redirect_tqdm():
        for number, job in enumerate(tqdm(jobs, desc="runs", unit="run", disable=None), 1):
            metric, heading = first_metric([summary := run(job)])
            role = "teacher" if job.save_teacher else method_label(job)
            what = number, len(jobs), role, job.student.name, job.seed
            value = summary[f"{metric}_{config.select}"]
            log.info("%d of %d: %s, %s, seed %d: %.2f %s", *what, value, heading)
    students = [job for job in jobs if not job.save_teacher]
    runs = read_runs(Path(job.run_dir) for job in students)
    order = list(dict.fromkeys(method_label(job) for job in students))
    runs.sort(key=lambda each: (order.index(each["method"]), each["seed"]))
    folder = Path(config.output_root) / "quickstart"
    text = report(runs, config, jobs)
    keep(folder, text)
    write_text(folder / "comparison.md", text)
    plot_curves(runs, folder / "curves.png")
    python = os.path.relpath(sys.executable) if Path(sys.prefix, "pyvenv.cfg").is_file() else ""
    python = python if python and not python.startswith("..") else "python"
    return (
        f"{text}\n"
        f"Made: {len(jobs)} runs below {config.output_root}/{jobs[0].data.name}, each with its "
        "config, curves and weights.\n"
        f"Look: {folder}/comparison.md (this table) and {folder}/curves.png (accuracy by epoch).\n"
        f"Next: {python} scripts/train.py {shlex.join(choices(config))} "
        f"distiller={method_group(config)}{demonstration(config)['next']}"
    )


def demonstration(config: DictConfig) -> dict[str, Any]:
    """What is run: the command line's choices, then those of the data set's file, then ours."""
    chosen = {key: plain(config[key]) for key in ("methods", "seeds") if config[key] is not None}
    return {**DEMONSTRATION, **(_plan_of(config).get("quickstart") or {}), **chosen}


def method_group(config: DictConfig) -> str:
    """``language/``: what stands before a method's name; nothing for images."""
    group = demonstration(config)["group"]
    return f"{group}/" if group else ""


def _plan_of(config: DictConfig) -> dict[str, Any]:
    return plain(config.data.get("plan")) or {}


def plan(config: DictConfig) -> list[DictConfig]:
    """The configs of the runs: the teacher's, if a method needs one, then the students' by seed.

    A teacher that the package brings with it is not trained.

    Raises:
        UserError: whatever can be wrong is found here.
    """
    check_choice("select", config.select, ("last", "best"))
    for key in ROOTS:
        check_folder(key, config[key])
    if find_spec("matplotlib") is None:
        raise UserError("found no matplotlib, which draws the curves:  pip install 'eakd[plots]'")
    proposed = demonstration(config)
    for seed in _listed(proposed, "seeds"):
        check_number("seeds", seed, at_least=0, integer=True)
    overrides = check_each(plain(config.overrides), MINE)
    common = [f"{key}={written(config[key])}" for key in ROOTS]
    common.append(f"threads={proposed['threads']}")
    students, pair = [], choices(config)
    for method in _listed(proposed, "methods"):
        check_text("methods", method)
        words = method_overrides(method, method_group(config))
        students.append(compose([*common, *pair, *words, *proposed["overrides"], *overrides]))
        _try(students[-1])
    labels = list(map(method_label, students))
    if len(set(labels)) < len(labels):
        raise UserError(f"methods: found one twice, {', '.join(labels)}, allowed is each once")
    jobs = []
    taught = next(filter(needs_teacher, students), None)
    if taught is not None and shipped_teacher(taught) is None:
        words = [*choices(config, student="teacher"), f"distiller={method_group(config)}none"]
        words += ["save_teacher=true", *_plan_of(taught).get("teacher", [])]
        jobs.append(compose([*common, *words, *of_teacher(overrides)]))
        _try(jobs[0])
    for seed in proposed["seeds"]:
        for student in students:
            jobs.append(student.copy())
            jobs[-1].seed = seed
    return jobs


def choices(config: DictConfig, **roles: str) -> list[str]:
    """The overrides behind data, recipe and networks, however they were given."""
    raw, proposed = OmegaConf.to_container(config), demonstration(config)
    roles = roles or {"teacher": "teacher", "student": "student"}
    found = [*group_words("data", raw["data"]), *group_words("recipe", raw["recipe"])]
    for role, key in roles.items():
        node = raw.get(key)
        found += group_words(role, node) if node else [f"{role}={proposed[key]}"]
    known = (
        f"recipe={raw['data']['name']}",
        "~teacher.checkpoint",
        "~teacher.table",
    )  # these come by themselves
    return [word for word in found if word not in known]


def _listed(proposed: Mapping[str, Any], key: str) -> list[Any]:
    found = proposed[key]
    if not isinstance(found, list) or not found or len(set(map(str, found))) < len(found):
        raise UserError(f"{key}: found {shortened(found)}, allowed is a list, each value once")
    return found


def _try(config: DictConfig) -> None:
    """Build a run without data and weights, so that wrong values are found before others train."""
    from eakd.classification.build import build_distiller, build_model
    from eakd.config import check_domain
    from eakd.targets import build
    from eakd.training.run import build_compute, build_weighting
    from eakd.training.schedule import Recipe

    check_domain(config)
    build(config.recipe, "recipe", Recipe)
    compute = build_compute(config)
    if config.data.get("task"):  # networks of the other domains are built of their data
        build_weighting(config, compute)
        return
    classes = config.data.num_classes
    student, teacher = (build_model(config[key], key, classes) for key in ("student", "teacher"))
    size = config.data.get("image_size") or 32
    build_distiller(config, student, teacher, build_weighting(config, compute), size, compute)


def report(runs: list[dict[str, Any]], config: DictConfig, jobs: list[DictConfig]) -> str:
    """The table as Markdown, and what it was made from.

    Args:
        jobs: of `plan`.
    """
    first, (metric, heading) = runs[0], first_metric(runs)
    about = [
        f"Test {heading}, mean ± sample standard deviation over seeds. *Last* is the final epoch "
        f"({first['epochs']}); *best* is the best epoch, chosen on the {first['selection']} split."
    ]
    taught = next((r[key] for r in runs if (key := f"teacher_{metric}") in r), None)
    if taught is not None:
        sizes = [each.get("train_per_class") for each in (jobs[0].data, jobs[-1].data)]
        more = f" It learned from {sizes[0]} images a class, the students from {sizes[1]} of them."
        about.insert(0, f"The teacher reaches {taught:.2f} {heading}.{more if all(sizes) else ''}")
    table = to_markdown(compare(runs, select=config.select), select=config.select)
    names = [jobs[-1][key].name for key in ("student", "data", "teacher")]
    parts = ["# {} on {}, teacher {}".format(*names), *about, table]
    values = by_method(runs, f"{metric}_{config.select}")
    d = paired_difference(*(values.get(name, {}) for name in ("ea_kd", "kd+matched")))
    if d is not None:
        parts.append(
            "EA's choice of samples alone (ea_kd against kd+matched, where every sample has EA's "
            f"mean weight): {d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}, p = {d.p:.3f})."
        )
    parts += [loss_lines(runs, config.select)] if "loss" in metrics_of(first) else []
    return "\n\n".join(parts) + "\n"


def by_method(runs: list[dict[str, Any]], key: str) -> dict[str, dict[int, float]]:
    """Method → seed → the value of ``key`` in a summary."""
    found: dict[str, dict[int, float]] = {}
    for each in runs:
        found.setdefault(each["method"], {})[each["seed"]] = each[key]
    return found


def loss_lines(runs: list[dict[str, Any]], select: str) -> str:
    """The test loss of each method, of which less is better, and what KD does to it."""
    heading, values = metrics_of(runs[0])["loss"], by_method(runs, f"loss_{select}")
    shown = [f"{name} {spread(tuple(each.values()), 3)}" for name, each in values.items()]
    taught = next((run["teacher_loss"] for run in runs if "teacher_loss" in run), None)
    shown += [f"the teacher {taught:.3f}"] if taught is not None else []
    text = f"Test loss in {heading}, less is better, {select} epoch: {', '.join(shown)}."
    for name, other in COMPARED:
        d = paired_difference(values.get(name, {}), values.get(other, {}))
        if d is not None:
            text += (
                f"\n{name} − {other}: {d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f}, p = {d.p:.3f})."
            )
    return text


def keep(folder: Path, text: str) -> None:
    """Move another table that lies there, and its picture, out of the way."""
    table = folder / "comparison.md"
    if table.is_file() and table.read_text(encoding="utf-8") != text:
        for path in (table, folder / "curves.png"):
            if path.is_file():
                path.replace(path.with_name(f"previous-{path.name}"))
