"""KD and EA-KD against the authors' numbers."""

import pytest
import torch
import torch.nn.functional as F
from golden import DTYPES, batch, load, networks, progress, untouched

from eakd.distillers.kd import KD, CrossEntropy, kd_loss
from eakd.errors import UserError
from eakd.weighting import ea_weight

CASES = load("kd")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    case = CASES[name]
    hyper = case.hyper
    student = case.tensor("student_logits", dtype, requires_grad=True)
    teacher = case.tensor("teacher_logits", dtype, requires_grad=True)
    method = KD(
        *networks(),
        case.weighting,
        temperature=hyper["T"],
        ce_weight=hyper["ce_weight"],
        kd_weight=hyper["kd_weight"],
    )
    terms = method(batch(student, teacher, case.targets), progress())
    total = method.total(terms)
    case.check_values(dtype, loss_ce=terms["ce"], loss_kd=total.loss - terms["ce"])
    case.check_values(dtype, total=total.loss)
    if dtype == torch.float64:
        (kd_part,) = torch.autograd.grad(total.loss - terms["ce"], student, retain_graph=True)
        case.check_gradients(dtype, student_logits_kd_term_only=kd_part)
    total.loss.backward()
    case.check_gradients(dtype, student_logits=student.grad)
    assert untouched(teacher)


def test_plain_function_in_a_loop_of_ones_own():
    case = CASES["b100_T4_ce0.1_kd0.9_EA_tau3_hublogC"]
    student = case.tensor("student_logits", torch.float64)
    teacher = case.tensor("teacher_logits", torch.float64)
    loss = (ea_weight(student, teacher) * kd_loss(student, teacher, 4.0)).mean()
    case.check_values(torch.float64, loss_kd=0.9 * loss)


def test_several_temperatures_at_once():
    student, teacher = torch.randn(2, 5, 10)
    taus = torch.tensor([1.0, 2.5, 7.0])
    expected = torch.stack([kd_loss(student, teacher, float(tau)) for tau in taus])
    torch.testing.assert_close(kd_loss(student, teacher, taus[:, None, None]), expected)


def test_half_precision_logits_are_compared_in_float32():
    student, teacher = torch.randn(2, 5, 10).bfloat16()
    loss = kd_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, kd_loss(student.float(), teacher.float()))


def test_cross_entropy_needs_no_teacher():
    student, _ = networks()
    logits, targets = torch.randn(5, 10), torch.arange(5)
    terms = CrossEntropy(student)(batch(logits, logits, targets), progress())
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("temperature", "warm"), ("ce_weight", -0.1), ("kd_weight", float("nan"))],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        KD(*networks(), **{name: value})
