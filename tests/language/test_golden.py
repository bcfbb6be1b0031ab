"""Losses and gradients against DSKD's own numbers, and against the formulas in plain NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eakd.distillers.base import Progress
from eakd.language.distillers import LEVELS, SequenceKD
from eakd.language.loss import DIVERGENCES
from eakd.weighting import Weighting
from language.stubs import Said, batch_of

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# The golden files' names of what is called otherwise here.
OFFICIAL = {"forward_kl": "forward_kl", "reverse_kl": "reverse_kl", "jsd": "js_divergence"}
# The stored weights are of entropies with 1e-10 inside the logarithm, the released code's.
RELEASED = 5e-9
# The stored JSD of unequal lengths has no 1e-9 inside its logarithms; ours has, as DSKD's.
WITHOUT_EPSILON = 1e-7
READING = {
    "sequence": "EA_seq_tokensum",
    "token_mean": "EA_seq_meanweight_of_tokens",
    "sequence_mean": "EA_seq_meanmean",
    "token": "EA_token",
}


def run(student, teacher, labels, dtype, plain=True, **settings):
    """Loss, weighted distillation loss, and the gradient by the student's logits."""
    networks = (Said(torch.as_tensor(x).to(dtype), plain) for x in (student, teacher))
    method = SequenceKD(*networks, **settings)
    terms = method(batch_of(labels), Progress(0, 1, 0))
    total = method.total(terms)
    total.loss.backward()
    return total, terms, method.student.said.grad


def relative(found, expected):
    expected = torch.as_tensor(expected).to(found)
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def official():
    return np.load(GOLDEN / "llm.npz")


@pytest.fixture(scope="module")
def unequal():
    return np.load(GOLDEN / "llm_unequal.npz")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("plain", [True, False], ids=["head", "odd"])
@pytest.mark.parametrize("temperature", [1, 2])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dskd(official, divergence, temperature, plain, dtype):
    case = f"b0_dskd_{OFFICIAL[divergence]}_T{temperature}_rate0.5"
    batch = [official[f"in/b0/{name}"] for name in ("student_logits", "teacher_logits", "label")]
    settings = {"divergence": divergence, "temperature": float(temperature), "plain": plain}
    total, terms, gradient = run(*batch, dtype, **settings)
    close = TOLERANCE[dtype]
    assert total.loss.item() == pytest.approx(official[f"{case}/out64/loss"], rel=close)
    assert 2 * terms["kd"].sum().item() == pytest.approx(
        official[f"{case}/out64/kd_sum"], rel=close
    )
    assert relative(gradient, official[f"{case}/grad64/student_logits"]) < close
    for level in LEVELS:
        total, terms, gradient = run(
            *batch, dtype, weighting=Weighting("ea"), level=level, **settings
        )
        name = READING[level]
        close = max(TOLERANCE[dtype], RELEASED)
        assert total.loss.item() == pytest.approx(official[f"{case}/out64/{name}_total"], rel=close)
        assert relative(gradient, official[f"{case}/grad64/{name}_student_logits"]) < close


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("tau", [1, 3])
@pytest.mark.parametrize(
    ("divergence", "name"), [*zip(DIVERGENCES, ["kd", "rkld", "jsd"], strict=True)]
)
def test_readings_that_differ(unequal, divergence, name, tau, dtype):
    """Answers of 1, 3, 9 and 5 tokens: no two readings give the same."""
    batch = [unequal[f"in/{key}"] for key in ("student_logits", "teacher_logits", "labels")]
    settings, close = {"divergence": divergence, "temperature": 2.0}, TOLERANCE[dtype]
    ce = unequal["out64/ce_per_token"][batch[2] != -100].sum()
    seen = set()
    for level, kind in [(level, "ea") for level in LEVELS] + [
        ("sequence", "uniform"),
        ("sequence", "matched"),
    ]:
        total, terms, _ = run(
            *batch, dtype, weighting=Weighting(kind, float(tau)), level=level, **settings
        )
        expected = unequal[f"out64/tau{tau}/{name}/{level if kind == 'ea' else kind}"]
        kd = total.loss - terms["ce"]
        within = max(close, WITHOUT_EPSILON) if divergence == "jsd" else close
        assert 2 * kd.item() == pytest.approx(float(expected), rel=within)
        assert 2 * terms["ce"].item() * 18 == pytest.approx(float(ce), rel=close)
        seen.add(round(float(expected), 6))
        if kind == "ea" and level == "sequence":
            key = f"out64/tau{tau}/{name}/total_sequence"
            assert total.loss.item() == pytest.approx(float(unequal[key]), rel=within)
            assert relative(total.weight, unequal[f"out64/tau{tau}/w_sequence"]) < close
            assert relative(total.entropies.student, unequal[f"out64/tau{tau}/H_S"]) < close
            assert relative(total.entropies.teacher, unequal[f"out64/tau{tau}/H_T"]) < close
        if kind == "matched":
            assert relative(total.weight[:1], unequal[f"out64/tau{tau}/w_matched"]) < close
    assert len(seen) == 6
    assert json.loads(str(unequal["hyper"]))["T"] == 2.0


def test_minillm_is_forward_kl_at_one_but_for_a_constant(official):
    batch = [official[f"in/b0/{name}"] for name in ("student_logits", "teacher_logits", "label")]
    total, _, gradient = run(*batch, torch.float64, temperature=1.0)
    assert relative(gradient, official["b0_minillm_kd/grad64/student_logits"]) < 1e-9
    gap = official["b0_minillm_kd/out64/total"] - total.loss.item()
    teacher = torch.tensor(batch[1]).double()[torch.tensor(batch[2]) != -100].log_softmax(-1)
    assert gap == pytest.approx(-(teacher.exp() * teacher).sum(-1).mean().item() / 2, rel=1e-9)


def test_the_direction_of_each_divergence():
    """Two classes by hand: p_t = (0.8, 0.2), p_s = (0.5, 0.5)."""
    labels = [[0]]
    student, teacher = torch.zeros(1, 1, 2).double(), torch.tensor([[[0.8, 0.2]]]).double().log()
    expected = {
        "forward_kl": 0.8 * np.log(1.6) + 0.2 * np.log(0.4),
        "reverse_kl": 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2),
        "jsd": (
            0.8 * np.log(0.8 / 0.65) + 0.2 * np.log(0.2 / 0.35)
            + 0.5 * np.log(0.5 / 0.65) + 0.5 * np.log(0.5 / 0.35)
        ) / 2,
    }  # fmt: skip
    for divergence, value in expected.items():
        settings = {"divergence": divergence, "temperature": 1.0, "ce_weight": 0, "kd_weight": 1}
        total, *_ = run(student, teacher, labels, torch.float64, **settings)
        assert total.loss.item() == pytest.approx(value, rel=1e-7)
