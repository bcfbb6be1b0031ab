"""Agreement, divergence, calibration and CKA: known answers, and figures of tiny runs."""

import math

import numpy as np
import pytest
import torch

from eakd.analysis.calibration import (
    calibrated,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from eakd.analysis.fidelity import agreement, calibration, divergence, fidelity
from eakd.analysis.networks import Networks
from eakd.analysis.runs import glob_runs
from eakd.analysis.similarity import CKA, cka
from eakd.errors import UserError


@pytest.fixture(scope="module")
def runs(trained):
    return glob_runs(str(trained / "**")).only(["kd", "ea_kd"])


def logits(count=200, classes=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, classes)).astype(np.float32)


def linear_cka(first, second, sizes=(10_000,)):
    total = CKA()
    pieces = [torch.from_numpy(x).split(sizes[0]) for x in (first, second)]
    for a, b in zip(*pieces, strict=True):
        total.add([a], [b])
    return total.value()[0, 0]


def test_equal_logits_agree_and_do_not_diverge():
    x = logits()
    assert agreement(x, x).all() and not agreement(x, -x).all()
    for temperature in (1, 4):
        assert np.abs(divergence(x, x, temperature)).max() < 1e-12


def test_divergence_from_a_uniform_student():
    """Eqs. 5 to 7: log C from a certain teacher, 0 from a uniform one."""
    certain, uniform = 1000 * np.eye(5), np.zeros((5, 5))
    assert divergence(certain, uniform, 1) == pytest.approx([math.log(5)] * 5)
    assert divergence(uniform, uniform, 4) == pytest.approx([0] * 5)
    p = np.array([0.7, 0.2, 0.1])
    assert divergence(np.log(p)[None], np.zeros((1, 3)), 1) == pytest.approx(
        [math.log(3) + (p * np.log(p)).sum()]
    )


def test_calibration_error():
    half = np.array([True, False] * 10)
    assert expected_calibration_error(np.full(20, 0.9), half, 15) == pytest.approx(0.4)
    assert expected_calibration_error(np.full(20, 0.5), half, 15) == pytest.approx(0)
    # Two bins: 0.2 away in a quarter of the samples, exact in the others.
    confidence = np.array([0.7] * 5 + [0.2] * 15)
    right = np.array([True] * 5 + [True] * 3 + [False] * 12)
    assert expected_calibration_error(confidence, right, 10) == pytest.approx(0.3 * 0.25)
    count, sums, hits = reliability(np.array([0.1, 0.1001, 1.0, 0.0]), np.ones(4, bool), 10)
    assert count.tolist() == [2, 1, *[0] * 7, 1]  # bins hold their upper end
    assert sums.sum() == pytest.approx(1.2001) and hits.sum() == 4


def test_the_temperature_is_found():
    random = np.random.default_rng(0)
    x = 3 * random.normal(size=(20_000, 4))
    p = np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True)
    labels = (p.cumsum(1) > random.random((len(p), 1))).argmax(1)
    assert fit_temperature(x, labels) == pytest.approx(2, rel=0.05)
    before, after = (
        expected_calibration_error(*calibrated(x, labels, temperature), 15)
        for temperature in (1, 2)
    )
    assert after < 0.02 < before


def test_cka():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 6)) * [3, 2, 1, 1, 1, 1]
    rotation = np.linalg.qr(random.normal(size=(6, 6)))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 5 * x @ rotation + 7) == pytest.approx(1, abs=1e-4)
    # Centred features that are orthogonal have no part in common.
    y = np.repeat(np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]), 100, axis=0)
    assert abs(linear_cka(y[:, :1], y[:, 1:])) < 0.01
    # Batches estimate what the whole gives, without the bias of few samples.
    other = x[:, :3] + random.normal(size=(400, 3))
    assert linear_cka(x, other, (40,)) == pytest.approx(linear_cka(x, other), abs=0.03)
    independent = random.normal(size=(400, 6))
    assert abs(linear_cka(x, independent, (10,))) < 0.1


def test_fidelity_of_runs(runs, outputs):
    result = fidelity(runs, output_root=outputs)
    assert list(result.panels) == [
        f"{value}.{split}" for split in ("train", "test") for value in ("agreement", "kl1", "kl4")
    ]
    networks = Networks(outputs)
    teacher = networks.teacher_answers(runs[0])
    same = [
        100 * (networks.answers(run).predictions == teacher.predictions).mean()
        for run in runs.of("kd")
    ]
    assert result.numbers["agreement.test.kd"] == pytest.approx(np.mean(same))
    assert all(v >= 0 for key, v in result.numbers.items() if key.startswith("kl"))
    assert len(result.tests) == 6
    with pytest.raises(UserError, match="temperatures: found 0"):
        fidelity(runs, output_root=outputs, temperatures=[0])


def test_calibration_of_runs(runs, outputs):
    result = calibration(runs, output_root=outputs)
    assert list(result.panels) == ["before", "after"]
    for name in ("teacher", "kd", "ea_kd"):
        assert 0 <= result.numbers[f"ece15.after.{name}"] <= 1
        assert 0.05 <= result.numbers[f"temperature.{name}"] <= 20
    # Half of the images are measured, half are fitted on.
    assert 0 < 1717 - 2 * result.about["samples"] < 10 or (
        0 <= 2 * result.about["samples"] - 1717 <= 10
    )
    assert "half of the test images" in result.notes[0]
    with pytest.raises(UserError, match="bins: found 0"):
        calibration(runs, output_root=outputs, bins=[0])


def test_cka_of_runs(runs, outputs):
    result = cka(runs, output_root=outputs)
    assert list(result.panels) == ["kd", "ea_kd"]
    matrix = result.panels["kd"].surface[2]
    assert matrix.shape == (5, 5)  # four stages and the pooled features
    assert np.isfinite(matrix).all() and (matrix < 1.01).all()
    assert result.numbers["cka.kd.5.5"] == pytest.approx(matrix[4, 4])
    again = cka(runs, output_root=outputs)
    assert np.array_equal(again.panels["kd"].surface[2], matrix)
