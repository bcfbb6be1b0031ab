"""The main job in small: a teacher, students with and without distillation, one table."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from eakd.composing import compose
from eakd.files import write_text
from eakd.reproduce.comparison import (
    compare,
    first_metric,
    plot_curves,
    read_runs,
    to_markdown,
)
from eakd.training.run import run


def quickstart(config: DictConfig) -> str:
    """Run what is not finished yet; write and return the table.

    Leaves ``comparison.md`` and ``curves.png`` in ``<output_root>/quickstart``.
    """
    common = [
        f"data={config.data}",
        f"output_root={config.output_root}",
        f"checkpoint_root={config.checkpoint_root}",
        *config.overrides,
    ]
    jobs = [[f"student={config.teacher}", "distiller=none", "save_teacher=true"]]
    for seed in config.seeds:
        for method in config.methods:
            pair = [f"teacher={config.teacher}", f"student={config.student}"]
            jobs.append([*pair, f"distiller={method}", f"seed={seed}"])
    directories = []
    with logging_redirect_tqdm():
        for job in tqdm(jobs, desc="runs", unit="run"):
            composed = compose([*common, *job])
            run(composed)
            directories.append(Path(composed.run_dir))
    runs = read_runs(directories[1:])  # without the teacher's
    order = {method: position for position, method in enumerate(config.methods)}
    runs.sort(key=lambda each: (order.get(each["method"], len(order)), each["seed"]))
    first, (metric, heading) = runs[0], first_metric(runs)
    table = to_markdown(compare(runs, select=config.select), select=config.select)
    taught = next((r[key] for r in runs if (key := f"teacher_{metric}") in r), float("nan"))
    text = (
        f"# {config.student} on {config.data}, teacher {config.teacher} "
        f"({taught:.2f} {heading})\n\n"
        f"Test {heading}, mean ± sample standard deviation over seeds. *Last* is the final "
        f"epoch ({first['epochs']}); *best* is the best epoch, chosen on the {first['selection']} "
        f"split.\n\n{table}\n"
    )
    folder = Path(config.output_root) / "quickstart"
    write_text(folder / "comparison.md", text)
    plot_curves(runs, folder / "curves.png")
    return text
