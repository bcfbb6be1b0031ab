"""A third domain: regions of images, of which some have none.

A sample is an image, a row of the loss is one of its regions: `Terms.sample` says whose.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eakd.data.pipeline import stream
from eakd.distillers import Distiller, Terms
from eakd.distillers.kd import kd_loss
from eakd.models.weights import save_weights
from eakd.targets import build
from eakd.training import Built

CLASSES, CHANNELS, MOST = 5, 12, 4


class Regions(NamedTuple):
    """A batch of ``n`` images with ``R`` regions together, ``R ≥ 0``.

    Attributes:
        features: ``(R, CHANNELS)``.
        labels: ``(R,)`` int64; 0 is background.
        image: ``(R,)`` int64, which of the batch's images a region lies in.
        index: ``(n,)``.
    """

    features: Tensor
    labels: Tensor
    image: Tensor
    index: Tensor


class Scenes:
    """Images that are only known by their regions; every fifth one is empty."""

    def __init__(self, count=60, batch_size=4, seed=0):
        self.batch_size, self.seed, self.splits = batch_size, seed, ("val", "test")
        draw = stream("scenes")
        centres = torch.randn(CLASSES, CHANNELS, generator=draw)
        self.images = []
        for image in range(count):
            regions = 0 if image % 5 == 0 else int(torch.randint(1, MOST, (1,), generator=draw))
            labels = torch.randint(CLASSES, (regions,), generator=draw)
            noise = torch.randn(regions, CHANNELS, generator=draw)
            self.images.append((centres[labels] + noise, labels))
        self.train_size = count - 20
        self.steps_per_epoch = -(-self.train_size // batch_size)
        self.fingerprint = f"scenes {count}"

    def step_size(self, step):
        return min(self.batch_size, self.train_size - step * self.batch_size)

    def batch(self, indices):
        features, labels = zip(*(self.images[i] for i in indices), strict=True)
        image = [torch.full((len(found),), place) for place, found in enumerate(labels)]
        columns = map(torch.cat, (features, labels, image))
        return Regions(*columns, torch.tensor(indices))

    def epoch(self, epoch, start=0):
        order = torch.randperm(self.train_size, generator=stream(self.seed, epoch)).tolist()
        for step in range(start, self.steps_per_epoch):
            first = step * self.batch_size
            yield self.batch(order[first : first + self.step_size(step)])


class RegionHead(nn.Sequential):
    def __init__(self, width=8):
        super().__init__(nn.Linear(CHANNELS, width), nn.ReLU(), nn.Linear(width, CLASSES))


class RegionKD(Distiller):
    """``CE + mean over regions of w · KL``; a step whose images are all empty is 0."""

    def forward(self, batch, progress):
        student = self.student(batch.features)
        with torch.no_grad():
            teacher = self.teacher(batch.features)
        ce = F.cross_entropy(student, batch.labels, reduction="sum") / max(len(batch.labels), 1)
        losses = {"ce": ce, "kd": kd_loss(student, teacher)}
        return Terms(losses, student, teacher, sample=batch.image, targets=batch.labels)


class Detection:
    metrics: ClassVar = {"regions": "regions %"}

    def build(self, config, recipe, compute):
        data = build(config.data.load, "data", batch_size=recipe.batch_size, seed=config.seed)
        torch.manual_seed(1)
        teacher = build(config.teacher, "teacher")
        torch.manual_seed(config.seed)
        student = build(config.student, "student")
        weighting = build(config.weighting, "weighting")
        networks = {"student": student, "teacher": teacher, "weighting": weighting}
        return Built(data, build(config.distiller, "distiller", **networks))

    def inputs(self, config):
        return {"data_fingerprint": build(config.data.load, "data").fingerprint}

    def measure(self, batch, terms):
        right = (terms.student_logits.argmax(-1) == terms.targets).float()
        sums, counts = torch.zeros(2, len(batch.index)).index_add(
            1, batch.image, torch.stack([right, torch.ones_like(right)])
        )
        return {"regions": 100 * sums / counts.clamp(min=1)}

    @torch.no_grad()
    def evaluate(self, model, data, split, compute):
        first = data.train_size + (10 if split == "test" else 0)
        batch = data.batch(range(first, first + 10))
        right = model(batch.features).argmax(-1) == batch.labels
        return {"regions": 100 * right.float().mean().item()}

    def export(self, model, path, metadata):
        save_weights(model, path.with_name(f"{path.name}.safetensors"), metadata)
