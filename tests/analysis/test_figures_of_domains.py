"""Figs. 3, 4 and 5 from the records of runs of texts and of boxes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from recorded import segments_of, write_run

from eakd.analysis.recordings import divergence_of, entropy_bound
from eakd.analysis.runs import Runs, glob_runs
from eakd.analysis.segments import alignment, student_entropy
from eakd.analysis.shares import loss_shares
from eakd.files import write_json
from eakd.reproduce.comparison import paired_difference
from eakd.training.reading import checksum

TOKENS = [f"t{place}" for place in range(40)]
TEXTS = {
    "task": "eakd.language.Language",
    "metric": "token_accuracy",
    "data": {"name": "text", "max_length": 128},
    "distiller": {"divergence": "forward_kl", "scale_by_temperature": False, "level": "sequence"},
}
BOXES = {
    "task": "eakd.detection.Detection",
    "metric": "ap",
    "data": {"name": "scenes", "num_classes": 10},
    "distiller": {"classes": "with_background"},
}


def changed(directory, *, task, metric, data, distiller):
    """The record of a run of images as if it were one of another domain."""
    config = json.loads((directory / "config.json").read_text())
    config |= {"data": data, "distiller": config["distiller"] | distiller}
    write_json(directory / "config.json", config)
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "config.yaml").write_text(f"data: {{task: {task}}}\n")
    summary = json.loads((directory / "summary.json").read_text())
    summary = {key.replace("top1", metric): value for key, value in summary.items()}
    summary |= {"metrics": {metric: metric}, "data": data["name"]}
    summary.pop("checksum"), summary.pop("lines")
    write_json(directory / "summary.json", summary | {"checksum": checksum(summary)})
    text = (directory / "dynamics.jsonl").read_text()
    text = text.replace("top1", "token_accuracy" if task == TEXTS["task"] else "rois")
    (directory / "dynamics.jsonl").write_text(text)
    if task == TEXTS["task"]:
        (directory / "last").mkdir()
        known = {"model": {"vocab": dict.fromkeys(TOKENS[:-1], 0)}}
        known["added_tokens"] = [{"content": name} for name in TOKENS[-2:]]
        write_json(directory / "last" / "tokenizer.json", known)


def runs_of(root, domain):
    for method in ("kd", "ea_kd"):
        for seed in (0, 1, 2):

            def lines(epoch, method=method, seed=seed):
                loss = np.linspace(9, 1.8, 10) * (0.5 if method == "ea_kd" else 1) + seed / epoch
                return {"epoch": segments_of(loss, top1=30 + seed, high=2.2)}

            changed(write_run(root, method, seed, lines=lines), **domain)
    return glob_runs(f"{root}/**", (), ("kd", "ea_kd"))


@pytest.mark.parametrize(
    ("domain", "outputs", "label"),
    [(TEXTS, 40, "KLD, nats"), (BOXES, 11, "KLD · τ²")],
    ids=["texts", "boxes"],
)
def test_figures_3_to_5(tmp_path, domain, outputs, label):
    runs = runs_of(tmp_path, domain)
    shares = loss_shares(runs, points=5)
    surface = shares.panels["weight"]
    assert surface.surface[0][-1] == pytest.approx(math.log(outputs))
    assert surface.surface[2][-1, -1] == pytest.approx(math.log(outputs))  # both as high as can be
    assert shares.numbers["share_low.kd"] > shares.numbers["share_high.kd"]
    spread, found = student_entropy(runs), alignment(runs)
    assert spread.numbers["spread.last.kd"] == pytest.approx(0.2)
    assert found.panels["kld"].y == label
    # The mean of the last epoch, 4, over seeds: 5.4 and a quarter, without kd_weight.
    assert found.numbers["kld.kd"] == pytest.approx((5.4 + 0.25) / 0.9)
    measured = domain is TEXTS
    assert ("accuracy" in found.panels) == measured == ("accuracy.kd" in found.numbers)
    if measured:
        assert found.numbers["accuracy.kd"] == pytest.approx(31)
    else:
        assert any("ap is not recorded sample by sample" in note for note in found.notes)
    assert all(np.isfinite([*result.tests.values()]).all() for result in (shares, spread, found))
    for result in (shares, spread, found):
        said = " ".join([result.shows, result.not_shows, *result.notes])
        assert "image" not in said and "augment" not in said


def test_what_the_divergence_of_a_text_is(tmp_path):
    (run, *_) = runs_of(tmp_path, TEXTS)

    def words(**distiller):
        config = {**run.config, "distiller": {**run.config["distiller"], **distiller}}
        return divergence_of(Runs([replace(run, config=config)]))

    assert words() == (
        "KLD, nats",
        "KLD at the loss temperature without a factor τ², summed over an answer's tokens",
    )
    label, text = words(divergence="jsd", scale_by_temperature=True, level="token")
    assert label == "JSD · τ²" and text.endswith(
        "times its square, the mean over an answer's tokens"
    )


def test_the_bound_is_of_what_the_entropies_saw(tmp_path):
    foreground = {**BOXES, "distiller": {"classes": "foreground"}}
    for name, domain, outputs in (("a", BOXES, 11), ("b", foreground, 10), ("c", TEXTS, 40)):
        (run, *_) = runs_of(tmp_path / name, domain)
        assert entropy_bound(run) == pytest.approx(math.log(outputs))
    (run.directory / "last" / "tokenizer.json").unlink()
    assert entropy_bound(run) is None
    without = loss_shares(Runs([run]))
    assert list(without.panels) == ["shares"] and "Eq. 12" not in " ".join(without.notes)


def test_values_that_are_no_numbers_are_left_out_of_tests():
    values, others = {0: 1.0, 1: 2.0, 2: math.nan}, {0: 0.5, 1: 1.7, 2: 3.0}
    assert paired_difference(values, others).seeds == 2
    assert paired_difference(values, others).mean == pytest.approx(0.4)
    assert paired_difference({**values, 1: math.nan}, others) is None
