"""Methods and data for tests of single steps, on any device."""

import numpy as np
import torch

from eakd.classification.build import build_model
from eakd.composing import compose
from eakd.config import CONFIGS
from eakd.data import ImageData, Pipeline
from eakd.distillers.base import Distiller
from eakd.targets import build

METHODS = sorted(path.stem for path in (CONFIGS / "distiller").glob("*.yaml"))
COUNT, BATCH, CLASSES = 20, 8, 10  # two full steps and one of four samples


def pipeline(device, **options):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(COUNT) % CLASSES
    data = ImageData("noise", tuple("0123456789"), images, labels, images, labels, "noise")
    return Pipeline(
        data, batch_size=BATCH, device=device, mean=[0.5] * 3, std=[0.25] * 3, **options
    )


def method_of(name, device, weighting=None):
    """A method around ResNet-20 and ResNet-8, in training mode."""
    config = compose([f"distiller={name}", "teacher=resnet20", "student=resnet8"])
    with torch.device(device):
        networks = {
            role: build_model(config[role], role, CLASSES) for role in ("teacher", "student")
        }
        method = build(config.distiller, "distiller", Distiller, **networks, weighting=weighting)
    return method.train()
