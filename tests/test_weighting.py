"""Entropy and the reweighting factors against golden values, and what they must always hold."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eakd import Weighting, ea_weight, entropy
from eakd.errors import UserError
from eakd.weighting import KINDS

GOLDEN = np.load(Path(__file__).parent / "golden" / "weights.npz")
CASES = [str(case) for case in GOLDEN["cases"]]

# Our kind -> the golden array's name.
GOLDEN_NAMES = {
    "ea": "w",
    "teacher": "w_base",
    "interaction": "w_inter",
    "inverted_teacher": "w_inv_T",
    "inverted_student": "w_inv_S",
    "student": "H_S",
}


def golden_inputs(case, dtype):
    hyper = json.loads(str(GOLDEN[f"{case}/hyper"]))
    student, teacher = (
        torch.tensor(GOLDEN[f"in/{hyper['batch']}/{role}_logits"]).to(dtype)
        for role in ("student", "teacher")
    )
    return hyper, student, teacher


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", GOLDEN_NAMES)
def test_golden(case, kind):
    hyper, student, teacher = golden_inputs(case, torch.float64)
    weight = Weighting(kind, hyper["tau_prime"], hyper["H_ub"])(student, teacher)
    # The released code adds 1e-10 inside the logarithm or clamps there; ours is exact.
    for variant in ("add", "clamp"):
        expected = GOLDEN[f"{case}/out64/{variant}/{GOLDEN_NAMES[kind]}"]
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_golden_exact_entropy(case):
    hyper, student, teacher = golden_inputs(case, torch.float64)
    tau = hyper["tau_prime"]
    for logits, name in ((student, "H_S"), (teacher, "H_T")):
        expected = GOLDEN[f"{case}/out64/exact/{name}"]
        np.testing.assert_allclose(entropy(logits, tau).numpy(), expected, rtol=1e-6, atol=1e-12)
    weight = ea_weight(student, teacher, tau, hyper["H_ub"])
    np.testing.assert_allclose(
        weight.numpy(), GOLDEN[f"{case}/out64/exact/w"], rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("tau3_hublogC")])
def test_defaults_follow_the_paper(case):
    _, student, teacher = golden_inputs(case, torch.float32)
    expected = GOLDEN[f"{case}/out64/exact/w"]
    np.testing.assert_allclose(ea_weight(student, teacher), expected, rtol=1e-4, atol=1e-5)


def finite_logits(bits):
    return hnp.arrays(
        getattr(np, f"float{bits}"),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=bits),
    )


@settings(max_examples=200, deadline=None)
@given(st.one_of(finite_logits(16), finite_logits(32), finite_logits(64)), st.floats(0.5, 8))
def test_bounds_hold_for_any_finite_logits(array, temperature):
    logits = torch.tensor(array)
    bound = math.log(logits.shape[-1])
    h = entropy(logits, temperature)
    assert h.shape == logits.shape[:-1]
    assert h.isfinite().all() and (h >= 0).all() and (h <= bound + 1e-6).all()
    w = ea_weight(logits.flip(0), logits, temperature)
    assert w.isfinite().all() and (w >= 0).all() and (w <= bound + 1e-6).all()


def test_extremes():
    classes = 100
    uniform = torch.zeros(1, classes)
    one_hot = torch.zeros(1, classes)
    one_hot[0, 3] = 1e4
    assert entropy(uniform).item() == pytest.approx(math.log(classes), rel=1e-6)
    assert entropy(one_hot).item() == 0
    # Eqs. 13a-13c: both unsure, student confident, teacher confident.
    assert ea_weight(uniform, uniform).item() == pytest.approx(math.log(classes), rel=1e-6)
    assert ea_weight(one_hot, uniform).item() == pytest.approx(math.log(classes) / 2, rel=1e-6)
    assert ea_weight(uniform, one_hot).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype)
    h = entropy(logits)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, entropy(logits.float()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_and_shape(kind):
    student = torch.randn(4, 6, 10, requires_grad=True)
    teacher = torch.randn(4, 6, 10, requires_grad=True)
    weight = Weighting(kind)(student, teacher)
    assert weight.shape == (4, 6)
    assert not weight.requires_grad


def test_matched_has_the_scale_of_ea_and_selects_nothing():
    student, teacher = torch.randn(2, 32, 10)
    ea, matched = (Weighting(kind)(student, teacher) for kind in ("ea", "matched"))
    assert matched.unique().numel() == 1
    assert matched[0].item() == pytest.approx(ea.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "entropy"}, "kind: found 'entropy', allowed is one of uniform, teacher"),
        ({"entropy_temperature": 0}, "entropy_temperature: found 0"),
        ({"entropy_temperature": -1.0}, "entropy_temperature: found -1.0"),
        ({"max_entropy": -3}, "max_entropy: found -3"),
        ({"max_entropy": math.nan}, "max_entropy: found nan"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        Weighting(**arguments)


def test_different_shapes_are_named():
    with pytest.raises(UserError, match=r"\(4, 10\) and \(4, 100\)"):
        ea_weight(torch.randn(4, 10), torch.randn(4, 100))
