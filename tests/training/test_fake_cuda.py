"""What a GPU would show of a step, without one: CUDA tensors that have shapes, but no numbers.

Where an operation mixes devices, or the host reads a number and so would wait for the device, a
fake tensor raises. `tests/gpu` shows the rest where there is one.
"""

import pytest
import torch
from steps import CLASSES, COUNT, METHODS, method_of, pipeline
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from eakd.classification import Classification
from eakd.data.randaugment import OPERATIONS, RandAugment, cutout
from eakd.distillers import KD
from eakd.distillers.base import Progress
from eakd.training.meters import Meters
from eakd.weighting import KINDS, Weighting


@pytest.fixture
def cuda():
    with FakeTensorMode():
        yield torch.device("cuda")


class EveryOperation(RandAugment):
    """All of RandAugment's; its own groups have sizes that are drawn on the host."""

    def apply(self, images, parameters):
        whole = torch.full((len(images),), 0.5, dtype=torch.float64, device=images.device)
        for operation in OPERATIONS:
            images = operation.apply(images, whole)
        return cutout(images, whole, torch.stack((whole, whole), dim=1))


def train(method, data, device):
    """An epoch as the loop does it, but for the backward pass, which wants a real device."""
    task, meters = Classification(), Meters(device, COUNT)
    method.train()
    for step, batches in enumerate(data.epoch(1)):
        now = Progress(seed=0, epoch=1, step=step)
        for batch in batches if isinstance(batches, list) else [batches]:
            terms = method(batch, now)
            total = method.total(terms, now)
            measured = task.measure(batch, terms)
            meters.update(step, batch.index, terms, total, measured, data.step_size(step))
            for made in (batch, terms.values(), total[:4], measured.values()):
                assert {x.device.type for x in made if x is not None} <= {"cuda"}
    assert meters.seen == COUNT
    for tensor in (meters.sums, meters.samples, meters.index, meters.first_bad):
        assert tensor.device.type == "cuda"


@pytest.mark.parametrize("name", METHODS)
def test_an_epoch_of_every_method_stays_on_the_device(cuda, monkeypatch, name):
    view = EveryOperation() if name.startswith("mld") else None
    method = method_of(name, cuda, Weighting("ea"))
    if name == "fcfd":  # whose paths the host draws, on the host
        draw = method.sample_paths

        def drawn(progress):
            with unset_fake_temporarily():
                return draw(progress)

        monkeypatch.setattr(method, "sample_paths", drawn)
    train(method, pipeline(cuda, strong_view=view), cuda)


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_every_weighting(cuda, kind):
    train(method_of("kd", cuda, Weighting(kind)), pipeline(cuda), cuda)


@pytest.mark.parametrize(
    "options", [{"rotation": 9.0}, {"accumulate": 2}, {"part": (1, 2)}], ids=str
)
def test_so_does_the_pipeline(cuda, options):
    for batches in pipeline(cuda, **options).epoch(1):
        for batch in batches if isinstance(batches, list) else [batches]:
            assert {x.device.type for x in batch if x is not None} == {"cuda"}


def test_so_does_a_table_of_answers(cuda):
    data = pipeline(cuda)
    data.answers = torch.empty(data.views * COUNT, CLASSES, device=cuda)
    method = method_of("kd", cuda, Weighting("ea"))
    method.teach = None  # is not asked
    train(method, data, cuda)


class Reading(KD):
    def forward(self, batch, progress):
        terms = super().forward(batch, progress)
        if terms["kd"].mean() > 1000:  # Python wants to know
            terms["kd"] *= 0
        return terms


class Mixing(KD):
    def forward(self, batch, progress):
        terms = super().forward(batch, progress)
        terms["kd"] = terms["kd"] * torch.rand(len(batch.index))
        return terms


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (Reading, DataDependentOutputException, "_local_scalar_dense"),
        (Mixing, RuntimeError, "device"),
    ],
)
def test_a_method_that_reads_or_mixes_is_found_out(cuda, kind, error, words):
    plain = method_of("kd", cuda, None)
    with pytest.raises(error, match=words):
        train(kind(plain.student, plain.teacher), pipeline(cuda), cuda)
