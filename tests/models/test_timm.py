"""timm networks as members of the contract: their own input size, normalisation and features."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from eakd.errors import UserError
from eakd.models import timm_model

from .helpers import images

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("architecture", "maps"),
    [("vit_tiny_patch16_224", 12), ("resnet18", 5), ("deit_tiny_distilled_patch16_224", 12)],
)
def test_contract(architecture: str, maps: int) -> None:
    model = timm_model(architecture, 7, data_mean=MEAN, data_std=STD).eval()
    x = images(2, 32)
    with torch.no_grad():
        output, plain = model(x), model(x, features=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(x)
    assert output.logits.shape == (2, 7)
    assert output.pooled.shape == (2, model.num_features)
    assert len(output.features) == len(output.preactivations) == model.num_stages == maps
    assert all(feature.ndim == 4 for feature in output.features)
    assert plain.features == []
    torch.testing.assert_close(plain.logits, output.logits)
    assert low.logits.dtype == low.pooled.dtype == torch.float32
    torch.testing.assert_close(low.logits, output.logits, rtol=0.1, atol=0.03)


def test_images_arrive_as_timm_expects_them() -> None:
    model = timm_model("vit_tiny_patch16_224", 7, data_mean=MEAN, data_std=STD)
    raw = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    found = model.adapt((raw - mean) / std)
    torch.testing.assert_close(found, (raw - 0.5) / 0.5)  # this network's own mean and deviation
    grey = torch.full((1, 3, 32, 32), 0.25)
    found = model.adapt((grey - mean) / std)
    torch.testing.assert_close(found, torch.full((1, 3, 224, 224), -0.5))
    own = timm_model("resnet18", 7, input_size=64)
    torch.testing.assert_close(own.adapt(x := images(2, 64)), x)
    assert own.adapt(images(2, 32)).shape == (2, 3, 64, 64)


def test_logits_are_timms_own() -> None:
    model = timm_model("resnet18", 7, input_size=64).eval()
    x = images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, model.model(x))


@pytest.mark.parametrize("architecture", ["resnet18", "convnext_atto", "mobilenetv2_050"])
def test_convolutional_networks_run_by_stages(architecture: str) -> None:
    model = timm_model(architecture, 7, input_size=64)
    next(model.model.children()).eval()  # modes are mixed, and stay so
    modes = [module.training for module in model.modules()]
    x = images(2, 32)
    model.forward_stage(0, x)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    with torch.no_grad():
        output = model(x)
        for index in range(model.num_stages):
            x, _ = model.forward_stage(index, x)
            torch.testing.assert_close(x, output.features[index])
        torch.testing.assert_close(model.head(x)[0], output.logits)


def test_transformers_say_that_they_do_not() -> None:
    model = timm_model("vit_tiny_patch16_224", 7, input_size=32)
    with pytest.raises(UserError, match="vit_tiny_patch16_224: does not run stage by stage"):
        model.forward_stage(0, images(1, 32))


@pytest.mark.parametrize(
    ("architecture", "arguments", "width"),
    [
        ("resnet18", {}, 512),
        ("resnet18", {"global_pool": "catavgmax"}, 1024),  # both pools, side by side
        ("resnetv2_18", {"global_pool": "catavgmax"}, 1024),  # the classifier is a convolution
        ("mobilenetv3_small_050", {}, 1024),  # widened from 288 behind the pool
        ("convnext_atto", {}, 320),
        ("vgg11", {"mlp_ratio": 1 / 64}, 4096),  # two layers behind the features, made narrow
        ("vit_tiny_patch16_224", {}, 192),
        ("deit_tiny_distilled_patch16_224", {}, 192),  # two classifiers
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}, 192),
        ("repvit_m1", {}, 384),  # the classifier is none of torch's own layers
    ],
)
def test_width_of_the_classifiers_input(architecture, arguments, width) -> None:
    model = timm_model(architecture, 7, input_size=64, **arguments).eval()
    for size in (16, 32, 64):
        with torch.no_grad():
            assert model(images(1, size), features=False).pooled.shape == (1, width)
    assert model.num_features == width


def test_chosen_features_and_size() -> None:
    model = timm_model("vit_tiny_patch16_224", 7, input_size=64, feature_indices=[2, 5, 8, 11])
    features = model.eval()(images(1, 32)).features
    assert [tuple(feature.shape) for feature in features] == [(1, 192, 4, 4)] * 4
    assert model.num_stages == 4


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="'resnet81', allowed is a timm model; near it are resnet"):
        timm_model("resnet81")
    with pytest.raises(UserError, match="both or none"):
        timm_model("resnet18", data_mean=MEAN)
    with pytest.raises(UserError, match="resnet18: timm cannot create it"):
        timm_model("resnet18", depht=3)


def test_a_network_without_intermediate_maps(monkeypatch) -> None:
    model = timm_model("resnet18", 7, input_size=32)
    monkeypatch.delattr(type(model.model), "forward_intermediates")
    assert model(images(2, 32), features=False).logits.shape == (2, 7)
    with pytest.raises(UserError, match="resnet18: timm offers no intermediate features"):
        model(images(2, 32))


def test_timm_is_imported_only_when_used() -> None:
    code = "import eakd.models, sys; assert not any(m.split('.')[0] == 'timm' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
