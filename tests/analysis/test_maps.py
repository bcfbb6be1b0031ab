"""Single samples through training: known answers, and the figures of real runs."""

import json

import numpy as np
import pytest
from recorded import write_run

from eakd.analysis.maps import data_map, forgetting_events, map_of
from eakd.analysis.runs import glob_runs
from eakd.analysis.sample_records import over_epochs, shared_epochs
from eakd.analysis.trajectories import trajectories
from eakd.composing import compose
from eakd.config import base_method
from eakd.errors import UserError
from eakd.training.run import run as train
from eakd.training.sample_values import sample_file, write_samples


def record(directory, epoch, correct=None, index=None, **values):
    """The values of an epoch's samples as a training writes them."""
    found = {name: np.asarray(each, np.float16) for name, each in values.items()}
    if correct is not None:
        found["correct"] = np.packbits(np.asarray(correct, bool))
    if index is not None:
        found["index"] = np.asarray(index, np.int32)
    write_samples(sample_file(directory, epoch), found)


COUNT, EPOCHS = 30, 4


def known_values(epoch, method, seed):
    """Three kinds of ten samples: always sure, to and fro, and never sure of the true class."""
    odd = epoch % 2
    probability = np.repeat([0.9, 1.0 * odd, 0.1], 10)
    entropy = np.linspace(0.5, 2, COUNT)
    move = (0.1 if method == "ea_kd" else 0.3) + 0.01 * seed
    return {
        "target_probability": probability,
        "correct": probability > 0.5,
        "teacher_entropy": entropy,
        "student_entropy": 1 + move * odd * entropy,
        "loss": np.ones(COUNT),
        "weight": np.repeat([1.0, 3.0, 2.0], 10) if method == "ea_kd" else np.ones(COUNT),
    }


@pytest.fixture
def known(tmp_path):
    for method in ("kd", "ea_kd"):
        for seed in (0, 1, 2):
            directory = write_run(tmp_path, method, seed, epochs=EPOCHS)
            for epoch in range(1, EPOCHS + 1):
                record(directory, epoch, **known_values(epoch, method, seed))
    return tmp_path


def runs_in(folder):
    return glob_runs(str(folder / "**"))


def test_confidence_variability_and_forgetting_are_known(known):
    found = map_of(runs_in(known)[0], [1, 2, 3, 4])
    easy, ambiguous, hard = np.split(np.arange(COUNT), 3)
    for members, confidence in ((easy, 0.9), (ambiguous, 0.5), (hard, 0.1)):
        np.testing.assert_allclose(found["confidence"][members], confidence, rtol=1e-3)
    assert (found["variability"][easy] == 0).all() and (found["variability"][hard] == 0).all()
    assert (found["variability"][ambiguous] == 0.5).all()  # 1, 0, 1, 0
    assert (found["correctness"][ambiguous] == 50).all()
    assert (found["forgetting"][ambiguous] == 2).all()
    assert not found["forgetting"][easy].any() and not found["forgetting"][hard].any()


@pytest.mark.parametrize(
    ("history", "events"),
    [("1010", 2), ("0101", 1), ("1111", 0), ("0000", 0), ("1100", 1), ("1?00", 0), ("11?0", 0)],
)
def test_forgetting_events(history, events):
    correct = np.array([[np.nan if each == "?" else float(each)] for each in history])
    assert forgetting_events(correct).tolist() == [events]


def test_the_map_tells_where_the_weight_lies(known):
    result = data_map(runs_in(known), share=1 / 3, points=10)
    numbers = result.numbers
    for region, weight, entropy in (("easy", 1, 0.733), ("ambiguous", 3, 1.25), ("hard", 2, 1.767)):
        assert numbers[f"weight.{region}.ea_kd"] == weight
        assert numbers[f"teacher_entropy.{region}.ea_kd"] == pytest.approx(entropy, abs=2e-3)
        assert f"weight.{region}.kd" not in numbers  # all weigh the same
    assert numbers["variability.kd"] == pytest.approx(0.5 / 3)
    assert numbers["forgetting.kd"] == pytest.approx(2 / 3)
    assert numbers["never_right.kd"] == pytest.approx(100 / 3)
    assert numbers["rank.weight_variability.ea_kd"] > 0.8
    assert [*result.panels] == ["teacher_entropy kd", "teacher_entropy ea_kd", "weight ea_kd"]
    (cloud,) = result.panels["weight ea_kd"].series
    assert len(cloud.x) == 10 and set(cloud.color) == {1, 2, 3}  # of every part of the set
    assert len(result.arrays["variability.ea_kd"]) == COUNT  # all of them
    assert "10 samples of 30" in " ".join(result.notes)
    assert result.about["samples"] == COUNT and result.about["seeds"] == [0, 1, 2]


def test_lines_are_the_same_samples_in_every_panel(known):
    result = trajectories(runs_in(known), count=2, pictures=False)
    assert [*result.panels] == ["kd", "ea_kd"]
    assert sorted(result.arrays["index.highest"]) == [28, 29]
    assert sorted(result.arrays["index.median"]) == [14, 15]
    assert sorted(result.arrays["index.lowest"]) == [0, 1]
    for method, panel in result.panels.items():
        assert [s.name for s in panel.series] == ["highest"] * 2 + ["median"] * 2 + ["lowest"] * 2
        for series, place in zip(panel.series, (28, 29, 14, 15, 0, 1), strict=True):
            line = [known_values(epoch, method, 0)["student_entropy"][place] for epoch in series.x]
            np.testing.assert_allclose(series.y, line, rtol=1e-3)
    # A value and its double distance in turn: half of the distance. The three highest of thirty.
    top = np.linspace(0.5, 2, COUNT)[-3:].mean()
    assert result.numbers["within.highest.kd"] == pytest.approx(0.31 / 2 * top, rel=2e-3)
    assert result.numbers["within.highest.ea_kd"] == pytest.approx(0.11 / 2 * top, rel=5e-3)
    assert result.tests["within.highest.ea_kd-kd"] < 1e-3


def test_only_shared_epochs_count_and_unseen_samples_have_no_value(known):
    runs = runs_in(known)
    sample_file(runs[0].directory, 3).unlink()
    record(runs[0].directory, 2, index=[5, 7], student_entropy=[2, 4])
    assert shared_epochs(runs) == [1, 2, 4]
    index, values = over_epochs(runs[0], [1, 2], ("student_entropy",), ("nothing",))
    assert index.tolist() == [*range(COUNT)] and values.keys() == {"student_entropy"}
    first, second = values["student_entropy"]
    assert np.isfinite(first).all()
    assert np.flatnonzero(np.isfinite(second)).tolist() == [5, 7] and second[7] == 4
    assert "recorded epochs 1 to 4 (3 of them)" in trajectories(runs, pictures=False).shows


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (data_map, {"colors": []}, "colors: found [], allowed is a list of teacher_entropy"),
        (data_map, {"colors": ["red"]}, "colors: found 'red', allowed is one of teacher_entropy"),
        (data_map, {"colors": "weight"}, "colors: found 'weight', allowed is a list of"),
        (data_map, {"share": 0.6}, "share: found 0.6, allowed is a number > 0 and <= 0.5"),
        (data_map, {"points": 0}, "points: found 0, allowed is an integer >= 1"),
        (trajectories, {"count": 0}, "count: found 0, allowed is an integer >= 1"),
        (trajectories, {"share": 0}, "share: found 0"),
        (trajectories, {"pictures": "no"}, "pictures: found 'no', allowed is true or false"),
    ],
)
def test_wrong_settings(kind, settings, message, known):
    with pytest.raises(UserError) as caught:
        kind(runs_in(known), **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_runs_without_the_recording_are_refused(known):
    runs = runs_in(known)
    with pytest.raises(UserError, match="colors: found weight, which all samples of these runs"):
        data_map(runs.only(["kd"]), colors=["weight"])
    sample_file(runs[0].directory, 2).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"epoch002\.npz: found a damaged file"):
        data_map(runs)
    for epoch in (2, 3, 4):
        sample_file(runs[0].directory, epoch).unlink()
    for kind in (data_map, trajectories):
        with pytest.raises(UserError, match="runs: found 1 epochs of which all runs have"):
            kind(runs)
    for epoch in (1, 2):
        record(runs[0].directory, epoch, loss=[1, 2])
    with pytest.raises(UserError, match="found no target_probability of single samples in"):
        data_map(runs)
    with pytest.raises(UserError, match="found no teacher_entropy of single samples in"):
        trajectories(runs)


@pytest.fixture(scope="module")
def recorded(tiny_with_teacher, tmp_path_factory):
    """The folder of finished tiny runs with the values of samples: kd and ea_kd, two seeds each."""
    root = tmp_path_factory.mktemp("recorded")
    for method in ("kd", "ea_kd"):
        for seed in (0, 1):
            words = [f"distiller={method}", f"seed={seed}", f"output_root={root}"]
            train(compose([*tiny_with_teacher, *words, "record.samples=all"]))
    return root


def figure(*words):
    from eakd.analysis.command import figure as command

    return command(compose(list(words), "figure"))


@pytest.mark.parametrize("name", ["map", "trajectories"])
def test_figures_of_real_runs(name, recorded, tmp_path):
    text = figure(f"figure={name}", f"runs={recorded}/**", f"output_root={tmp_path}")
    folder = tmp_path / "figures" / f"{name}-runs"
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = json.loads((folder / "figure.json").read_text())["page"]
    assert page["shows"] in text and page["lines"][0][2] != "–"
    with np.load(folder / "data.npz") as arrays:
        if name == "map":
            assert len(arrays["arrays/confidence.ea_kd"]) == 80
        else:
            pictures = arrays["panels/pictures.highest/pictures"]
            assert pictures.shape == (3, 16, 16, 3) and pictures.dtype == np.uint8


def test_a_plan_trains_with_the_recording_the_run_that_others_share(tmp_path):
    from eakd.analysis.command import plan_of
    from eakd.analysis.figures import load_figure, merged

    words = ["scale=smoke", "seeds=[0]", f"output_root={tmp_path}"]
    config = compose(["figure=map", *words], "figure")
    plain, recording = (plan_of(load_figure(name), config) for name in ("3", "map"))
    folders = [sorted(job.directory for job in plan.students) for plan in (plain, recording)]
    assert folders[0] == folders[1]  # of the same runs
    for plan in (recording, merged([plain, recording]), merged([recording, plain])):
        assert len(plan.students) == 3
        assert all("record.samples=all" in job.overrides for job in plan.students)
        assert not any("record.samples=all" in job.overrides for job in plan.teachers)
    assert not any("record.samples=all" in job.overrides for job in plain.students)
    own = compose(["figure=map", *words, 'overrides=["record.samples=[0.5,2]"]'], "figure")
    for job in plan_of(load_figure("map"), own).students:
        assert [o for o in job.overrides if "samples" in o] == ["record.samples=[0.5,2]"]
    assert {base_method(name) for name in recording.table.methods} == {"kd"}
