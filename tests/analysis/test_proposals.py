"""Which regions carry the weight: shares by hand, and the figure from real tiny detectors."""

import csv
import json
import shutil

import numpy as np
import pytest

from eakd.analysis.command import figure
from eakd.analysis.draw import draw
from eakd.analysis.networks import Networks
from eakd.analysis.proposals import (
    Found,
    differences_of,
    in_frames,
    numbers_of,
    proposals,
    run_regions,
    share_panel,
    shares_of,
    weight_panels,
)
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import composed, glob_runs
from eakd.composing import compose
from eakd.detection.rois import Weighed, heaviest, open_data
from eakd.errors import UserError
from eakd.plotting import style
from eakd.training.run import run

IMAGES = 3


def regions(weight, foreground):
    count = len(weight)
    boxes = np.arange(4.0 * count).reshape(count, 4) + np.array([0, 0, 10, 20])
    classes = np.arange(count) % 2
    return Weighed(boxes, np.array(weight), np.array(foreground, bool), classes, 1 - classes)


def toy():
    """Two methods, two seeds; weights by hand."""
    of = {
        "kd": {0: ([1, 1, 1, 1], [1, 0, 0, 0]), 1: ([1, 1, 1, 1], [1, 1, 0, 0])},
        "ea_kd": {0: ([3, 1, 1, 1], [1, 0, 0, 0]), 1: ([4, 2, 1, 1], [1, 1, 0, 0])},
    }
    return {
        name: {seed: shares_of(regions(*each), name) for seed, each in seeds.items()}
        for name, seeds in of.items()
    }


# By hand


def test_shares_of_known_weights():
    shares = toy()
    found = shares["ea_kd"][0]
    assert (found.region_share, found.weight_share) == (25, 50)
    assert found.weight["foreground"].tolist() == [3]
    assert found.weight["background"].tolist() == [1, 1, 1]
    numbers = numbers_of(shares)
    assert numbers["weight.foreground.ea_kd"] == (3 + 3) / 2  # a mean over seeds, not regions
    assert numbers["weight.background.ea_kd"] == 1
    assert numbers["region_share.ea_kd"] == numbers["region_share.kd"] == 37.5
    assert numbers["weight_share.ea_kd"] == (50 + 75) / 2
    assert numbers["excess.ea_kd"] == 25 and numbers["excess.kd"] == 0
    found = differences_of(shares)
    assert set(found) == {"excess.kd", "excess.ea_kd", "excess.ea_kd-kd"}
    assert found["excess.ea_kd-kd"].mean == 25 and found["excess.kd"].mean == 0


def test_panels_of_known_weights():
    shares = toy()
    panels = weight_panels(shares)
    assert list(panels) == ["foreground", "background"]
    width = 4 / 40  # the highest weight, in 40 parts
    for panel in panels.values():
        assert [each.name for each in panel.series] == ["kd", "ea_kd"]
        for each in panel.series:
            assert each.y.sum() * width == pytest.approx(1) and set(each.by_seed) == {0, 1}
    line = panels["background"].series[1]
    assert line.x[line.y > 0] == pytest.approx(1 + width / 2)  # all of them weigh 1
    line = panels["foreground"].series[1]  # half 3 and, of the other seed, 2 and 4
    assert (line.y[line.y > 0] * width).tolist() == pytest.approx([0.25, 0.5, 0.25])
    of_regions, of_weight = share_panel(shares).series
    assert of_regions.y.tolist() == [37.5, 37.5] and of_weight.y.tolist() == [37.5, 62.5]
    assert of_weight.by_seed[0].tolist() == [25, 50]


def test_methods_of_other_seeds_stand_beside_each_other():
    shares = toy()
    del shares["kd"][0]
    bars = share_panel(shares).series[0]
    assert bars.y.tolist() == [50, 37.5] and bars.low[0] == bars.y[0] > bars.low[1]
    assert np.isnan(bars.by_seed[0][0]) and bars.by_seed[0][1] == 25


@pytest.mark.parametrize("kind, value", [("foreground", 1), ("background", 0)])
def test_regions_of_one_kind_alone_are_refused(kind, value):
    with pytest.raises(UserError, match=f"^runs: found {kind} regions alone in here, allowed are"):
        shares_of(regions([1.0, 2.0], [value, value]), "here")


def test_weights_that_are_all_zero_have_no_share():
    assert shares_of(regions([0.0, 0.0], [1, 0]), "here").weight_share == 0


def test_the_heaviest_of_an_image():
    found = Found(np.array([0, 1, 1]), regions([9.0, 1.0, 2.0], [1, 0, 0]), ["background", "cat"])
    rows = heaviest(found.of(1), found.classes, 5)
    assert [row["weight"] for row in rows] == [2, 1]
    assert rows[0] == {
        "bbox": [8.0, 9.0, 12.0, 22.0],
        "weight": 2.0,
        "student": "background",
        "teacher": "cat",
    }


def test_images_of_any_sizes_lie_in_the_middle_of_equal_frames():
    wide, high = np.full((2, 6, 3), 9, np.uint8), np.full((4, 2, 3), 7, np.uint8)
    frames = in_frames([wide, high])
    assert frames.shape == (2, 4, 6, 3)
    assert (frames[0, 1:3] == 9).all() and (frames[0, [0, 3]] == 255).all()
    assert (frames[1, :, 2:4] == 7).all() and (frames[1, :, [0, 1, 4, 5]] == 255).all()


def test_a_wide_panel_has_a_row_to_itself():
    x = np.arange(3.0)
    chart = Panel(series=(Series("kd", x, x),))
    pictures = Panel(pictures=np.zeros((2, 4, 4, 3), np.uint8), wide=True)
    panels = {"one": chart, "pictures": pictures, "two": chart, "three": chart}
    with style():
        drawn = draw(Result(panels, columns=2))
        drawn.draw_without_rendering()
        one, two, three = (axes for axes in drawn.axes if axes.get_gid() == "panel")
        first = next(axes for axes in drawn.axes if axes.get_gid() != "panel")
        boxes = [axes.get_position() for axes in (one, first, two, three)]
    assert boxes[0].y0 > boxes[1].y0 > boxes[2].y0 == boxes[3].y0
    assert boxes[2].x1 < boxes[3].x0


# Real detectors


@pytest.fixture(scope="module")
def detectors(tmp_path_factory):
    """The folder of a teacher, two students of each method, and one of foreground alone."""
    root = tmp_path_factory.mktemp("detectors")
    words = [
        *("data=scenes", "data.train_images=8", f"data.test_images={IMAGES}"),
        *("data.image_size=64", "recipe.epochs=1", "recipe.steps_per_epoch=2"),
        *("recipe.batch_size=2", "teacher=frcnn_tiny", "student=frcnn_tiny", "device=cpu"),
        *("precision=float32", f"checkpoint_root={root / 'checkpoints'}", "progress=false"),
    ]
    teach = ["distiller=detection/none", "seed=7", "save_teacher=true"]
    run(compose([*words, *teach, f"output_root={root / 'alone'}"]))
    methods = (["distiller=detection/kd"], ["distiller=detection/ea_kd"])
    for method in methods:
        for seed in (0, 1):
            run(compose([*words, *method, f"seed={seed}", f"output_root={root / 'runs'}"]))
    matched = ["distiller=detection/kd", "weighting=matched"]
    run(compose([*words, *matched, f"output_root={root / 'runs'}"]))
    only = ["distiller=detection/ea_kd", "distiller.rois=foreground"]
    run(compose([*words, *only, f"output_root={root / 'foreground'}"]))
    return root


def typed(*words):
    return figure(compose(["figure=proposals", "proposals.device=cpu", *words], "figure"))


@pytest.mark.slow
def test_the_figure_of_real_runs_end_to_end(detectors, tmp_path, caplog):
    words = (f"runs={detectors}/runs/**", f"output_root={tmp_path}", "proposals.count=2")
    text = typed(*words)
    folder = tmp_path / "figures" / "proposals-runs"
    kinds = ("figure.pdf", "figure.svg", "figure.png", "data.npz", "data.csv", "figure.json")
    assert {path.name for path in folder.iterdir()} == {*kinds, "caption.md"}
    assert "What foreground gets of EA's weight, by networks trained with KD " in text
    caption = (folder / "caption.md").read_text()
    for part in ("n = 2 (seeds 0, 1)", "1 epochs", "τ′ = 3", "test split", "commit ", "scenes"):
        assert part in caption, part
    assert "Foreground's share of the weight less its share of the regions" in caption
    page = json.loads((folder / "figure.json").read_text())["page"]
    assert [line[2] != "–" for line in page["lines"]] == [True] * 3
    rows = list(csv.DictReader((folder / "data.csv").open()))
    assert {row["panel"] for row in rows} == {"pictures", "foreground", "background", "share"}
    caches = {p: p.stat().st_mtime_ns for p in (tmp_path / "figures" / "cache").iterdir()}
    assert len(caches) == 5  # a file a run
    caplog.clear()
    with caplog.at_level("INFO"):
        typed(*words)
        assert "nothing changed" in caplog.text
        typed(*words, "proposals.regions=2")  # other pictures, of the same regions
    assert "weighing" not in caplog.text
    assert caches == {p: p.stat().st_mtime_ns for p in caches}


def test_regions_of_a_run_are_those_of_its_networks(detectors, tmp_path):
    """Foreground by hand: an IoU of 0.5 or more with a box; the weight of EA's formula."""
    runs = glob_runs(f"{detectors}/runs/**")
    networks = Networks(tmp_path, "cpu", "float32")
    boxes = open_data(composed(runs[0])[0], networks.compute).data.splits["test"]
    for name in runs.names:
        found = run_regions(runs.of(name)[0], networks, images=2)
        assert sorted(set(found.image.tolist())) == [0, 1]
        for position in (0, 1):
            mine, known = found.of(position), boxes.boxes[boxes.of(position)]
            best = iou(mine.boxes.astype(float), known).max(axis=1)
            sure = np.abs(best - 0.5) > 1e-4
            assert ((best >= 0.5) == mine.foreground)[sure].all()
            assert mine.foreground[-len(known) :].all()  # the annotated ones are among them
        # Weighed one by one, also where the run weighs all regions alike.
        assert len(np.unique(found.regions.weight)) > len(found.image) / 2
        assert (found.regions.weight > 0).all() and (found.regions.weight <= np.log(11)).all()


def iou(a, b):
    left, right = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.clip(right - left, 0, None).prod(axis=-1)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


def test_damaged_weights_leave_one_run_out(detectors, tmp_path):
    shutil.copytree(detectors / "runs", tmp_path / "runs")
    runs = glob_runs(f"{tmp_path}/runs/**").only(["ea_kd"])
    (runs[0].directory / "last.safetensors").write_bytes(b"nonsense")
    result = proposals(runs, output_root=str(tmp_path), count=1, device="cpu")
    assert result.about["seeds"] == [1]
    assert any("train it again" in note and str(runs[0].directory) in note for note in result.notes)
    (runs[1].directory / "last.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"last.safetensors: .*delete the run and train it again"):
        proposals(runs, output_root=str(tmp_path), count=1, device="cpu")


def test_wrong_runs_and_settings_are_one_line(detectors, trained, tmp_path):
    texts = tmp_path / "texts"
    shutil.copytree(detectors / "runs", texts)
    for path in texts.glob("**/.hydra/config.yaml"):
        task = "eakd.language.Language"
        path.write_text(path.read_text().replace("eakd.detection.Detection", task))
    for path in texts.glob("**/last.safetensors"):  # as runs of texts have none
        path.unlink()
    other = tmp_path / "other"
    shutil.copytree(detectors / "runs", other)
    for path in other.glob("**/.hydra/config.yaml"):
        weights = next(other.glob("**/last.safetensors"))
        text = path.read_text().replace("checkpoint: auto", f"checkpoint: {weights}")
        path.write_text(text)
    ours = f"runs={detectors}/runs/**"
    for words, expected in (
        ([], "runs: found no value, give one for figure=proposals: runs="),
        (["mode=plan"], "runs: found no value, give one for figure=proposals: runs="),
        ([f"runs={tmp_path}/nothing/**"], "runs: found no finished run in "),
        ([f"runs={trained}/**"], "runs: found a run of eakd.classification.Classification in "),
        ([f"runs={texts}/**"], "runs: found a run of eakd.language.Language in "),
        ([f"runs={detectors}/alone/**"], "runs: found method none, allowed for figure proposals"),
        ([f"runs={detectors}/foreground/**"], "runs: found foreground regions alone in "),
        ([f"runs={other}/**"], "runs: found another teacher in "),
        ([ours, "proposals.images=0"], "proposals.images: found 0, allowed is an integer >= 1"),
        ([ours, "proposals.count=0"], "proposals.count: found 0, allowed is an integer >= 1"),
        ([ours, "proposals.regions=x"], "proposals.regions: found 'x'"),
        ([ours, "proposals.method=dkd"], "proposals.method: found 'dkd', allowed is one of kd, "),
    ):
        with pytest.raises(UserError) as caught:
            typed(*words, f"output_root={tmp_path / 'out'}")
        message = str(caught.value)
        assert message.startswith(expected) and "\n" not in message, message
