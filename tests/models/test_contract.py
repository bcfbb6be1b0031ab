"""Every architecture keeps the contract of `eakd.models.base`, at every size and precision."""

from __future__ import annotations

import copy

import pytest
import torch

from eakd import models
from eakd.errors import UserError
from eakd.models.base import StagedModel, classify
from eakd.models.layers import shuffle_channels
from eakd.models.wrn import TWO_UPDATES

from .helpers import FAMILIES, ZOO, build, filled, images


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def by_stages(model, x):
    features, pres = [], []
    for index in range(model.num_stages):
        x, pre = model.forward_stage(index, x, preactivation=True)
        features.append(x.clone())
        pres.append(features[-1] if pre is None else pre.clone())
    return model.head(x), features, pres


@pytest.mark.parametrize("name", ZOO)
def test_takes_every_size(name: str) -> None:
    model = build(name, 7).eval()
    for size in (16, 32, 64):
        with torch.no_grad():
            output = model(images(2, size))
        assert output.logits.shape == (2, 7), size
        assert output.logits.isfinite().all(), size
        assert output.pooled.shape == (2, model.num_features), size
        assert len(output.features) == len(output.preactivations) == model.num_stages
        assert all(x.shape[0] == 2 and min(x.shape[2:]) >= 1 for x in output.features), size


def test_these_are_all_builders() -> None:
    assert {*ZOO, "Output", "StagedModel", "timm_model"} == set(models.__all__)


def test_a_model_of_ones_own_is_told_to_set_its_width() -> None:
    class Mine(StagedModel):
        num_stages = 1

        def __init__(self, num_classes: int = 7) -> None:
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(5, num_classes)

        def forward_stage(self, index, x, preactivation=False):
            return self.conv(x), None

        def head(self, x):
            return classify(x, self.fc)

    class Wide(Mine):
        num_features = 5

    model = Mine()
    assert copy.deepcopy(model)(images(2, 16)).logits.shape == (2, 7)
    with pytest.raises(UserError, match=r"Mine\.num_features: found none, set it to the number of"):
        _ = model.num_features
    model.num_features = 5
    assert model.num_features == Wide().num_features == 5
    assert set(model.state_dict()) == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", FAMILIES)
def test_stages_are_the_forward_pass(name: str, mode: str) -> None:
    model, x = filled(build(name)).train(mode == "train"), images(4, 32)
    with torch.no_grad():
        output = model(x)
        (logits, pooled), features, pres = by_stages(model, x)
    torch.testing.assert_close(logits, output.logits)
    torch.testing.assert_close(pooled, output.pooled)
    # Also shows that no stage overwrites its input: the copies were taken at once.
    torch.testing.assert_close(features, output.features)
    torch.testing.assert_close(pres, output.preactivations)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_do_not_change_the_logits(name: str) -> None:
    model, x = build(name), images(4, 32)
    with torch.no_grad():
        plain, full = model(x, features=False), model(x)
    assert plain.features == plain.preactivations == []
    torch.testing.assert_close(plain.logits, full.logits, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", FAMILIES)
def test_routed_stages_are_the_same_network(name: str, mode: str) -> None:
    model, x = filled(build(name)).train(mode == "train"), images(4, 32)
    with torch.no_grad():
        wanted = model(x, features=False).logits
        for index in range(model.num_stages):
            x = model.route_stage(index, x)
        torch.testing.assert_close(model.route_head(x), wanted)


def test_route_cuts_where_fcfd_does() -> None:
    """FCFD's networks: state of the exchanged maps, and channels of the last one."""
    wanted = {
        "resnet8": ("post", 64),
        "resnet18": ("post", 512),
        "wrn_16_2": ("pre", 128),
        "vgg8": ("pre", 512),
        "shufflenetv1": ("pre", 960),
        "shufflenetv2": ("post", 1024),
        "mobilenetv2": ("pre", 1280),
    }
    for name, (state, channels) in wanted.items():
        model, x = filled(build(name)).eval(), images(2, 32)
        with torch.no_grad():
            for index in range(model.num_stages):
                x = model.route_stage(index, x)
        assert (model.stage_input, x.shape[1]) == (state, channels), name
        assert (x.min() < 0) == (state == "pre"), name


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_parameter(name: str) -> None:
    """Through all outputs at once: an in-place operation on a returned map would raise."""
    model = build(name)
    output = model(images(4, 32))
    total = output.logits.square().sum() + output.pooled.sum()
    for x in (*output.features, *output.preactivations):
        total = total + x.square().mean()
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "vgg8", "shufflenetv1"])
def test_feature_is_the_activated_preactivation(name: str) -> None:
    with torch.no_grad():
        output = build(name)(images(2, 32))
    for feature, pre in zip(output.features, output.preactivations, strict=True):
        torch.testing.assert_close(feature, pre.relu())
    assert all(pre.min() < 0 for pre in output.preactivations[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_low_precision_and_memory_format(name: str) -> None:
    model = build(name).to(memory_format=torch.channels_last).eval()
    x = images(2, 32).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        routed = model.route_head(model.route_stage(model.num_stages - 1, output.features[-2]))
    assert output.logits.dtype == output.pooled.dtype == routed.dtype == torch.float32
    for feature in (*output.features, *output.preactivations):
        assert feature.dtype == torch.bfloat16
        assert feature.is_contiguous(memory_format=torch.channels_last)


def test_classifier_runs_in_its_own_precision() -> None:
    classifier = torch.nn.Linear(64, 10)
    x = torch.randn(4, 64, 2, 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, pooled = classify(x, classifier)
    torch.testing.assert_close(pooled, x.mean((2, 3)))
    with torch.no_grad():
        torch.testing.assert_close(logits, classifier(pooled), rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_channel_shuffle(memory_format: torch.memory_format) -> None:
    x = images(2, 5).repeat(1, 4, 1, 1).to(memory_format=memory_format)
    for groups in (2, 3):
        found = shuffle_channels(x, groups)
        torch.testing.assert_close(found, torch.nn.functional.channel_shuffle(x, groups))
        assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("features", [True, False])
def test_wrn_statistics_move_as_published(features: bool) -> None:
    model, plain = build("wrn_16_2"), build("wrn_16_2", published_bn_momentum=False)
    plain.load_state_dict(model.state_dict())
    x = images(4, 32)
    seen: dict[str, torch.Tensor] = {}
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0].detach().clone()})
            )
    with torch.no_grad():
        plain(x, features=features)
        model(x, features=features)
    twice = {"block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"}
    for name, x in seen.items():
        norm = torch.nn.BatchNorm2d(x.shape[1])
        norm(x)
        assert_same_statistics(plain.get_submodule(name), norm)
        if name in twice:
            norm(x)
        assert_same_statistics(model.get_submodule(name), norm)
    assert pytest.approx(0.19) == TWO_UPDATES


def assert_same_statistics(a: torch.nn.BatchNorm2d, b: torch.nn.BatchNorm2d) -> None:
    torch.testing.assert_close(a.running_mean, b.running_mean)
    torch.testing.assert_close(a.running_var, b.running_var)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "shufflenetv1", "shufflenetv2"])
def test_compiles_as_one_graph(name: str) -> None:
    model, x = build(name), images(2, 16)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x).logits, twin(x).logits)
