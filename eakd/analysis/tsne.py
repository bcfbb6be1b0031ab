"""Which classes are embedded, and points of t-SNE that are made once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eakd.analysis.answers import Answers
from eakd.analysis.cache import digest, read_arrays, write_arrays
from eakd.analysis.separation import (
    calinski_harabasz,
    check_classes,
    check_perplexity,
    choose_library,
    embed_all,
    library_version,
)
from eakd.errors import check_choice, check_number, check_numbers

Job = tuple[Answers, np.ndarray, float]  # what is embedded: its classes, at a perplexity


def choose_classes(
    classes: str | Sequence[int], count: int, answers: Answers, seed: int = 0
) -> np.ndarray:
    """Labels of the classes that are shown, in their order.

    Raises:
        UserError: unknown ones, or fewer than two.
    """
    every = len(answers.classes)
    if isinstance(classes, str):
        check_choice("classes", classes, ("first", "random", "all"))
        count = check_number("class_count", count, at_least=2, integer=True)
        if classes == "random":
            drawn = np.random.default_rng(seed).permutation(every)[:count]
            return np.sort(drawn)
        return np.arange(every if classes == "all" else min(count, every))
    bounds = {"at_least": 0, "at_most": every - 1, "integer": True}
    chosen = np.unique(check_numbers("classes", classes, **bounds)).astype(int)
    check_classes(chosen)
    return chosen


class Embeddings:
    """Points of t-SNE by what was embedded, from a cache where they were made before.

    Args:
        library: see `choose_library`.
    """

    def __init__(self, cache: Path, library: str):
        self.cache, self.library = cache, library
        self.about = ""
        self._points: dict[str, np.ndarray] = {}

    def compute(self, jobs: Sequence[Job]) -> None:
        """Embed the features of some classes at a perplexity, for each job, on all cores.

        Raises:
            UserError: a perplexity that is too large, or a library that is not there.
        """
        missing = {}
        for job in jobs:
            facts = self._facts(*job)
            self.about = self.about or facts["library"]
            path = self.cache / f"embedding-{digest(facts)}.npz"
            found = read_arrays(path, facts)
            if found is None:
                missing[path] = job, facts
            else:
                self._points[digest(facts)] = found["points"]
        work = [
            (answers.pooled[np.isin(answers.labels, classes)], perplexity, self._choose(job))
            for job, _ in missing.values()
            for answers, classes, perplexity in [job]
        ]
        for (path, (_, facts)), points in zip(missing.items(), embed_all(work), strict=True):
            write_arrays(path, facts, {"points": points})
            self._points[digest(facts)] = points

    def points(self, *job: Any) -> np.ndarray:
        """``(n, 2)`` of a job that was computed."""
        return self._points[digest(self._facts(*job))]

    def index(self, *job: Any) -> float:
        """The CH index of the points."""
        answers, classes, _ = job
        labels = answers.labels[np.isin(answers.labels, classes)]
        return calinski_harabasz(self.points(*job), labels)

    def _choose(self, job: Job) -> str:
        answers, classes, perplexity = job
        count = int(np.isin(answers.labels, classes).sum())
        check_perplexity(perplexity, count)
        return choose_library(self.library, count)

    def _facts(self, *job: Any) -> dict[str, Any]:
        answers, classes, perplexity = job
        return {
            "answers": answers.key,
            "classes": classes.tolist(),
            "perplexity": perplexity,
            "library": library_version(self._choose(job)),
        }
