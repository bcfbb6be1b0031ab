"""The main job in small: a teacher, students with and without distillation, one table."""

from __future__ import annotations

import logging
import os
import shlex
import sys
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
    paired_difference,
    plot_curves,
    read_runs,
    to_markdown,
)
from eakd.reproduce.overrides import INSTEAD, check_each, of_teacher
from eakd.reproduce.table import method_overrides
from eakd.training.hints import group_words, written
from eakd.training.run import run

log = logging.getLogger(__name__)

ROOTS = ("output_root", "checkpoint_root")
METHODS = "methods=[METHOD,METHOD+WEIGHTING]"
# What an override must not set → the key of quickstart that does.
KEYS = {"distiller": METHODS, "weighting": METHODS, "seed": "seeds=[…]", "run_dir": "output_root=…"}
MINE = {
    key: KEYS.get(part := key.partition(".")[0], f"{part}=…") for key in INSTEAD if key != "recipe"
}


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
    text = report(runs, config, jobs[0])
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
        f"Next: {python} scripts/train.py {shlex.join(choices(config))} distiller=ea_dkd"
    )


def plan(config: DictConfig) -> list[DictConfig]:
    """The configs of the runs: the teacher's, if a method needs one, then the students' by seed.

    Raises:
        UserError: whatever can be wrong is found here.
    """
    check_choice("select", config.select, ("last", "best"))
    for key in ROOTS:
        check_folder(key, config[key])
    if find_spec("matplotlib") is None:
        raise UserError("found no matplotlib, which draws the curves:  pip install 'eakd[plots]'")
    for seed in _listed(config, "seeds"):
        check_number("seeds", seed, at_least=0, integer=True)
    overrides = check_each(plain(config.overrides), MINE)
    common = [f"{key}={written(config[key])}" for key in ROOTS]
    common.append("threads=1")  # more of them cost such small networks time
    students, pair = [], choices(config)
    for method in _listed(config, "methods"):
        check_text("methods", method)
        students.append(compose([*common, *pair, *method_overrides(method), *overrides]))
        _try(students[-1])
    labels = list(map(method_label, students))
    if len(set(labels)) < len(labels):
        raise UserError(f"methods: found one twice, {', '.join(labels)}, allowed is each once")
    jobs = []
    if any(map(needs_teacher, students)):
        own = (plain(students[0].data.get("plan")) or {}).get("teacher", [])
        words = [*choices(config, student="teacher"), "distiller=none", "save_teacher=true", *own]
        jobs.append(compose([*common, *words, *of_teacher(overrides)]))
        _try(jobs[0])
    for seed in config.seeds:
        for student in students:
            jobs.append(student.copy())
            jobs[-1].seed = seed
    return jobs


def choices(config: DictConfig, **roles: str) -> list[str]:
    """The overrides behind data, recipe and networks, however they were given."""
    raw = OmegaConf.to_container(config)
    roles = roles or {"teacher": "teacher", "student": "student"}
    found = [*group_words("data", raw["data"]), *group_words("recipe", raw["recipe"])]
    found += [word for role, key in roles.items() for word in group_words(role, raw[key])]
    known = (
        f"recipe={raw['data']['name']}",
        "~teacher.checkpoint",
        "~teacher.table",
    )  # these come by themselves
    return [word for word in found if word not in known]


def _listed(config: DictConfig, key: str) -> list[Any]:
    found = plain(config[key])
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
    compute, classes = build_compute(config), config.data.num_classes
    student, teacher = (build_model(config[key], key, classes) for key in ("student", "teacher"))
    size = config.data.get("image_size") or 32
    build_distiller(config, student, teacher, build_weighting(config, compute), size, compute)


def report(runs: list[dict[str, Any]], config: DictConfig, teacher: DictConfig) -> str:
    """The table as Markdown, and what it was made from."""
    first, (metric, heading) = runs[0], first_metric(runs)
    about = [
        f"Test {heading}, mean ± sample standard deviation over seeds. *Last* is the final epoch "
        f"({first['epochs']}); *best* is the best epoch, chosen on the {first['selection']} split."
    ]
    taught = next((r[key] for r in runs if (key := f"teacher_{metric}") in r), None)
    if taught is not None:
        sizes = [data.get("train_per_class") for data in (teacher.data, first["config"]["data"])]
        more = f" It learned from {sizes[0]} images a class, the students from {sizes[1]} of them."
        about.insert(0, f"The teacher reaches {taught:.2f} {heading}.{more if all(sizes) else ''}")
    table = to_markdown(compare(runs, select=config.select), select=config.select)
    names = [config[key].name for key in ("student", "data", "teacher")]
    parts = ["# {} on {}, teacher {}".format(*names), *about, table]
    by_method: dict[str, dict[int, float]] = {}
    for each in runs:
        value = each[f"{metric}_{config.select}"]
        by_method.setdefault(each["method"], {})[each["seed"]] = value
    d = paired_difference(*(by_method.get(name, {}) for name in ("ea_kd", "kd+matched")))
    if d is not None:
        parts.append(
            "EA's choice of samples alone (ea_kd against kd+matched, where every sample has EA's "
            f"mean weight): {d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f}, p = {d.p:.3f})."
        )
    return "\n\n".join(parts) + "\n"


def keep(folder: Path, text: str) -> None:
    """Move another table that lies there, and its picture, out of the way."""
    table = folder / "comparison.md"
    if table.is_file() and table.read_text(encoding="utf-8") != text:
        for path in (table, folder / "curves.png"):
            if path.is_file():
                path.replace(path.with_name(f"previous-{path.name}"))
