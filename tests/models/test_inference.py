"""Folding and conversion change a teacher's speed, not its outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eakd.models import timm_model
from eakd.models.inference import count_macs, fold_batchnorm, prepare_teacher

from .helpers import FAMILIES, build, filled, images

# Batch norms that stay: WideResNet's first in each block has no convolution of its own before it.
KEPT = {"wrn_16_2": 7}


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def assert_close(found, wanted, tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, torch.Tensor):
            assert (a.float() - b.float()).abs().max() <= tolerance * b.float().abs().max()
        else:
            assert_close(a, b, tolerance)


@pytest.mark.parametrize("name", (*FAMILIES, "wrn_16_1", "resnet50"))
def test_folding_keeps_every_output(name: str) -> None:
    model, x = filled(build(name)), images(2, 32)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model, x)
    assert norms(folded) == KEPT.get(name, 7 if name == "wrn_16_1" else 0) < norms(model)
    with torch.no_grad():
        assert_close(folded(x), model.eval()(x), 1e-4)
        y = x
        for index in range(folded.num_stages):
            y = folded.route_stage(index, y)
        assert_close([folded.route_head(y)], [model(x).logits], 1e-4)
    assert not any(p.requires_grad for p in folded.parameters()) and not folded.training
    assert all(p.dtype == torch.float32 for p in folded.parameters())
    for key, value in model.state_dict().items():  # the caller's network is as it was
        assert torch.equal(value, before[key])
    assert all(p.requires_grad for p in model.parameters())


def test_folding_leaves_shared_maps_alone() -> None:
    class Tricky(nn.Module):
        """Maps between convolution and norm that somebody else sees, and a norm used twice."""

        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))

        def forward(self, x):
            returned = self.convs[0](x)
            x = self.norms[0](returned)
            summed = self.convs[1](x)
            x = self.norms[1](summed) + summed
            x = self.norms[2](self.convs[2](x))
            x = self.norms[2](x)
            return returned, self.norms[3](self.convs[3](x))

    model, x = filled(Tricky()), images(2, 8)
    folded = fold_batchnorm(model, x)
    kept = [isinstance(norm, nn.BatchNorm2d) for norm in folded.norms]
    assert kept == [True, True, True, False]
    with torch.no_grad():
        assert_close(folded(x), model.eval()(x), 1e-5)


def test_a_model_that_would_change_stays_unfolded() -> None:
    class Moody(nn.Module):
        """Behaves otherwise once its norm is gone."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(x)) + isinstance(self.norm, nn.Identity)

    assert norms(fold_batchnorm(filled(Moody()), images(2, 8))) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_teacher_is_close(name: str) -> None:
    torch.manual_seed(0)
    model, x = build(name), images(16, 32)
    with torch.no_grad():
        for _ in range(2):
            model(x)  # running statistics of these images
        teacher = prepare_teacher(model, x[:2], torch.bfloat16)
        wanted = model.eval()(x, features=False).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = teacher(x, features=False).logits
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.06 * wanted.abs().max()
    convolutions = [m for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.weight.dtype == torch.bfloat16 for m in convolutions) >= len(convolutions) - 1
    assert all(m.weight.dtype == torch.float32 for m in teacher.modules() if type(m) is nn.Linear)


@pytest.mark.parametrize("name", ["wrn_16_2", "shufflenetv2"])
def test_converted_weights_give_autocasts_numbers(name: str) -> None:
    model, x = build(name).eval(), images(2, 32)
    folded = fold_batchnorm(model, x)
    teacher = prepare_teacher(model, x, torch.bfloat16, channels_last=False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(teacher(x).logits, folded(x).logits, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224", "mobilenetv2_050"])
def test_timm_teachers(architecture: str) -> None:
    """Folded if their norms are plain, otherwise left alone; converted either way."""
    torch.manual_seed(0)
    model, x = timm_model(architecture, 10, input_size=64).eval(), images(2, 32)
    folded = fold_batchnorm(model, x)
    teacher = prepare_teacher(model, x, torch.bfloat16)
    with torch.no_grad():
        wanted = model(x)
        assert_close(folded(x), wanted, 1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = teacher(x).logits
    assert logits.dtype == torch.float32
    assert (logits - wanted.logits).abs().max() < 0.06 * wanted.logits.abs().max()
    assert norms(folded) == {"resnet18": 0}.get(architecture, norms(model))
    assert torch.bfloat16 in {p.dtype for p in teacher.parameters()}
    assert teacher.model.get_classifier().weight.dtype == torch.float32


def test_counting_leaves_the_model_alone() -> None:
    model = build("resnet8")
    before = copy.deepcopy(model.state_dict())
    assert count_macs(model, 64) == pytest.approx(4 * count_macs(model, 32), rel=1e-2)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
