"""Which samples the weight chose: the extremes, their captions, and shares of classes."""

import numpy as np
import pytest
import torch

from eakd import ea_weight
from eakd.analysis.answers import sample_weights
from eakd.analysis.networks import Networks
from eakd.analysis.pictures import gallery, weights
from eakd.errors import UserError


def of_run(run, outputs, split="train", epoch=None):
    networks = Networks(outputs)
    student, teacher = networks.answers(run, split, epoch), networks.teacher_answers(run, split)
    return networks, student, teacher


@pytest.mark.parametrize("method", ("kd", "ea_kd", "kd+matched"))
def test_weights_are_those_of_the_equation(runs, outputs, method):
    run = runs.of(method)[0]
    _, student, teacher = of_run(run, outputs)
    wanted = ea_weight(torch.from_numpy(student.logits), torch.from_numpy(teacher.logits))
    assert np.array_equal(sample_weights(run, student, teacher), wanted.numpy())


def test_the_extremes_are_shown(runs, outputs):
    result = gallery(runs, output_root=outputs, snapshots=[0.5], count=3)
    assert list(result.panels) == [
        *("high.epoch1", "low.epoch1"),
        *("high.epoch2", "low.epoch2", "risen.epoch2", "fallen.epoch2"),
    ]
    run = runs.of("ea_kd")[0]
    networks, student, teacher = of_run(run, outputs)
    weight = sample_weights(run, student, teacher)
    highest = np.argsort(-weight, kind="stable")
    panel = result.panels["high.epoch2"]
    assert panel.pictures.dtype == np.uint8 and panel.pictures.shape == (3, 16, 16, 3)
    images = networks.data(run).data.train_images
    assert any(np.array_equal(panel.pictures[0], images[place]) for place in highest[:3])
    assert result.numbers["weight.high.epoch2"] == pytest.approx(np.sort(weight)[-3:].mean())
    assert result.numbers["weight.low.epoch2"] == pytest.approx(np.sort(weight)[:3].mean())
    lines = panel.captions[0].split("\n")
    assert len(lines) == 10 and lines[0] == str(teacher.labels[highest[0]])
    assert [line[0] for line in lines[1:7]] == ["T"] * 3 + ["S"] * 3
    assert lines[-1] == f"w {weight.max():.2f}"
    percent = [int(line.split()[-1]) for line in lines[1:4]]
    assert percent == sorted(percent, reverse=True) and sum(percent) <= 101
    change = weight - sample_weights(run, of_run(run, outputs, epoch=1)[1], teacher)
    place = int(change.argmax())
    before = weight[place] - change[place]
    last = result.panels["risen.epoch2"].captions[0].split("\n")[-1]
    assert last == f"w {before:.2f} → {weight[place]:.2f}"


def test_shares_of_classes_are_all_of_the_weight(runs, outputs):
    result = weights(runs, output_root=outputs, snapshots=[0.5])
    assert list(result.panels) == ["histogram", "share"]
    *lines, images = result.panels["share"].series
    assert [line.name for line in lines] == ["epoch 1", "epoch 2"]
    for line in (*lines, images):
        assert line.y.sum() == pytest.approx(100)
    assert (np.diff(lines[-1].y) <= 0).all()  # sorted by the last epoch
    for steps in result.panels["histogram"].series:
        width = steps.x[1] - steps.x[0]
        assert steps.y.sum() * width == pytest.approx(1, rel=1e-4)
    assert sum(result.numbers[f"share.{label}.epoch2"] for label in range(10)) == pytest.approx(100)


def test_a_run_that_weighs_all_alike_says_so(runs, outputs):
    result = gallery(runs.only(["kd"]), output_root=outputs, snapshots=[], count=1)
    assert "the run itself weighs all alike" in result.notes[0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"count": 0}, "count: found 0, allowed is an integer >= 1"),
        ({"method": "dkd"}, "method: found 'dkd', allowed is one of kd, ea_kd, kd+matched"),
        ({"split": "val"}, "split: found 'val'"),
        ({"snapshots": [7]}, None),
    ],
)
def test_wrong_settings(runs, outputs, settings, message):
    if message is None:  # an epoch that the runs do not have is no epoch of theirs
        first = next(iter(gallery(runs, output_root=outputs, **settings).panels))
        assert first == "high.epoch2"
        return
    with pytest.raises(UserError) as caught:
        gallery(runs, output_root=outputs, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)
