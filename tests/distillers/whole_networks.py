"""Golden runs of whole networks: the fill rule, the sizes of all gradients, the paper's pairs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from golden import FOLDER, Case
from torch import nn

from eakd import models
from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress

# Summed over up to a million weights in another order than in the authors' code, and behind layers
# whose batch norm cancels most of what arrives, some of it to rounding errors: gradients are
# compared in norm, with a relative and an absolute tolerance.
TOLERANCES = {torch.float64: (1e-7, 1e-9), torch.float32: (5e-3, 1e-3)}

# The seven of the paper's tables, (teacher, student).
PAIRS = (
    ("resnet32x4", "resnet8x4"),
    ("wrn_28_4", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("vgg13", "vgg8"),
    ("vgg13", "mobilenetv2"),
    ("resnet50", "mobilenetv2"),
    ("resnet32x4", "shufflenetv2"),
)


def network(name: str, num_classes: int = 100) -> nn.Module:
    public = {"ResNet50": "resnet50", "MobileNetV2": "mobilenetv2", "ShuffleV2": "shufflenetv2"}
    return getattr(models, public.get(name, name))(num_classes=num_classes)


def fill(module: nn.Module, public_name: Callable[[str], str]) -> nn.Module:
    """Fill with pseudo-random weights, each drawn from its name in the authors' code."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            name, shape = public_name(key), tuple(tensor.shape)
            rng = np.random.RandomState(zlib.crc32(name.encode()))
            if tensor.ndim >= 2:
                value = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
            elif name.endswith("running_var"):
                value = 0.5 + rng.rand(*shape)
            elif name.endswith("running_mean"):
                value = 0.1 * rng.randn(*shape)
            elif name.endswith("weight"):
                value = 0.8 + 0.4 * rng.rand(*shape)
            else:
                value = 0.1 * rng.randn(*shape)
            tensor.copy_(torch.as_tensor(value))
    return module


@cache
def gradient_names(file: str, case: str) -> list[str]:
    """The parameters, in order, of which ``_norms`` and ``_sums`` of a case are stored."""
    key = f"{case}/meta_grad_names"
    with np.load(FOLDER / f"{file}.npz") as arrays:
        return json.loads(str(arrays[key])) if key in arrays.files else []


def check_gradients(
    case: Case, names: list[str], dtype: torch.dtype, found: dict[str, torch.Tensor]
) -> None:
    """Compare the gradients with the stored ones: some whole, of all the norm (and the sum)."""
    stored = {key: torch.tensor(x).to(dtype) for key, x in case.gradients[dtype].items()}
    relative, absolute = TOLERANCES[dtype]
    for name in (key for key in stored if not key.startswith("_")):
        error = torch.linalg.vector_norm(found[name] - stored[name].reshape(found[name].shape))
        assert error <= relative * torch.linalg.vector_norm(stored[name]) + absolute, name
    for key, measure in (("_norms", torch.linalg.vector_norm), ("_sums", torch.sum)):
        for name, expected in zip(names, stored.get(key, ()), strict=False):
            bound = absolute + relative * torch.linalg.vector_norm(found[name])
            bound *= found[name].numel() ** 0.5 if key == "_sums" else 1
            assert abs(measure(found[name]) - expected) <= bound, (key, name)


def random_batch(size: int, num_classes: int = 100, image_size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, image_size, image_size, generator=generator)
    targets = torch.randint(num_classes, (size,), generator=generator)
    return Batch(images, targets, torch.arange(size))


def train_one_step(method: Distiller, batch: Batch, precision: torch.dtype) -> torch.Tensor:
    """One step as the training loop does it; returns the loss."""
    optimizer = torch.optim.SGD(method.trainable_parameters(), lr=0.01, momentum=0.9)
    bf16 = precision == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        terms = method.train()(batch, Progress(seed=0, epoch=1, step=0))
        loss = method.total(terms).loss
    loss.backward()
    optimizer.step()
    return loss.detach()
