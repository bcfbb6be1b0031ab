"""ReviewKD and EA-ReviewKD against the authors' numbers."""

import copy

import numpy as np
import pytest
import torch
from golden import DTYPES, FOLDER, load, progress
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from whole_networks import (
    PAIRS,
    check_gradients,
    fill,
    gradient_names,
    network,
    random_batch,
    train_one_step,
)

from eakd.data.base import Batch
from eakd.distillers.reviewkd import ReviewKD, hcl_loss
from eakd.errors import UserError
from eakd.models import timm_model
from eakd.models.base import Output
from eakd.weighting import Weighting

CASES = load("reviewkd")
HCL, MODULES, WHOLE = (
    [name for name in CASES if name.startswith(start)] for start in ("hcl_", "abf_", "e2e_")
)


def public(name: str) -> str:
    return name.replace("fusions.", "abfs.")


def small(**arguments) -> ReviewKD:
    torch.manual_seed(0)
    return ReviewKD(network("resnet8", 10), network("resnet14", 10), **arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", HCL)
def test_golden_loss(name, dtype):
    case = CASES[name]
    maps = [case.tensor(f"fs{i}", dtype, requires_grad=True) for i in range(6)]
    targets = [case.tensor(f"ft{i}", dtype) for i in range(6)]
    weight = torch.ones(len(maps[0]))
    if case.hyper["EA"]:
        pair = (case.tensor(f"{role}_logits", dtype) for role in ("student", "teacher"))
        weight = case.weighting(*pair)
        case.check_values(dtype, w=weight)
    levels = torch.stack([hcl_loss(x, target) for x, target in zip(maps, targets, strict=True)])
    losses = (weight * levels).mean(dim=1)
    case.check_values(dtype, hcl_per_level=losses, hcl=losses.sum())
    losses.sum().backward()
    for i, x in enumerate(maps):
        if f"fs{i}" in case.gradients[dtype]:
            case.check_gradients(dtype, **{f"fs{i}": x.grad})


class Given(nn.Module):
    """A network that returns what it is given, whatever the images."""

    def __init__(self, output: Output):
        super().__init__()
        self.output = output
        self.register_parameter("unused", nn.Parameter(torch.zeros(())))

    def forward(self, images, features=True):
        return self.output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_golden_modules(name, dtype):
    case = CASES[name]
    hyper = case.hyper

    def output(role: str, kind: str, grad: bool) -> Output:
        maps = [case.tensor(f"{role}_{kind}{i}", dtype, grad) for i in (1, 2, 3)]
        pooled, logits = (case.tensor(f"{role}_{key}", dtype, grad) for key in ("pooled", "logits"))
        stem = torch.zeros(2, 1, 32, 32, dtype=dtype)
        return Output(logits, [stem, *maps], [stem, *maps], pooled)

    student, teacher = output("student", "feat", True), output("teacher", "preact", False)
    method = ReviewKD(
        *(Given(student), Given(teacher), case.weighting),
        ce_weight=hyper["ce_weight"],
        review_weight=hyper["w"],
        warmup_epochs=hyper["warmup_epochs"],
    ).to(dtype)
    fusions = {k: v for k, v in method.state_dict().items() if k.startswith("fusions.")}
    for key, tensor in fusions.items():
        if tensor.is_floating_point():
            tensor.copy_(torch.tensor(case.inputs[f"w/{public(key)}"]))
    method.train(hyper["abf_bn"] == "batch statistics")
    batch = Batch(torch.zeros(2, 3, 32, 32), case.targets, torch.arange(2))
    terms = method(batch, progress(hyper["epoch"]))
    total = method.total(terms)
    case.check_values(dtype, loss_ce=terms["ce"], loss_kd=total.loss - terms["ce"])
    case.check_values(dtype, total=total.loss)

    total.loss.backward()
    found = {public(key): p.grad for key, p in method.named_parameters()}
    found |= {f"student_feat{i}": student.features[i].grad for i in (1, 2, 3)}
    found |= {"student_pooled": student.pooled.grad, "student_logits": student.logits.grad}
    check_gradients(case, gradient_names("reviewkd", name), dtype, found)


def golden_networks(case, dtype) -> tuple[nn.Module, nn.Module]:
    hyper = case.hyper
    student = fill(network(hyper["student"]).to(dtype), lambda key: f"student.{key}")
    teacher = fill(network(hyper["teacher"]).to(dtype), lambda key: f"teacher.{key}")
    state = teacher.state_dict()
    for key in hyper["teacher_classifier_scaled_keys"]:
        state[key].mul_(hyper["teacher_classifier_scaled_by"])
    start = f"in/e2e/{hyper['teacher']}_{hyper['student']}/teacher."
    with np.load(FOLDER / "reviewkd.npz") as arrays:
        for key in filter(lambda key: key.startswith(start), arrays.files):
            state[key.removeprefix(start)].copy_(torch.tensor(arrays[key]))
    return student, teacher


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_golden_networks(name, dtype):
    case = CASES[name]
    hyper = case.hyper
    student, teacher = golden_networks(case, dtype)
    method = ReviewKD(
        *(student, teacher, case.weighting),
        ce_weight=hyper["ce_weight"],
        review_weight=hyper["w"],
        warmup_epochs=hyper["warmup_epochs"],
    )
    fill(method.fusions.to(dtype), lambda key: f"abfs.{key}")
    batch = Batch(case.tensor("images", dtype), case.targets, torch.arange(len(case.targets)))
    terms = method.train()(batch, progress(hyper["epoch"]))
    total = method.total(terms)
    case.check_values(
        dtype, student_logits=terms.student_logits, teacher_logits=terms.teacher_logits
    )
    case.check_values(dtype, loss_ce=terms["ce"], loss_kd=total.loss - terms["ce"])
    case.check_values(dtype, total=total.loss)
    if hyper["EA"]:
        case.check_values(dtype, w=total.weight)
    total.loss.backward()
    found = {public(key): p.grad for key, p in method.named_parameters()}
    check_gradients(case, gradient_names("reviewkd", name), dtype, found)
    assert all(p.grad is None for p in teacher.parameters())


def test_uniform_weight_is_the_plain_method():
    batch = random_batch(4, 10)
    losses = []
    for weighting in (None, Weighting("uniform")):
        method = small(weighting=weighting)
        losses.append(method.total(method(batch, progress(3))).loss)
    assert torch.equal(*losses)
    terms = method(batch, progress(3))
    assert torch.equal(method.total(terms).loss, terms["ce"] + terms["review"].mean())


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5))
def test_samples_do_not_see_each_other(cut):
    method = small().eval()
    batch = random_batch(6, 10)
    whole = method(batch, progress(20))
    parts = [Batch(*(x[part] for x in batch[:3])) for part in (slice(cut), slice(cut, None))]
    review = torch.cat([method(part, progress(20))["review"] for part in parts])
    torch.testing.assert_close(review, whole["review"])


def test_warm_up():
    method, batch = small().eval(), random_batch(2, 10)
    first, tenth, later = (method(batch, progress(epoch))["review"] for epoch in (1, 10, 30))
    torch.testing.assert_close(20 * first, later)
    torch.testing.assert_close(2 * tenth, later)
    method.warmup_epochs = 0
    torch.testing.assert_close(method(batch, progress(1))["review"], later)


def test_state_round_trip():
    method = small()
    train_one_step(method, random_batch(4, 10), torch.float32)
    other = ReviewKD(network("resnet8", 10), network("resnet14", 10))
    assert other.load_state_dict(method.state_dict()).missing_keys == []
    other._teacher = method._teacher
    batch = random_batch(4, 10)
    losses = [m.eval()(batch, progress(2))["review"] for m in (method, other)]
    assert torch.equal(*losses)
    assert not any("teacher" in key for key in method.state_dict())


def test_construction_leaves_the_networks_as_they_were():
    student, teacher = network("resnet8", 10), network("resnet14", 10)
    student.layer1.eval()
    before = copy.deepcopy(student)
    ReviewKD(student, teacher)
    assert [m.training for m in student.modules()] == [m.training for m in before.modules()]
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[key])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_pairs_of_the_paper(teacher, student, precision):
    method = ReviewKD(network(student), network(teacher), Weighting("ea"))
    assert train_one_step(method, random_batch(2), precision).isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.fusions.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "levels"), [("vgg13", "resnet8", 4), ("resnet14", "mobilenetv2", 4)]
)
def test_different_numbers_of_stages(teacher, student, levels):
    method = ReviewKD(network(student, 10), network(teacher, 10))
    assert len(method.fusions) == levels
    assert train_one_step(method, random_batch(2, 10), torch.float32).isfinite()


@pytest.mark.parametrize("size", [16, 64])
def test_other_image_sizes(size):
    method = ReviewKD(network("mobilenetv2", 10), network("vgg13", 10), image_size=size)
    assert train_one_step(method, random_batch(2, 10, size), torch.float32).isfinite()


def test_half_precision_teacher():
    from eakd.models.inference import prepare_teacher

    batch = random_batch(2, 10)
    teacher = prepare_teacher(network("resnet14", 10), batch.images, torch.bfloat16)
    method = ReviewKD(network("resnet8", 10), teacher)
    assert train_one_step(method, batch, torch.bfloat16).isfinite()


def test_transformer_with_maps_of_equal_size():
    student = timm_model("vit_tiny_patch16_224", 10, input_size=64, feature_indices=(2, 5, 8, 11))
    method = ReviewKD(student, network("resnet14", 10))
    assert len(method.fusions) == 4
    assert train_one_step(method, random_batch(2, 10), torch.float32).isfinite()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_networks_without_maps(role):
    flat = Given(Output(torch.zeros(1, 10), [], [], torch.zeros(1, 10)))
    pair = {"student": network("resnet8", 10), "teacher": network("resnet8", 10), role: flat}
    with pytest.raises(UserError, match=rf"^{role}: found a Given with maps of \[\] pixels[^\n]*$"):
        ReviewKD(**pair)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ce_weight", -1),
        ("review_weight", float("inf")),
        ("warmup_epochs", -1),
        ("max_mid_channels", 0),
        ("image_size", 0),
    ],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        small(**{name: value})
