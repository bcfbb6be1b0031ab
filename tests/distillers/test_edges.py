"""Inputs at the edge: masked classes, one class, ignored targets, one sample, wrong shapes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import batch, networks, progress
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid import PAIRS, a_batch, make, step

from eakd.distillers import CTKD, DKD, KD, MLD, CrossEntropy, kd_loss, standardize
from eakd.distillers.dkd import non_target_class_loss, target_class_loss
from eakd.distillers.features import BatchNorm
from eakd.distillers.kd import cross_entropy
from eakd.distillers.mld import instance_losses, low_confidence, relation_losses
from eakd.errors import UserError
from eakd.weighting import Weighting

LOGIT_METHODS = (KD, CTKD, DKD, MLD)
each_method = pytest.mark.parametrize("method", LOGIT_METHODS)
with_and_without = pytest.mark.parametrize("standard", [False, True], ids=["raw", "ls"])


def random_logits(n, c, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, c, generator=generator, dtype=dtype) * 4 for _ in range(4)]


def padded(z, order, masked):
    """``z`` among ``masked`` more classes at −inf, the columns in another order."""
    pad = z.new_full((len(z), masked), -torch.inf)
    return torch.cat([z, pad], dim=-1)[:, order]


def build(method, standard=False, kind="ea", **options):
    return method(*networks(), Weighting(kind), standardize=standard, **options).double()


# --- classes masked with −inf ---


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from((KD, CTKD, DKD)),
    st.booleans(),
    st.integers(2, 6),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_masked_classes_change_nothing(method, standard, kept, masked, seed):
    """Loss, and gradients of logits and temperature, are those without the masked columns."""
    z = random_logits(5, kept, seed)
    order = torch.randperm(kept + masked, generator=torch.Generator().manual_seed(seed))
    targets = torch.arange(5) % kept
    results = []
    for wide in (False, True):
        student, teacher = (padded(x, order, masked) if wide else x.clone() for x in z[:2])
        student.requires_grad_()
        labels = order.argsort()[targets] if wide else targets
        distiller = build(method, standard, "teacher")  # whose weight has no bound
        total = distiller.total(distiller(batch(student, teacher, labels), progress(5)))
        total.loss.backward()
        gradient = student.grad[:, order.argsort()][:, :kept] if wide else student.grad
        if wide:
            assert not student.grad[student == -torch.inf].any()
        theta = getattr(distiller, "theta", None)
        results.append([total.loss, gradient, *([] if theta is None else [theta.grad])])
    torch.testing.assert_close(*results)


@each_method
@with_and_without
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["both", "teacher", "rows"])
def test_masked_classes_leave_everything_finite(method, standard, dtype, where):
    z = random_logits(6, 10)
    for place, x in enumerate(z):
        if where == "rows":  # another mask in every row, the same in both networks
            x[torch.arange(6), torch.arange(6) + 3] = -torch.inf
        elif where == "both" or place % 2:
            x[:, 7:] = -torch.inf
    z = [x.to(dtype).requires_grad_() for x in z]
    distiller = build(method, standard)
    data = batch(z[0], z[1], torch.arange(6) % 3, (z[2], z[3]))
    total = distiller.total(distiller(data, progress(5)))
    total.loss.backward()
    assert total.loss.isfinite() and total.weight.isfinite().all()
    gradients = [p.grad for p in (z[0], z[2], *distiller.parameters()) if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_a_class_that_the_teacher_alone_masks_has_no_part_in_its_distribution():
    student, teacher = random_logits(4, 6)[:2]
    teacher[:, 2] = -torch.inf
    p, q = torch.softmax(teacher / 4, -1), torch.log_softmax(student / 4, -1)
    kept = [0, 1, 3, 4, 5]
    expected = (p[:, kept] * (p[:, kept].log() - q[:, kept])).sum(-1) * 16
    torch.testing.assert_close(kd_loss(student, teacher), expected)


def test_a_class_that_the_student_alone_masks_costs_more_than_any_logits():
    student, teacher = random_logits(4, 6, dtype=torch.float32)[:2]
    student[:, 2] = -torch.inf
    student.requires_grad_()
    loss = kd_loss(student, teacher)
    assert (loss > 1e20).all()
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.isfinite().all()


def test_a_nan_is_never_taken_for_a_mask():
    for place in (0, 1):
        pair = random_logits(3, 5)[:2]
        pair[place][1, 2] = math.nan
        assert kd_loss(*pair).isnan().tolist() == [False, True, False]
        assert standardize(pair[place])[1].isnan().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**31))
def test_standardize_leaves_masked_classes_out(kept, masked, seed):
    z = random_logits(4, kept, seed)[0]
    order = torch.randperm(kept + masked, generator=torch.Generator().manual_seed(seed))
    results = []
    for x in (z.clone().requires_grad_(), padded(z, order, masked).requires_grad_()):
        found = standardize(x)
        seen = found if x.shape[1] == kept else found[:, order.argsort()][:, :kept]
        (gradient,) = torch.autograd.grad((seen**3).sum(), x)
        gradient = gradient if x.shape[1] == kept else gradient[:, order.argsort()][:, :kept]
        results.append([seen, gradient])
        assert torch.equal(found.isneginf(), x.isneginf())
    torch.testing.assert_close(*results)


def test_a_single_class_that_is_left_is_at_the_mean():
    z = torch.tensor([[3.0, -torch.inf, -torch.inf]], requires_grad=True)
    found = standardize(z)
    assert found.tolist() == [[0.0, -math.inf, -math.inf]]
    (gradient,) = torch.autograd.grad(found[0, 0], z)
    assert torch.equal(gradient, torch.zeros(1, 3))


# --- gradients ---


def test_gradients_are_those_of_finite_differences():
    student, teacher = random_logits(3, 5)[:2]
    student[:, 4] = teacher[:, 4] = -torch.inf
    targets, free = torch.tensor([0, -100, 2]), student[:, :4].clone().requires_grad_()
    temperature = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)

    def masked(free):
        return torch.cat([free, student[:, 4:]], dim=-1)

    def kd(free, temperature):
        return kd_loss(masked(free), teacher, temperature)

    assert torch.autograd.gradcheck(kd, (free, temperature))
    for loss in (target_class_loss, non_target_class_loss):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(masked(x), teacher, targets), free)
    assert torch.autograd.gradcheck(lambda x: standardize(masked(x))[:, :4], free)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(masked(x), targets), free)


# --- one class, two classes ---


@pytest.mark.parametrize("method", [KD, CTKD, MLD])
def test_one_class_costs_nothing(method):
    z = [x.requires_grad_() for x in random_logits(4, 1)]
    distiller = build(method)
    total = distiller.total(distiller(batch(*z[:2], torch.zeros(4).long(), z[2:]), progress()))
    total.loss.backward()
    assert total.loss == 0 and not z[0].grad.any() and not total.weight.any()


@pytest.mark.parametrize(
    ("method", "standard"), [(DKD, False), *((m, True) for m in LOGIT_METHODS)]
)
def test_one_class_is_refused_where_it_means_nothing(method, standard):
    z = random_logits(4, 1)
    with pytest.raises(UserError, match=r"logits: found shape \(4, 1\), [^\n]*two classes or more"):
        build(method, standard)(batch(*z[:2], torch.zeros(4).long(), z[2:]), progress())


@each_method
@with_and_without
def test_two_classes(method, standard):
    z = random_logits(4, 2)
    distiller = build(method, standard)
    total = distiller.total(distiller(batch(*z[:2], torch.arange(4) % 2, z[2:]), progress()))
    assert total.loss.isfinite() and total.loss > 0


# --- ignored targets ---


@each_method
@with_and_without
def test_ignored_targets_are_ignored(method, standard):
    z = [x.requires_grad_() for x in random_logits(6, 10)]
    targets = torch.tensor([3, -100, 0, -100, -100, 9])
    distiller, known = build(method, standard), targets >= 0
    terms = distiller(batch(*z[:2], targets, z[2:]), progress(5))
    ce = F.cross_entropy(z[0][known], targets[known])
    if method is MLD:
        ce = ce + F.cross_entropy(z[2][known], targets[known])
    torch.testing.assert_close(terms["ce"], distiller.ce_weight * ce)
    # With any label in their place, the terms of the other rows are the same.
    others = distiller(batch(*z[:2], targets.clamp(min=5), z[2:]), progress(5))
    for name in (name for name in terms if terms[name].dim()):
        if method is DKD:
            assert not terms[name][~known].any()
            rest = distiller(batch(*(x[known] for x in z[:2]), targets[known]), progress(5))
            assert torch.equal(terms[name][known], rest[name])
        else:
            assert torch.equal(terms[name], others[name])
    distiller.total(terms).loss.backward()
    assert z[0].grad.isfinite().all()


@pytest.mark.parametrize("method", [CrossEntropy, *LOGIT_METHODS])
def test_only_ignored_targets(method):
    z = [x.requires_grad_() for x in random_logits(4, 10)]
    student, teacher = networks()
    distiller = CrossEntropy(student) if method is CrossEntropy else method(student, teacher)
    terms = distiller(batch(*z[:2], torch.full((4,), -100), z[2:]), progress())
    total = distiller.total(terms)
    total.loss.backward()
    assert terms["ce"] == 0 and total.loss.isfinite() and z[0].grad.isfinite().all()


@pytest.mark.parametrize("method", ["reviewkd", "fcfd"])
def test_only_ignored_targets_for_features(method):
    data = a_batch()._replace(targets=torch.full((4,), -100))
    assert step(make(method), batch=data).isfinite()


@pytest.mark.parametrize("wrong", [10, -1, -99, 2**40])
@pytest.mark.parametrize("method", [CrossEntropy, *LOGIT_METHODS])
def test_targets_that_are_no_class_are_named(method, wrong):
    z, targets = random_logits(4, 10), torch.tensor([0, wrong, -100, 9])
    student, teacher = networks()
    distiller = CrossEntropy(student) if method is CrossEntropy else method(student, teacher)
    with pytest.raises(
        UserError, match=rf"^targets: found {wrong}, allowed are the classes 0 to 9"
    ):
        distiller(batch(*z[:2], targets, z[2:]), progress())


def test_cross_entropy_is_torchs():
    z, targets = random_logits(6, 10)[0], torch.tensor([3, -100, 0, 1, 2, 9])
    assert torch.equal(cross_entropy(z, targets), F.cross_entropy(z, targets))
    soft = torch.softmax(random_logits(6, 10, seed=1)[0], dim=-1)
    assert torch.equal(cross_entropy(z, soft), F.cross_entropy(z, soft))
    assert cross_entropy(z[:0], targets[:0]) == 0
    assert cross_entropy(z.bfloat16(), targets).dtype == torch.float32


# --- wrong shapes and temperatures ---


@pytest.mark.parametrize(
    "shapes", [((4, 10), (4, 9)), ((4, 10), (1, 10)), ((4, 10), (10,)), ((), ())]
)
def test_logits_of_different_shapes_are_named(shapes):
    student, teacher = map(torch.zeros, shapes)
    calls = [
        lambda: kd_loss(student, teacher),
        lambda: target_class_loss(student, teacher, torch.zeros(4).long()),
        lambda: non_target_class_loss(student, teacher, torch.zeros(4).long()),
        lambda: relation_losses(student, teacher, torch.ones(4), torch.ones(10), torch.ones(2)),
        lambda: instance_losses((student,) * 2, (student, teacher), torch.ones(4), torch.ones(5)),
    ]
    for call in calls if shapes[0] else calls[:4]:
        with pytest.raises(UserError, match=r"^student_logits, teacher_logits: found [^\n]*$"):
            call()


def test_coefficients_and_targets_of_other_shapes_are_named():
    pair, taus = random_logits(4, 10)[:2], torch.ones(5)
    samples, classes = low_confidence(pair[1])
    for call, name in (
        (lambda: instance_losses(pair, pair, samples[:, None], taus), "sample_coefficient"),
        (lambda: relation_losses(*pair, classes, classes, taus), "sample_coefficient"),
        (lambda: relation_losses(*pair, samples, samples, taus), "class_coefficient"),
        (lambda: target_class_loss(*pair, torch.zeros(4, 1).long()), "targets"),
        (lambda: non_target_class_loss(*pair, torch.zeros(3).long()), "targets"),
    ):
        with pytest.raises(UserError, match=rf"^{name}: found shape [^\n]*$"):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        *(0, -1.0, math.nan, math.inf, "4", True, None, np.float32(0), np.ones(1)),
        *(torch.ones(10), torch.ones(3, 1), torch.tensor(True), torch.tensor(1j)),
    ],
    ids=repr,
)
def test_a_wrong_temperature_is_named(wrong):
    pair, targets = random_logits(4, 10)[:2], torch.zeros(4).long()
    calls = [kd_loss, lambda s, t, tau: target_class_loss(s, t, targets, tau)]
    for call in [*calls, lambda s, t, tau: non_target_class_loss(s, t, targets, tau)]:
        with pytest.raises(UserError, match=r"^temperature: found [^\n]*$"):
            call(*pair, wrong)


@pytest.mark.parametrize("tau", [np.float32(3), np.int64(3), torch.tensor(3.0), torch.tensor(3)])
def test_a_number_is_a_number(tau):
    pair, targets = random_logits(4, 10)[:2], torch.zeros(4).long()
    assert torch.equal(kd_loss(*pair, tau), kd_loss(*pair, 3.0))
    for loss in (target_class_loss, non_target_class_loss):
        assert torch.equal(loss(*pair, targets, tau), loss(*pair, targets, 3.0))
    for method in (KD, DKD, MLD):
        distiller = method(*networks(), temperature=tau, ce_weight=tau, kd_weight=tau)
        assert (distiller.ce_weight, distiller.kd_weight) == (3, 3)
        kept = vars(distiller).values()
        assert not any(isinstance(value, np.generic | torch.Tensor) for value in kept)


# --- precision ---


@each_method
@with_and_without
def test_precision(method, standard):
    distiller = method(*networks(), Weighting("ea"), standardize=standard)  # as it is built
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        z = [x.to(dtype) for x in random_logits(4, 10)]
        terms = distiller(batch(*z[:2], torch.arange(4), z[2:]), progress())
        assert {term.dtype for term in terms.values()} == {expected}
        total = distiller.total(terms)
        assert total.loss.dtype == total.weight.dtype == expected


@pytest.mark.parametrize("method", ["reviewkd", "fcfd"])
def test_double_precision_of_features(method):
    distiller = make(method).double()
    distiller.teacher.double()
    data = a_batch()
    terms = distiller(data._replace(images=data.images.double()), progress())
    assert {term.dtype for term in terms.values()} == {torch.float64}


# --- batches of one sample, numbers of classes ---


@pytest.mark.parametrize("method", ["kd", "ctkd", "dkd", "mld", "mld_ls", "reviewkd", "fcfd"])
def test_a_batch_of_one_sample_anywhere_in_an_epoch(method):
    distiller = make(method)
    for size in (4, 1, 4, 1):
        assert step(distiller, batch=a_batch(size)).isfinite()
    assert all(value.isfinite().all() for value in distiller.state_dict().values())


@pytest.mark.parametrize(
    "student",
    ["vgg8", "mobilenetv2", "resnet8x4", "resnet50", "shufflenetv1", "shufflenetv2", "wrn_16_2"],
)
@pytest.mark.parametrize("method", ["kd", "mld", "reviewkd", "fcfd"])
def test_every_family_learns_from_one_sample(method, student):
    distiller = make(method, f"{student} {student}")
    assert step(distiller, batch=a_batch(1)).isfinite()
    assert all(value.isfinite().all() for value in distiller.state_dict().values())


def test_a_single_value_is_normalised_by_running_statistics_and_leaves_them():
    norm, plain = BatchNorm(3), torch.nn.BatchNorm2d(3)
    for each in (norm, plain):
        for x in (torch.arange(24.0).reshape(4, 3, 2, 1), torch.arange(6.0).reshape(1, 3, 2, 1)):
            each(x)  # more than a value for each channel: PyTorch's own
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), plain.buffers(), strict=True))
    before = [buffer.clone() for buffer in norm.buffers()]
    single = torch.ones(1, 3, 1, 1)
    assert torch.equal(norm(single), plain.eval()(single)) and norm.training
    assert all(map(torch.equal, before, norm.buffers()))


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", ["fcfd", "reviewkd"])
def test_numbers_of_classes(method, pair, classes):
    assert step(make(method, pair, classes=classes), batch=a_batch(2, classes)).isfinite()
