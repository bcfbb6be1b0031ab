"""How alike two networks' features are, stage by stage: linear CKA."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from eakd.analysis.cache import Arrays, remembered
from eakd.analysis.comparing import seeds_text
from eakd.analysis.marks import display
from eakd.analysis.networks import Networks, first_with_teacher, student_file, teacher_file
from eakd.analysis.result import Panel, Result
from eakd.analysis.runs import Run, Runs
from eakd.data.base import Batch
from eakd.errors import UserError
from eakd.training.device import Compute

PIECE = 125  # samples of a Gram matrix, whose cost grows with their square


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """HSIC₁ of Gram matrices ``(…, N, N)``, ``N > 3``; their diagonals do not count.

    Source: Song et al. 2012, Eq. 5; its mean over batches is that of the whole set (Nguyen et al.
    2021), so that no set is too large.
    """
    n = first.shape[-1]
    k, m = (x - torch.diag_embed(x.diagonal(dim1=-2, dim2=-1)) for x in (first, second))
    trace = (k * m).sum((-2, -1))
    sums = k.sum((-2, -1)) * m.sum((-2, -1)) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (k.sum(-1) * m.sum(-1)).sum(-1)
    return (trace + sums - cross) / (n * (n - 3))


def gram(features: Tensor) -> Tensor:
    """``(N, N)`` of ``(N, …)`` features."""
    flat = features.flatten(1).float()
    return flat @ flat.T


class CKA:
    """Linear CKA of each of ``A`` features with each of ``B``, summed up batch by batch."""

    def __init__(self) -> None:
        self._cross: Tensor | float = 0.0
        self._own: list[Tensor | float] = [0.0, 0.0]

    def add(self, first: list[Tensor], second: list[Tensor]) -> None:
        """The features of a batch of the same ``N`` samples, ``(N, …)`` each."""
        k, m = (torch.stack([gram(x) for x in each]).double() for each in (first, second))
        self._cross = self._cross + unbiased_hsic(k[:, None], m[None])
        for place, each in enumerate((k, m)):
            self._own[place] = self._own[place] + unbiased_hsic(each, each)

    def value(self) -> np.ndarray:
        """``(A, B)``: 1 for features that are alike up to rotation and scale."""
        first, second = self._own
        return (self._cross / (first[:, None] * second[None]).sqrt()).cpu().numpy()


def cka(
    runs: Runs,
    *,
    output_root: str,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
) -> Result:
    """Linear CKA of every stage of the teacher with every stage of each student.

    Features are those of `eakd.models.base.Output`, stage by stage, and the pooled ones.

    Raises:
        UserError: no teacher, or weights of which none can be opened.
    """
    networks = Networks(output_root, device, precision)
    first_with_teacher(runs)
    found: dict[str, dict[int, np.ndarray]] = {}
    for run in runs:
        matrix = networks.attempt(_of_run, networks, run, split) if run.teacher else None
        if matrix is not None:
            found.setdefault(run.method, {})[run.seed] = matrix
    if not found:
        raise UserError(networks.notes[0])
    numbers, panels = {}, {}
    for name, seeds in found.items():
        matrix = np.mean([*seeds.values()], axis=0)
        rows, columns = (np.arange(1.0, n + 1) for n in matrix.shape)
        numbers |= {
            f"cka.{name}.{i + 1}.{j + 1}": float(matrix[i, j]) for i, j in np.ndindex(matrix.shape)
        }
        panels[name] = Panel(
            title=f"{display(name)}, {seeds_text(len(seeds))}",
            x="student's stage",
            y="teacher's stage",
            surface=(columns, rows, matrix),
            surface_style="heat",
            levels=(0.0, 1.0),  # one scale, so that methods can be compared by eye
            x_ticks={float(x): _stage(int(x), len(columns)) for x in columns},
        )
    last = {name: float(np.mean([*s.values()], axis=0)[-1, -1]) for name, s in found.items()}
    return Result(
        panels=panels,
        columns=len(panels),
        numbers=numbers,
        shows="CKA of the pooled features with the teacher's: "
        + ", ".join(f"{display(name)} {value:.3f}" for name, value in last.items())
        + ".",
        not_shows="It does not show that networks with unlike features answer differently: CKA "
        "ignores rotations and is led by directions of large variance.",
        notes=("Unbiased estimate over batches; the mean over seeds.", *networks.notes),
        about={
            "seeds": sorted({seed for seeds in found.values() for seed in seeds}),
            "epochs": sorted({run.epochs for run in runs}),
            "split": split,
            "device": str(networks.compute.device),
            "precision": networks.compute.precision,
        },
        arrays={f"cka.{n}.seed{s}": m for n, seeds in found.items() for s, m in seeds.items()},
    )


def _of_run(networks: Networks, run: Run, split: str) -> np.ndarray:
    facts = {
        "teacher": networks.facts(run, teacher_file(run), "teacher", split),
        "student": networks.facts(run, student_file(run), "student", split),
    }

    def compute() -> Arrays:
        teacher, student = networks.teacher(run), networks.student(run)
        return {"cka": _compare(teacher, student, networks.data(run).evaluation(split), networks)}

    return remembered(networks.cache, "cka", facts, compute)["cka"]


@torch.inference_mode()
def _compare(
    teacher: nn.Module, student: nn.Module, batches: Iterator[Batch], networks: Networks
) -> np.ndarray:
    total, compute = CKA(), networks.compute
    for batch in batches:
        first, second = (_stages(model, batch, compute) for model in (teacher, student))
        for at in range(0, len(batch.images), PIECE):
            pieces = ([x[at : at + PIECE] for x in each] for each in (first, second))
            if len(batch.images) - at > 3:
                total.add(*pieces)
    return total.value()


def _stages(model: nn.Module, batch: Batch, compute: Compute) -> list[Tensor]:
    with compute.autocast():
        output = model(batch.images)
    return [*output.features, output.pooled]


def _stage(number: int, count: int) -> str:
    return "pooled" if number == count else str(number)
