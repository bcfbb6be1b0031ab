"""Confidence against accuracy: reliability, calibration error, temperature scaling."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def calibrated(
    logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """``(N,)`` confidence of the chosen class at ``temperature``, and whether it is right."""
    confidence = np.exp(log_softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1))
    return confidence, logits.argmax(axis=1) == labels


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> np.ndarray:
    """``(3, bins)``: samples, sum of their confidence, and how many are right, in equal widths."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # (low, high]
    weights = (np.ones(len(place)), confidence, right.astype(float))
    return np.stack([np.bincount(place, each, minlength=bins) for each in weights])


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Mean over samples of ``|accuracy − confidence|`` of their bins, in [0, 1].

    Source: Guo et al. 2017, Eq. 3.
    """
    _, sums, hits = reliability(confidence, right, bins)
    return float(np.abs(sums - hits).sum() / len(confidence))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.05, 20] with the lowest cross-entropy of ``logits / T``."""

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return float(-scaled[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=np.log([0.05, 20.0]), method="bounded")
    return float(np.exp(found.x))
