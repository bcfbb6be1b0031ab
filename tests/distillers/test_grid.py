"""Every method takes a step on every pair of Table 2, in both precisions, and comes back whole."""

import copy

import pytest
import torch

from eakd.classification.build import build_model
from eakd.composing import compose
from eakd.data.base import Batch
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.factors import FACTORS, MATCHED, SHUFFLED
from eakd.targets import build
from eakd.training.device import Compute
from eakd.weighting import Weighting

PAIRS = [
    "resnet32x4 resnet8x4",
    "wrn_28_4 wrn_16_2",
    "wrn_40_2 wrn_40_1",
    "vgg13 vgg8",
    "vgg13 mobilenetv2",
    "resnet50 mobilenetv2",
    "resnet32x4 shufflenetv2",
]
METHODS = ["kd", "ctkd", "dkd", "mld", "mld_ls", "reviewkd", "fcfd"]


def make(method, pair="resnet8 resnet8", weighting=None, classes=100):
    teacher, student = pair.split()
    config = compose(
        [f"teacher={teacher}", f"student={student}", f"distiller={method}", "data=cifar100"]
    )
    torch.manual_seed(0)
    networks = {role: build_model(config[role], role, classes) for role in ("teacher", "student")}
    distiller = build(
        *(config.distiller, "distiller"),
        **networks,
        weighting=weighting or Weighting("ea"),
    )
    return distiller.train()


def a_batch(size=4, classes=100):
    generator = torch.Generator().manual_seed(1)
    weak, strong = torch.randn(2, size, 3, 32, 32, generator=generator)
    targets = torch.randint(classes, (size,), generator=generator)
    return Batch(weak, targets, torch.arange(size), strong)


def step(distiller, precision="float32", batch=None):
    """One optimiser step; returns the loss."""
    parameters = distiller.trainable_parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    compute = Compute.create("cpu", precision)
    with compute.autocast():
        total = distiller.total(distiller(batch or a_batch(), Progress(0, 5, 0)))
    total.loss.backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert total.weight is None or not total.weight.requires_grad
    optimizer.step()
    return total.loss.detach()


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_each_precision(method, pair):
    distiller = make(method, pair)
    restored = copy.deepcopy(distiller)
    untouched = {name: value.clone() for name, value in restored.state_dict().items()}
    for precision in ("float32", "bf16"):
        distiller.zero_grad()
        assert step(distiller, precision).isfinite()
        state = {name: value.clone() for name, value in distiller.state_dict().items()}
        assert all(x.isfinite().all() for x in state.values() if x.is_floating_point())
        assert any(not torch.equal(untouched[name], state[name]) for name in state)
        untouched = state
    assert not any("teacher" in name.split(".") for name in state)
    restored.load_state_dict(state)
    assert all(torch.equal(state[name], value) for name, value in restored.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED, *SHUFFLED, "focal", "margin_rescaled"])
def test_every_weighting(method, kind):
    assert step(make(method, weighting=Weighting(kind))).isfinite()


@pytest.mark.parametrize("method", METHODS)
def test_uniform_is_the_mean_of_the_terms(method):
    distiller = make(method, weighting=Weighting("uniform"))
    terms = distiller(a_batch(), Progress(0, 5, 0))
    plain = sum(term.mean() for term in terms.values())
    torch.testing.assert_close(distiller.total(terms).loss, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["reviewkd", "fcfd"])
def test_feature_methods_refuse_a_student_without_stages(method):
    from eakd.models import resnet8, timm_model

    config = compose([f"distiller={method}"])
    student = timm_model("vit_tiny_patch16_224", 100, input_size=32)
    with pytest.raises(UserError) as caught:
        distiller = build(
            *(config.distiller, "distiller"),
            teacher=resnet8(100),
            student=student,
        )
        step(distiller)
    assert "\n" not in str(caught.value)
