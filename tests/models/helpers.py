"""Names, golden numbers and the fill rule for the tests of the models."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eakd import models

GOLDEN = Path(__file__).parents[1] / "golden"

# Our name: (the public zoo's name, image size, classes).
ZOO = {
    **{name: (name, 32, 100) for name in models.__all__ if name.startswith(("vgg", "wrn"))},
    **{name: (name, 32, 100) for name in models.__all__ if name.startswith("resnet")},
    "resnet18": ("ResNet18", 32, 100),
    "resnet50": ("ResNet50", 32, 100),
    "mobilenetv2": ("MobileNetV2", 32, 100),
    "shufflenetv1": ("ShuffleV1", 32, 100),
    "shufflenetv2": ("ShuffleV2", 32, 100),
    "mobilenetv2_tiny": ("tiny64:MobileNetV2", 64, 200),
}
# The smallest of each family, for tests of behaviour.
FAMILIES = (
    "resnet8",
    "resnet18",
    "wrn_16_2",
    "vgg8",
    "shufflenetv1",
    "shufflenetv2",
    "mobilenetv2",
    "mobilenetv2_tiny",
)


@cache
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "models.json").read_text())


@cache
def numbers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "models.npz") as archive:
        return {key: archive[key] for key in archive.files}


def filled(model: nn.Module) -> nn.Module:
    """``model`` with the golden files' pseudo-random weights, each drawn from its own name."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            shape = tuple(tensor.shape)
            rng = np.random.RandomState(zlib.crc32(key.encode()))
            if tensor.ndim >= 2:
                value = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
            elif key.endswith("running_var"):
                value = 0.5 + rng.rand(*shape)
            elif key.endswith("running_mean"):
                value = 0.1 * rng.randn(*shape)
            elif key.endswith("weight"):
                value = 0.8 + 0.4 * rng.rand(*shape)
            else:
                value = 0.1 * rng.randn(*shape)
            tensor.copy_(torch.as_tensor(value))
    return model


def build(name: str, num_classes: int = 100, **arguments: Any) -> nn.Module:
    return getattr(models, name)(num_classes=num_classes, **arguments)


def images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
