"""Splitting a labelled set class by class, the same way for ever."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def stratified(
    labels: np.ndarray, take: Callable[[int], int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose samples of every class at random.

    Args:
        labels: ``(M,)`` integers.
        take: how many of a class to choose, from the size of the class.
        seed: the choice depends on it and on ``labels``, on nothing else.

    Returns:
        Positions of the chosen samples and of the others, both ``int64`` and ascending.
    """
    # RandomState's numbers are frozen by NumPy's policy; a Generator's may change with a version,
    # and results on a validation split would then no longer compare.
    random = np.random.RandomState(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[random.permutation(members)[: take(len(members))]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
