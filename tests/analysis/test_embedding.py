"""Class separation of features and of embeddings: known answers, and figures of tiny runs."""

import sys

import numpy as np
import pytest

from eakd.analysis.answers import Answers
from eakd.analysis.embedding import embedding
from eakd.analysis.separation import (
    calinski_harabasz,
    check_perplexity,
    choose_library,
    embed,
    neighbour_purity,
    silhouettes,
)
from eakd.analysis.tsne import choose_classes
from eakd.errors import UserError

QUICK = {"class_count": 2, "perplexities": [10], "draws": 1, "perplexity": 20}


def blobs(distance, per_class=25, classes=3, dimensions=5):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), per_class)
    centres = distance * np.eye(classes, dimensions)
    return centres[labels] + random.normal(size=(len(labels), dimensions)), labels


def test_ch_by_hand():
    points, labels = np.array([[0.0], [2.0], [10.0], [12.0]]), np.array([0, 0, 1, 1])
    # B = 100 over 1, W = 4 over 2.
    assert calinski_harabasz(points, labels) == pytest.approx(50)
    assert calinski_harabasz(1000 * points - 7, labels) == pytest.approx(50)


def test_ch_is_the_ratio_of_the_sums_of_squares():
    points, labels = blobs(2.0)
    centres = np.stack([points[labels == k].mean(0) for k in range(3)])
    between = sum(25 * ((c - points.mean(0)) ** 2).sum() for c in centres)
    within = ((points - centres[labels]) ** 2).sum()
    assert calinski_harabasz(points, labels) == pytest.approx((between / 2) / (within / 72))
    with pytest.raises(UserError, match="classes: found 1 class, allowed are at least 2: the CH"):
        calinski_harabasz(points, np.zeros(75))


@pytest.mark.parametrize("library", ("sklearn", "opentsne"))
def test_far_blobs_stay_apart_and_the_bytes_are_the_same(library):
    if library == "opentsne":
        pytest.importorskip("openTSNE")
    points, labels = blobs(100.0)
    found = embed(points, 10, library)
    assert found.shape == (75, 2) and found.dtype == np.float32
    assert found.tobytes() == embed(points, 10, library).tobytes()
    assert neighbour_purity(found, labels).mean() == 1
    shuffled = np.random.default_rng(1).permutation(labels)
    assert calinski_harabasz(found, labels) > 100 * calinski_harabasz(found, shuffled)


def test_neighbours_and_silhouettes():
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert neighbour_purity(points, labels, 2).tolist() == [1] * 6
    assert neighbour_purity(points, labels, 5).tolist() == pytest.approx([0.4] * 6)
    # Of the first: 1.5 to its own, 11 to the others.
    assert silhouettes(points, labels)[0] == pytest.approx(1 - 1.5 / 11)


def test_perplexity_needs_three_times_as_many_samples():
    assert check_perplexity(333, 1000) == 333
    for found in (400, 0, -1, "many", None):
        with pytest.raises(UserError) as caught:
            check_perplexity(found, 1000)
        assert str(caught.value) == (
            f"perplexity: found {found}, allowed is above 0 and at most 333 (a third of 1000 "
            "samples)"
        )


def test_libraries(monkeypatch):
    assert choose_library("auto", 1000) == "sklearn"
    with pytest.raises(UserError, match="library: found 'umap', allowed is one of auto, sklearn"):
        choose_library("umap", 1000)
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    assert choose_library("auto", 10_000) == "sklearn"
    with pytest.raises(UserError, match=r"found no openTSNE: pip install 'eakd\[tsne\]'"):
        choose_library("opentsne", 1000)


def test_classes():
    labels = np.arange(20)
    names = np.array([f"class {label}" for label in labels])
    some = Answers(np.zeros((20, 20)), np.zeros((20, 3)), labels, labels, names, "")
    assert choose_classes("first", 10, some).tolist() == list(range(10))
    assert choose_classes("all", 10, some).tolist() == list(range(20))
    drawn = choose_classes("random", 10, some, 1)
    assert drawn.tolist() == choose_classes("random", 10, some, 1).tolist()
    assert len(set(drawn.tolist())) == 10 and drawn.tolist() != list(range(10))
    assert choose_classes([7, 3], 10, some).tolist() == [3, 7]
    with pytest.raises(UserError, match="classes: found 1 class, allowed are at least 2"):
        choose_classes([3], 10, some)
    with pytest.raises(UserError, match="classes: found 20, allowed is an integer >= 0 and <= 19"):
        choose_classes([3, 20], 10, some)
    with pytest.raises(UserError, match="class_count: found 1"):
        choose_classes("first", 1, some)


def test_the_teacher_alone(runs, outputs):
    result = embedding(runs, output_root=outputs, networks="teacher", **QUICK)
    assert list(result.panels) == ["teacher", "silhouette", "purity"]
    *clouds, rings = result.panels["teacher"].series
    assert [cloud.name for cloud in clouds] == ["0", "1"] and rings.style == "rings"
    count = sum(len(cloud.x) for cloud in clouds)
    assert len(rings.x) == round(0.1 * count)
    low, index, high = (result.numbers[f"ch.teacher{end}"] for end in (".low", "", ".high"))
    assert 0 < low <= index <= high
    # The points are there to be measured again.
    points = result.arrays["embedding.teacher"]
    labels = np.isin(points[:, 0], clouds[1].x).astype(int)
    assert calinski_harabasz(points, labels) == pytest.approx(index, rel=1e-4)
    again = embedding(runs, output_root=outputs, networks="teacher", **QUICK)
    assert again.numbers == result.numbers and not result.tests


@pytest.mark.slow
def test_students_through_training(runs, outputs):
    result = embedding(runs, output_root=outputs, snapshots=[0.5], **QUICK)
    names = ("kd", "ea_kd", "kd+matched")
    shown = [f"{name}.epoch{epoch}" for name in names for epoch in (1, 2)]
    assert list(result.panels) == [*shown, "silhouette", "purity"]
    for name, what in zip(names, ("H_S", "w", "H_S"), strict=True):
        panel = result.panels[f"{name}.epoch2"]
        assert panel.title.endswith(f"rings by {what}")
        assert panel.series[-1].label == "highest 10 %"  # one entry of the legend for all panels
    assert all(0 <= result.numbers[f"overlap.{name}.1"] <= 100 for name in names)
    assert {"ch.kd", "ch.kd.epoch1", "feature_ch.ea_kd", "purity.kd+matched.10"} <= {
        *result.numbers
    }
    # Over seeds, with all classes: of no embedding.
    assert sorted(result.tests) == [
        "feature_ch.ea_kd-kd",
        "feature_ch.ea_kd-kd+matched",
        "feature_ch.kd+matched-kd",
    ]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"perplexity": 400}, "perplexity: found 400, allowed is above 0 and at most"),
        ({"classes": [3]}, "classes: found 1 class"),
        ({"classes": "odd"}, "classes: found 'odd'"),
        ({"networks": "both"}, "networks: found 'both'"),
        ({"highlight": "loss"}, "highlight: found 'loss'"),
        ({"share": 0}, "share: found 0"),
        ({"draws": -1}, "draws: found -1"),
    ],
)
def test_wrong_settings(runs, outputs, settings, message):
    with pytest.raises(UserError) as caught:
        embedding(runs, output_root=outputs, **{"networks": "teacher", **QUICK, **settings})
    assert message in str(caught.value) and "\n" not in str(caught.value)
