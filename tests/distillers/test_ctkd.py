"""CTKD against the authors' numbers; EA-CTKD against w_i · KL_i · τ²."""

import pytest
import torch
from golden import DTYPES, batch, load, networks, progress, untouched

from eakd.distillers.ctkd import CTKD, cosine_lambda, scale_gradient
from eakd.errors import UserError

SCHEDULES = {name: case for name, case in load("ctkd").items() if name.startswith("schedule")}
CASES = {name: case for name, case in load("ctkd").items() if name not in SCHEDULES}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    case = CASES[name]
    hyper = case.hyper
    student = case.tensor("student_logits", dtype, requires_grad=True)
    teacher = case.tensor("teacher_logits", dtype, requires_grad=True)
    method = CTKD(
        *networks(),
        case.weighting,
        min_temperature=hyper["t_start"],
        temperature_range=hyper["t_end"],
        theta=hyper["theta"],
        ce_weight=hyper["ce_weight"],
        kd_weight=hyper["kd_weight"],
    ).to(dtype)
    terms = method(batch(student, teacher, case.targets), progress(hyper["epoch"]))
    total = method.total(terms)
    kd = total.loss - terms["ce"]
    case.check_values(
        dtype,
        temperature=method.temperature(),
        total=total.loss,
        loss_ce=terms["ce"],
        loss_kd=kd,
        loss_kd_unweighted=kd / hyper["kd_weight"],
    )
    total.loss.backward()
    case.check_gradients(dtype, student_logits=student.grad, theta=method.theta.grad)
    assert untouched(teacher)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    case = SCHEDULES[name]
    expected = case.values[torch.float64]["lambda"]
    loops, minimum = case.hyper["decay_loops"], case.hyper["decay_min"]
    found = [cosine_lambda(epoch, loops, minimum) for epoch in range(1, len(expected) + 1)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_scale_gradient_keeps_the_value():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = scale_gradient(x, -0.25)
    y.sum().backward()
    assert torch.equal(y, x)
    assert x.grad.tolist() == [-0.25, -0.25]


def test_theta_ascends_the_loss_and_is_trained_with_the_student():
    method = CTKD(*networks())
    assert any(p is method.theta for p in method.trainable_parameters())
    assert "theta" in method.state_dict()
    logits = torch.randn(2, 6, 10) * 4
    data = batch(*logits, torch.arange(6))
    before = method.total(method(data, progress(10))).loss
    before.backward()
    with torch.no_grad():
        method.theta -= 0.1 * method.theta.grad  # an optimiser's descent step
    assert method.total(method(data, progress(10))).loss > before
    assert method.scalars() == {"temperature": pytest.approx(method.temperature().item())}


def test_temperature_stays_inside_its_range():
    for theta in (-1e6, -50.0, 0.0, 50.0, 1e6):
        method = CTKD(*networks(), min_temperature=2.0, temperature_range=5.0, theta=theta)
        logits = torch.randn(2, 3, 10, requires_grad=True)
        method.total(method(batch(*logits, torch.arange(3)), progress(5))).loss.backward()
        assert 2.0 <= method.scalars()["temperature"] <= 7.0
        assert method.theta.grad.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_temperature", 0),
        ("temperature_range", 0),
        ("temperature_range", -5.0),
        ("theta", float("inf")),
        ("decay_epochs", 0),
        ("kd_weight", -1),
    ],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        CTKD(*networks(), **{name: value})
