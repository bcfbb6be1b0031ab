"""MLD, EA-MLD and both with logit standardisation against the authors' numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import DTYPES, batch, load, networks, progress, untouched
from hypothesis import given, settings
from hypothesis import strategies as st

from eakd.distillers.kd import KD, kd_loss
from eakd.distillers.mld import MLD, low_confidence, relation_loss
from eakd.errors import UserError
from eakd.weighting import ea_weight

CASES = load("mld")
PLAIN = "b100_mld_T4_kd0.9_plain"


def build(case, **changes):
    hyper = case.hyper
    options = {
        "temperature": hyper["T_base"],
        "ce_weight": hyper["ce_weight"],
        "kd_weight": hyper["kd_weight"],
        "standardize": hyper["LS"],
    }
    return MLD(*networks(), case.weighting, **(options | changes))


def logits(case, dtype, requires_grad=False):
    return {
        f"{role}_{view}": case.tensor(f"{role}_{view}", dtype, requires_grad)
        for role in ("student", "teacher")
        for view in ("weak", "strong")
    }


def two_views(z, targets):
    strong = z["student_strong"], z["teacher_strong"]
    return batch(z["student_weak"], z["teacher_weak"], targets, strong)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    case = CASES[name]
    z = logits(case, dtype, requires_grad=True)
    method = build(case).to(dtype)
    terms = method(two_views(z, case.targets), progress())
    total = method.total(terms).loss
    instance = total - terms["ce"] - terms["batch"] - terms["class"]
    case.check_values(
        dtype,
        total=total,
        loss_ce=terms["ce"],
        loss_kd=instance,
        loss_bc=terms["batch"],
        loss_cc=terms["class"],
    )
    if not case.hyper["EA"] and dtype == torch.float64:
        inputs = [z["student_weak"], z["student_strong"]]
        weak, strong = torch.autograd.grad(instance, inputs, retain_graph=True)
        case.check_gradients(
            dtype, student_weak_kd_term_only=weak, student_strong_kd_term_only=strong
        )
    total.backward()
    case.check_gradients(
        dtype, student_weak=z["student_weak"].grad, student_strong=z["student_strong"].grad
    )
    assert untouched(z["teacher_weak"], z["teacher_strong"])


@pytest.mark.parametrize("name", [n for n in CASES if n.endswith("plain")])
def test_golden_building_blocks(name):
    case = CASES[name]
    expected = case.values[torch.float64]
    z = logits(case, torch.float64)
    samples, classes = low_confidence(z["teacher_weak"], "intended")
    assert np.array_equal(samples.bool(), expected["sample_mask"])
    assert np.array_equal(classes.bool(), expected["class_mask"])
    taus = torch.tensor(case.hyper["temperatures_in_order"])[:, None, None]
    for view in ("weak", "strong"):
        pair = z[f"student_{view}"], z[f"teacher_{view}"]
        student, teacher = (F.softmax(x / taus, dim=-1) for x in pair)
        blocks = {
            f"bc_{view}_per_T": relation_loss(student, teacher).mean(-1),
            f"cc_{view}_per_T": relation_loss(student.mT, teacher.mT).mean(-1),
        }
        if not case.hyper["LS"]:
            blocks[f"kd_{view}_per_T"] = kd_loss(*pair, taus).mean(-1)
        case.check_values(torch.float64, **blocks)


def test_intended_variant():
    """The mask selects samples and classes, and strong terms see strong logits only."""
    case = CASES[PLAIN]
    z = logits(case, torch.float64)
    terms = build(case, variant="intended").double()(two_views(z, case.targets), progress())
    expected = case.values[torch.float64]
    mask = torch.tensor(expected["sample_mask"])
    weak, strong, level = 0.0, 0.0, 0.0
    for tau in case.hyper["temperatures_in_order"]:
        weak = weak + 0.9 * mask * kd_loss(z["student_weak"], z["teacher_weak"], tau)
        strong = strong + 0.9 * kd_loss(z["student_strong"], z["teacher_strong"], tau)
        student, teacher = (F.softmax(z[f"{r}_weak"] / tau, -1) for r in ("student", "teacher"))
        classes = torch.tensor(expected["class_mask"])
        level = level + 0.9 * (relation_loss(student.mT, teacher.mT) * classes).mean()
    torch.testing.assert_close(terms["instance_weak"], weak)
    torch.testing.assert_close(terms["instance_strong"], strong)
    torch.testing.assert_close(terms["class"], level)
    # The published slips make the instance level this much larger on this batch.
    instance = terms["instance_weak"].mean() + terms["instance_strong"].mean()
    assert expected["loss_kd"] / instance == pytest.approx(1.489, abs=5e-4)


def test_each_view_is_weighted_by_its_own_entropy():
    case = CASES["b100_mldls_paperEA_T2_kd4_EA_hublog100"]
    z = logits(case, torch.float64)
    method = build(case).double()
    terms = method(two_views(z, case.targets), progress())
    expected = terms["ce"] + terms["batch"] + terms["class"]
    for view in ("weak", "strong"):
        weight = ea_weight(z[f"student_{view}"], z[f"teacher_{view}"])  # raw logits
        expected = expected + (weight * terms[f"instance_{view}"]).mean()
    torch.testing.assert_close(method.total(terms).loss, expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 33), st.integers(2, 12), st.integers(0, 2**31))
def test_masks_equal_those_of_the_interpolated_median(n, c, seed):
    teacher = torch.randn(n, c, generator=torch.Generator().manual_seed(seed)).double()
    p = torch.softmax(teacher, dim=-1)
    found = low_confidence(teacher, "intended")
    for mask, confidence in zip(found, (p.amax(-1), p.sum(0)), strict=True):
        assert np.array_equal(mask.bool(), confidence <= np.percentile(confidence, 50))
    for mask, share in zip(found, low_confidence(teacher, "published"), strict=True):
        assert torch.equal(share, mask.mean().expand_as(mask))


def test_relations_are_computed_in_full_precision():
    student, teacher = torch.softmax(torch.randn(2, 8, 10), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relation_loss(student, teacher)
    assert torch.equal(found, relation_loss(student, teacher))


def test_without_a_strong_view():
    data = batch(*torch.randn(2, 3, 10), torch.arange(3))
    with pytest.raises(
        UserError, match=r"^recipe\.strong_view: found none, allowed is auto or .*: MLD"
    ):
        MLD(*networks())(data, progress())
    assert MLD.needs_strong_view and not KD.needs_strong_view


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("variant", "fixed"), ("ce_weight", -1), ("entropy_logits", "both")],
)
def test_bad_values(name, value):
    with pytest.raises(UserError, match=f"^{name}: found"):
        MLD(*networks(), **{name: value})
