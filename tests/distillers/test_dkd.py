"""DKD, EA-DKD and both with logit standardisation against the authors' numbers."""

import pytest
import torch
from golden import DTYPES, batch, load, networks, progress, untouched

from eakd.distillers.dkd import DKD, non_target_class_loss, other_logits, target_class_loss
from eakd.errors import UserError

CASES = load("dkd")


def build(hyper, weighting, **changes):
    options = {
        "temperature": hyper["T"],
        "alpha": hyper["alpha"],
        "beta": hyper["beta"],
        "warmup": hyper["warmup"],
        "ce_weight": hyper["ce_weight"],
        "kd_weight": hyper["LS_kd_weight"] or 1.0,
        "standardize": hyper["LS"],
    }
    return DKD(*networks(), weighting, **(options | changes))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    case = CASES[name]
    hyper = case.hyper
    student = case.tensor("student_logits", dtype, requires_grad=True)
    teacher = case.tensor("teacher_logits", dtype, requires_grad=True)
    method = build(hyper, case.weighting)
    terms = method(batch(student, teacher, case.targets), progress(hyper["epoch"]))
    total = method.total(terms)
    case.check_values(
        dtype, total=total.loss, loss_ce=terms["ce"], loss_kd=total.loss - terms["ce"]
    )
    ramp = min(hyper["epoch"] / hyper["warmup"], 1)
    case.check_values(
        dtype,
        tckd_unweighted=(total.weight * terms["tckd"]).mean() / (ramp * hyper["effective_alpha"]),
        nckd_unweighted=(total.weight * terms["nckd"]).mean() / (ramp * hyper["effective_beta"]),
    )
    total.loss.backward()
    case.check_gradients(dtype, student_logits=student.grad)
    assert untouched(teacher)


@pytest.mark.parametrize("name", [n for n in CASES if "_LS_" in n and "_EA_" in n])
def test_golden_entropy_of_raw_logits(name):
    case = CASES[name]
    pair = (case.tensor(f"{role}_logits", torch.float64) for role in ("student", "teacher"))
    method = build(case.hyper, case.weighting, entropy_logits="raw")
    terms = method(batch(*pair, case.targets), progress(case.hyper["epoch"]))
    kd = method.total(terms).loss - terms["ce"]
    case.check_values(torch.float64, loss_kd_alt_raw_logit_weights=kd)


def test_the_two_parts_add_up_to_kd():
    """KD = TCKD + (1 - p_target) NCKD, the decoupling itself."""
    from eakd.distillers.kd import kd_loss

    student, teacher = torch.randn(2, 6, 10, dtype=torch.float64) * 5
    targets = torch.arange(6)
    parts = [f(student, teacher, targets, 4.0) for f in (target_class_loss, non_target_class_loss)]
    rest = 1 - torch.softmax(teacher / 4, dim=-1)[targets, targets]
    torch.testing.assert_close(parts[0] + rest * parts[1], kd_loss(student, teacher, 4.0))


def test_saturated_logits_stay_finite():
    """Gaps at which the target's probability underflows and a -1000 mask would leak."""
    student = torch.tensor([[3e4, -3e4, 0.0], [-3e4, 3e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-3e4, 3e4, 0.0], [-3e4, 3e4, 0.0]])
    targets = torch.tensor([0, 0])
    for loss in (target_class_loss, non_target_class_loss):
        values = loss(student, teacher, targets, 4.0)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        assert values.isfinite().all() and gradient.isfinite().all()
        assert values[1] == 0  # equal logits
    exact = non_target_class_loss(student.double(), teacher.double(), targets, 4.0)
    torch.testing.assert_close(non_target_class_loss(student, teacher, targets, 4.0), exact.float())


def test_other_logits_keep_the_order():
    logits = torch.arange(12.0).reshape(3, 4)
    expected = torch.tensor([[1.0, 2, 3], [4, 5, 7], [8, 9, 10]])
    assert torch.equal(other_logits(logits, torch.tensor([0, 2, 3])), expected)


def test_no_warmup():
    method = DKD(*networks(), warmup=0)
    logits = torch.randn(2, 3, 10)
    first, last = (method(batch(*logits, torch.arange(3)), progress(e)) for e in (1, 9))
    assert torch.equal(first["tckd"], last["tckd"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("alpha", -1), ("beta", "8"), ("warmup", -1), ("kd_weight", None)],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        DKD(*networks(), **{name: value})
