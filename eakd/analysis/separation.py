"""How well features separate classes: t-SNE, the Calinski–Harabasz index, neighbours.

Imports no torch, so that processes which embed start quickly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from eakd.errors import UserError, check_choice, check_number
from eakd.workers import in_processes

LIBRARIES = {"sklearn": "scikit-learn", "opentsne": "openTSNE"}
ITERATIONS = 1000
WORTH_PROCESSES = 3000  # points of all jobs together
MANY = 5000  # points from which openTSNE, whose time grows linearly, is worth its import


def choose_library(library: str, samples: int) -> str:
    """``"sklearn"`` or ``"opentsne"``; ``"auto"`` takes openTSNE for many points, if it is there.

    Raises:
        UserError: another name, or a library that is not installed.
    """
    check_choice("library", library, ("auto", *LIBRARIES))
    there = importlib.util.find_spec("openTSNE") is not None
    if library == "opentsne" and not there:
        raise UserError("library: found no openTSNE: pip install 'eakd[tsne]', or sklearn")
    if library == "auto":
        return "opentsne" if there and samples >= MANY else "sklearn"
    return library


def library_version(library: str) -> str:
    """``scikit-learn 1.9.1``: other versions embed otherwise."""
    return f"{LIBRARIES[library]} {version(LIBRARIES[library])}"


def check_perplexity(perplexity: object, samples: int) -> float:
    """Raise `UserError` unless each sample has three times that many others, as t-SNE needs."""
    most = samples // 3
    try:
        return float(check_number("perplexity", perplexity, above=0, at_most=most))
    except UserError:
        shown = f"{perplexity:g}" if isinstance(perplexity, float) else perplexity
        raise UserError(
            f"perplexity: found {shown}, allowed is above 0 and at most {most} "
            f"(a third of {samples} samples)"
        ) from None


def embed(features: np.ndarray, perplexity: float, library: str = "sklearn") -> np.ndarray:
    """t-SNE from a PCA start, in one thread: the same features give the same bytes.

    Source: van der Maaten and Hinton 2008; learning rate N / exaggeration, at least 50.

    Args:
        features: ``(N, D)``.

    Returns:
        ``(N, 2)`` float32.
    """
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float32)
    with threadpool_limits(1):
        if library == "sklearn":
            from sklearn.manifold import TSNE

            # Named though most are defaults: older versions had others.
            tsne = TSNE(
                perplexity=perplexity,
                init="pca",
                learning_rate="auto",
                random_state=0,
                n_jobs=1,
            )
            return tsne.fit_transform(features).astype(np.float32)
        import openTSNE

        tsne = openTSNE.TSNE(
            perplexity=perplexity,
            initialization="pca",
            learning_rate="auto",
            early_exaggeration_iter=250,
            n_iter=ITERATIONS - 250,
            random_state=0,
            n_jobs=1,
        )
        return np.asarray(tsne.fit(features), np.float32)


def embed_all(jobs: Sequence[tuple[np.ndarray, float, str]]) -> list[np.ndarray]:
    """`embed` each of the arguments, on all cores where that is worth their start."""
    worth = sum(len(features) for features, *_ in jobs) >= WORTH_PROCESSES
    return in_processes(_embed, jobs, most=16 if worth else 1)


def _embed(job: tuple[np.ndarray, float, str]) -> np.ndarray:
    return embed(*job)


def calinski_harabasz(features: np.ndarray, labels: np.ndarray) -> float:
    """``[B / (k − 1)] / [W / (n − k)]``: sums of squares between and within ``k`` classes.

    It grows with n, and is no measure across dimensions: an embedding's says nothing of features'.

    Raises:
        UserError: fewer than two classes.
    """
    from sklearn.metrics import calinski_harabasz_score

    check_classes(labels)
    return float(calinski_harabasz_score(np.asarray(features, np.float64), labels))


def check_classes(labels: np.ndarray) -> None:
    """Raise `UserError` unless there are several classes."""
    count = len(np.unique(labels))
    if count < 2:
        raise UserError(
            f"classes: found {count} class, allowed are at least 2: the CH index compares classes"
        )


def silhouettes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(N,)`` in [−1, 1]: 1 deep inside the own class, 0 at a boundary, below 0 beyond it."""
    from sklearn.metrics import silhouette_samples

    return silhouette_samples(np.asarray(features, np.float32), labels)


def neighbour_purity(features: np.ndarray, labels: np.ndarray, count: int = 10) -> np.ndarray:
    """``(N,)`` in [0, 1]: the share of a sample's nearest others that are of its class."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(count, len(labels) - 1), algorithm="brute")
    near = search.fit(np.asarray(features, np.float32)).kneighbors(return_distance=False)
    return (labels[near] == labels[:, None]).mean(axis=1)
