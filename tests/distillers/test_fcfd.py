"""FCFD against the authors' numbers, and EA-FCFD, whose code was never published."""

import copy
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DTYPES, load, progress
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
from eakd.distillers.base import Progress
from eakd.distillers.fcfd import FCFD, Path, bridge, candidate_paths, matching_loss
from eakd.errors import UserError
from eakd.models import timm_model
from eakd.models.base import StagedModel
from eakd.models.inference import prepare_teacher
from eakd.weighting import Weighting

CASES = load("fcfd")
STORED = [name for name in CASES if not name.startswith("arch_")]
FILLED = [name for name in CASES if name.startswith("arch_")]


def public(name: str) -> str:
    """The authors' name of one of our parameters: student is model 1, teacher model 0."""
    name = re.sub(r"^student\.", "models.1.", name)
    name = re.sub(r"^to_teacher\.(\d)\.", r"bridges.\1.0.1.", name)
    return re.sub(r"^to_student\.(\d)\.", r"bridges.\1.1.0.", name)


def as_path(owners: list[int]) -> Path:
    """From the authors' notation, which lists the model of each stage."""
    return Path(("teacher", "student")[owners[0]], owners.index(1 - owners[0]))


def small(**arguments) -> FCFD:
    torch.manual_seed(0)
    return FCFD(network("resnet8", 10), network("resnet14", 10), **arguments)


def split(batch: Batch, cut: int) -> list[Batch]:
    return [Batch(*(x[part] for x in batch[:3])) for part in (slice(cut), slice(cut, None))]


def check_step(case, name: str, method: FCFD, batch: Batch, dtype: torch.dtype) -> None:
    """One step against everything stored of it."""
    hyper = case.hyper
    before = copy.deepcopy(method.teacher.state_dict())
    terms = method.train()(
        batch,
        progress(hyper["epoch_0based"] + 1),
        [as_path(path) for path in hyper["extra_paths"]],
    )
    total = method.total(terms)
    means = {key: (total.weight * terms[key]).mean() for key in terms if terms[key].dim()}
    case.check_values(
        dtype,
        loss_ce=terms["ce"],
        loss_kl_student=means["kl"],
        loss_kl_mixed=means["mixed_kl"],
        loss_l2_weighted=means["appearance"] + means["function"],
        total=total.loss,
    )
    stored = case.values[dtype]
    for key, found in (
        ("w", total.weight),
        ("logits/0_teacher", terms.teacher_logits),
        ("logits/1_student", terms.student_logits),
    ):
        if key in stored:
            case.check_values(dtype, **{key: found})
    if any(key.startswith("per_sample/l2") for key in stored):
        scale = hyper["weight_l2"] * hyper["l2_ramp"]
        samples = {"appearance": 0.0, "function": 0.0}
        for key in (key for key in stored if key.startswith("per_sample/l2")):
            owners = key.rpartition("_")[2].split(".")
            kind = "appearance" if set(owners) == {"1"} else "function"
            samples[kind] = samples[kind] + scale * stored[key]
        for kind, expected in samples.items():
            case.values[dtype][kind] = expected + np.zeros(len(batch.targets))
            case.check_values(dtype, **{kind: terms[kind]})
    if "per_sample/kl_student" in stored:
        mixed = stored["per_sample/kl_mixed0"] + stored["per_sample/kl_mixed1"]
        case.values[dtype]["mixed"] = hyper["mixed_kl_weight"] * mixed
        case.check_values(dtype, mixed=terms["mixed_kl"])
        case.check_values(dtype, **{"per_sample/kl_student": terms["kl"]})

    total.loss.backward()
    found = {public(key): p.grad for key, p in method.named_parameters()}
    check_gradients(case, gradient_names("fcfd", name), dtype, found)
    assert all(p.grad is None for p in method.teacher.parameters())
    # A bridge that no sampled path takes gets no gradient, and the optimiser leaves it alone.
    used = {
        f"{path.switch - 1}."
        for path in map(as_path, hyper["extra_paths"])
        if path.start == "teacher"
    }
    for key, parameter in method.to_student.named_parameters():
        assert (parameter.grad is not None) == (key[:2] in used)

    # Running statistics after the step: of mixed passes none are kept. The teacher's move in the
    # authors' code, which never reads them; here they stay.
    state = {public(key): x for key, x in method.state_dict().items()}
    for key in (
        key for key in stored if key.startswith("bn_after_step/") and "models.0" not in key
    ):
        case.check_values(dtype, **{key: state[key.partition("/")[2]]})
    for key, tensor in method.teacher.state_dict().items():
        assert torch.equal(tensor, before[key])
    assert not any(module.training for module in method.teacher.modules())


def method_for(case, student, teacher) -> FCFD:
    hyper = case.hyper
    hyper.setdefault("tau_prime", 3.0)
    frozen = "EVAL" in hyper.get("teacher_bn", "")
    return FCFD(
        *(student, teacher, case.weighting),
        temperature=hyper["T"],
        mixed_kl_weight=hyper["mixed_kl_weight"],
        l2_weight=hyper["weight_l2"],
        teacher_batchnorm="frozen" if frozen else "batch",
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STORED)
def test_golden(name, dtype):
    case = CASES[name]
    method = method_for(case, network("resnet8"), network("resnet20"))
    stored = {
        key.removeprefix("state/"): torch.tensor(x)
        for key, x in case.inputs.items()
        if key.startswith("state/")
    }
    method.load_state_dict({key: stored[public(key)] for key in method.state_dict()})
    teacher = {key: stored[f"models.0.{key}"] for key in method.teacher.state_dict()}
    method.teacher.load_state_dict(teacher)
    method.to(dtype), method.teacher.to(dtype)
    batch = Batch(case.tensor("images", dtype), case.targets, torch.arange(len(case.targets)))
    check_step(case, name, method, batch, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FILLED)
def test_golden_networks(name, dtype):
    case = CASES[name]
    names = case.hyper["pair"].split("-")
    student, teacher = (network(name).to(dtype) for name in names)
    fill(teacher, lambda key: f"models.0.{key}")
    state = teacher.state_dict()
    for key in case.hyper["teacher_classifier_scaled_keys"]:
        state[key.removeprefix("models.0.")].mul_(case.hyper["teacher_classifier_scaled_by"])
    method = fill(method_for(case, student, teacher).to(dtype), public)
    batch = Batch(case.tensor("images", dtype)[:4], case.targets[:4], torch.arange(4))
    check_step(case, name, method, batch, dtype)


def test_paths_of_the_published_networks():
    four = [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    five = [[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    five += [[1 - owner for owner in path] for path in five]
    assert candidate_paths(4) == [as_path(path) for path in four]
    assert candidate_paths(5) == [as_path(path) for path in five]
    assert candidate_paths(2) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(0, 10**5))
def test_paths_depend_on_the_progress_alone(seed, epoch, step):
    method = batch_method()
    at = Progress(seed, epoch, step)
    paths = method.sample_paths(at)
    torch.rand(1)
    assert paths == method.sample_paths(at)
    assert len(set(paths)) == 2
    assert set(paths) <= set(method.paths)


@cache
def batch_method() -> FCFD:
    return small()


def test_every_path_is_sampled_equally_often():
    method = batch_method()
    counts = Counter(
        path for step in range(2000) for path in method.sample_paths(Progress(1, 1, step))
    )
    assert all(abs(counts[path] - 1000) < 100 for path in method.paths)


def test_uniform_weight_is_the_plain_method():
    batch, at = random_batch(4, 10), progress(3)
    methods = [small(weighting=weighting) for weighting in (None, Weighting("uniform"))]
    terms = [method(batch, at) for method in methods]
    plain, uniform = (m.total(t).loss for m, t in zip(methods, terms, strict=True))
    assert torch.equal(plain, uniform)
    expected = terms[0]["ce"]
    for key in ("kl", "mixed_kl", "appearance", "function"):
        expected = expected + terms[0][key].mean()
    assert torch.equal(plain, expected)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.permutations(candidate_paths(4)), st.integers(0, 4))
def test_samples_do_not_see_each_other(cut, order, count):
    method = frozen_method().eval()
    batch, paths = random_batch(6, 10), order[:count]
    whole = method(batch, progress(20), paths)
    parts = [method(part, progress(20), paths) for part in split(batch, cut)]
    for key in ("kl", "mixed_kl", "appearance", "function"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), whole[key])


@cache
def frozen_method() -> FCFD:
    return small(teacher_batchnorm="frozen")


def test_names_of_the_terms_do_not_depend_on_the_paths():
    method, batch = small(), random_batch(2, 10)
    names = set(method(batch, progress()))
    for paths in ([], [Path("teacher", 2)], [Path("student", 3)]):
        terms = method(batch, progress(), paths)
        assert set(terms) == names
        assert all(terms[key].shape in ((), (2,)) for key in terms)
    assert not terms["mixed_kl"].eq(0).any()


def test_own_statistics_see_only_the_own_pass():
    batch = random_batch(4, 10)
    alone = network("resnet8", 10)
    method = FCFD(copy.deepcopy(alone), network("resnet14", 10), mixed_paths=4)
    method.train()(batch, progress())
    alone.train()(batch.images)
    for key, tensor in alone.state_dict().items():
        assert torch.equal(tensor, method.student.state_dict()[key]), key
    assert all(norm.track_running_stats for norm in method._student_norms)


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_teacher_is_left_as_it_was(mode):
    teacher = network("resnet14", 10)
    before, batch = copy.deepcopy(teacher), random_batch(4, 10)
    method = FCFD(network("resnet8", 10), teacher, teacher_batchnorm=mode)
    train_one_step(method, batch, torch.float32)
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[key])
    before.eval()
    assert torch.equal(before(batch.images).logits, teacher(batch.images).logits)
    same = torch.equal(method(batch, progress()).teacher_logits, before(batch.images).logits)
    assert same == (mode == "frozen")


def test_state_round_trip():
    method = small()
    train_one_step(method, random_batch(4, 10), torch.float32)
    other = FCFD(network("resnet8", 10), method.teacher)
    other.load_state_dict(method.state_dict())
    batch = random_batch(4, 10)
    losses = [m.total(m.train()(batch, progress(2))).loss for m in (method, other)]
    assert torch.equal(*losses)
    parts = {key.partition(".")[0] for key in method.state_dict()}
    assert parts == {"student", "to_teacher", "to_student"}
    trained = {id(p) for p in method.trainable_parameters()}
    assert not trained & {id(p) for p in method.teacher.parameters()}


def test_ramp():
    method, batch = frozen_method().eval(), random_batch(2, 10)
    first, tenth, later = (method(batch, progress(epoch))["appearance"] for epoch in (1, 10, 30))
    torch.testing.assert_close(20 * first, later)
    torch.testing.assert_close(2 * tenth, later)
    unramped = small(teacher_batchnorm="frozen", ramp_epochs=0).eval()
    assert unramped(batch, progress(1))["appearance"].isfinite().all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_pairs_of_the_paper(teacher, student, precision):
    method = FCFD(network(student), network(teacher), Weighting("ea"), mixed_paths=4)
    before = [parameter.clone() for parameter in method.to_teacher.parameters()]
    assert train_one_step(method, random_batch(4), precision).isfinite()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    pairs = zip(before, method.to_teacher.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)


@pytest.mark.parametrize("size", [16, 64])
def test_other_image_sizes(size):
    method = FCFD(network("mobilenetv2", 10), network("vgg13", 10), image_size=size)
    assert train_one_step(method, random_batch(4, 10, size), torch.float32).isfinite()


def test_wrong_image_size_is_noticed():
    method = FCFD(network("mobilenetv2", 10), network("vgg13", 10), image_size=32)
    with pytest.raises(UserError, match=r"^image_size: found maps"):
        method(random_batch(2, 10, 64), progress())
    with pytest.raises(UserError):
        matching_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 1, 1))


def test_convolutional_timm_networks():
    teacher = timm_model("resnet18", 10, input_size=64)
    method = FCFD(network("resnet18", 10), teacher)
    assert train_one_step(method, random_batch(2, 10), torch.float32).isfinite()


def test_pairs_that_do_not_fit():
    transformer = timm_model("vit_tiny_patch16_224", num_classes=10, input_size=32)
    for pair, words in (
        ((network("resnet8", 10), network("vgg8", 10)), "4 stages and 5 of the teacher"),
        ((transformer, network("resnet8", 10)), "stage by stage"),
        ((nn.Linear(1, 1), network("resnet8", 10)), "student: found a Linear"),
        ((network("resnet8", 10), nn.Linear(1, 1)), "teacher: found a Linear"),
        (
            (Shrunk(network("resnet8", 10), 2), network("resnet8", 10)),
            r"\[32, 4, 4\] after stage 2",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            FCFD(*pair)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^target: found"):
        bridge([8, 4, 4], [8, 1, 1], post=True)


class Shrunk(StagedModel):
    """A network whose maps are a quarter as wide and high from one stage on."""

    num_stages = 4

    def __init__(self, model: StagedModel, stage: int):
        super().__init__()
        self.model, self.stage = model, stage

    def forward_stage(self, index, x, preactivation=False):
        x, pre = self.model.forward_stage(index, x, preactivation)
        return (F.avg_pool2d(x, 4) if index == self.stage else x), pre

    def head(self, x):
        return self.model.head(x)


def test_folded_teacher_is_refused():
    assert FCFD.folds_teacher is False
    batch = random_batch(2, 10)
    folded = prepare_teacher(network("vgg8", 10), batch.images)
    with pytest.raises(UserError, match=r"^teacher_batchnorm: found 'batch'"):
        FCFD(network("vgg8", 10), folded)
    method = FCFD(network("vgg8", 10), folded, teacher_batchnorm="frozen")
    assert train_one_step(method, batch, torch.float32).isfinite()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("ce_weight", -1),
        ("kl_weight", "much"),
        ("mixed_kl_weight", float("nan")),
        ("l2_weight", -5),
        ("ramp_epochs", -1),
        ("mixed_paths", 5),
        ("mixed_paths", 1.5),
        ("teacher_batchnorm", "eval"),
        ("image_size", 31.5),
    ],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        small(**{name: value})
