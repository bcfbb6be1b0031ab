"""Golden numbers of the public implementations, and stand-in networks that return given logits.

Every file of ``tests/golden`` holds the inputs of some batches and, for each case, the
hyper-parameters, the loss terms and the gradients that the original authors' code produced, in
float64 and in float32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eakd.data.base import Batch
from eakd.distillers.base import Progress
from eakd.models.base import Output
from eakd.weighting import Weighting

FOLDER = Path(__file__).parents[1] / "golden"

# The float32 runs hold logits of 1e4.
VALUES = {
    torch.float64: {"rtol": 1e-6, "atol": 1e-7},
    torch.float32: {"rtol": 2e-3, "atol": 1e-6},
}
GRADIENTS = {
    torch.float64: {"rtol": 1e-5, "atol": 1e-8},
    torch.float32: {"rtol": 2e-3, "atol": 2e-4},
}
DTYPES = tuple(VALUES)


def _named(name: str):
    return lambda message: f"{name}: {message}"


@dataclass
class Case:
    """One run of the original code."""

    hyper: dict[str, Any]
    inputs: dict[str, np.ndarray]
    values: dict[torch.dtype, dict[str, np.ndarray]] = field(default_factory=dict)
    gradients: dict[torch.dtype, dict[str, np.ndarray]] = field(default_factory=dict)

    def tensor(self, name: str, dtype: torch.dtype, requires_grad: bool = False) -> Tensor:
        return torch.tensor(self.inputs[name]).to(dtype).requires_grad_(requires_grad)

    @property
    def targets(self) -> Tensor:
        return torch.tensor(self.inputs["target"])

    @property
    def weighting(self) -> Weighting:
        if not self.hyper["EA"]:
            return Weighting("uniform")
        return Weighting("ea", self.hyper["tau_prime"], self.hyper["H_ub"])

    def check_values(self, dtype: torch.dtype, **found: Tensor) -> None:
        for name, value in found.items():
            expected = torch.tensor(self.values[dtype][name]).reshape(value.shape)
            torch.testing.assert_close(
                value.detach(), expected.to(dtype), **VALUES[dtype], msg=_named(name)
            )

    def check_gradients(self, dtype: torch.dtype, **found: Tensor) -> None:
        for name, value in found.items():
            expected = torch.tensor(self.gradients[dtype][name]).reshape(value.shape)
            torch.testing.assert_close(
                value, expected.to(dtype), **GRADIENTS[dtype], msg=_named(name)
            )


@cache
def load(name: str) -> dict[str, Case]:
    """All cases of ``tests/golden/<name>.npz`` by their names."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    cases = {}
    for case_name in map(str, arrays["cases"]):
        hyper = json.loads(str(arrays[f"{case_name}/hyper"]))
        start = f"in/{hyper.get('batch')}/"
        inputs = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        case = cases[case_name] = Case(hyper, inputs)
        for bits, dtype in (("64", torch.float64), ("32", torch.float32)):
            for kind, target in (("out", case.values), ("grad", case.gradients)):
                start = f"{case_name}/{kind}{bits}/"
                target[dtype] = {
                    k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)
                }
    return cases


class HalfOfTheImage(nn.Module):
    """A network whose logits are one half of its input: an image is (student's, teacher's) logits.

    So a method under test sees exactly the given logits on every view, whatever it does with the
    views, and gradients flow back to them.
    """

    def __init__(self, half: int):
        super().__init__()
        self.half = half

    def forward(self, images: Tensor, features: bool = True) -> Output:
        logits = images.chunk(2, dim=-1)[self.half]
        return Output(logits, [], [], logits)


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher for `batch`."""
    return HalfOfTheImage(0), HalfOfTheImage(1)


class TinyNet(nn.Module):
    """A real network with something to train: one layer, on 8-pixel images."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.classifier = nn.Linear(3 * 8 * 8, num_classes)

    def forward(self, images: Tensor, features: bool = True) -> Output:
        pooled = images.flatten(1)
        return Output(self.classifier(pooled), [], [], pooled)


def batch(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    strong: tuple[Tensor, Tensor] | None = None,
) -> Batch:
    """A batch on which the networks return the given logits."""
    second = None if strong is None else torch.cat(strong, dim=-1)
    index = torch.arange(len(targets))
    return Batch(torch.cat([student, teacher], dim=-1), targets, index, second)


def progress(epoch: int = 1) -> Progress:
    return Progress(seed=0, epoch=epoch, step=0)


def untouched(*leaves: Tensor) -> bool:
    """No gradient reached these halves of the images (concatenation hands zeros back)."""
    return all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)
