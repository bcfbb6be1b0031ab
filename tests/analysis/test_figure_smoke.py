"""Figures from nothing, on the embedded digits: real runs, trained by the command itself."""

import json
import subprocess
import sys

import pytest

from eakd.config import ROOT

SCRIPT = [sys.executable, str(ROOT / "scripts" / "figure.py")]
SMALL = ["scale=smoke", "seeds=[0]", 'overrides=["recipe.epochs=2","data.train_per_class=10"]']
NAMES = ("1", "3", "4", "5", "8")


def figure(folder, *words):
    done = subprocess.run(
        [*SCRIPT, *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_figures_from_nothing_and_again(tmp_path):
    words = [f"figure=[{','.join(NAMES)}]", *SMALL]
    figure(tmp_path, *words)
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/**/summary.json")}
    assert len(runs) == 14 + 1 + 2 * 4 - 2 + 1  # β = 8 and kd, ea_kd are shared; one teacher
    folders = [tmp_path / "outputs" / "figures" / f"{name}-authors-smoke" for name in NAMES]
    for folder in folders:
        assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
        assert "one seed" in (folder / "figure.svg").read_text()
        page = json.loads((folder / "figure.json").read_text())["page"]
        assert page["shows"] and page["not_shows"]
        for _, paper, ours, _ in page["lines"]:
            assert ours != "–" or not paper  # each number of the paper has ours beside it
    data = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/figures/*/data.npz")}
    output = figure(tmp_path, *words)
    assert "0 of 21 runs to do" in output and output.count("nothing changed") == len(NAMES)
    assert runs == {path: path.stat().st_mtime_ns for path in runs}
    assert data == {path: path.stat().st_mtime_ns for path in data}

    # A run whose recording is gone is trained again beside the finished one, with the same result.
    (kept,) = tmp_path.glob("outputs/*/*/ea_kd/seed0-*")
    recorded = (kept / "dynamics.jsonl").read_bytes()
    (kept / "dynamics.jsonl").unlink()
    plan = figure(tmp_path, "figure=3", *SMALL, "mode=plan")
    assert (
        f"unrecorded  outputs/{kept.relative_to(tmp_path / 'outputs')}: no dynamics.jsonl" in plan
    )
    figure(tmp_path, "figure=3", *SMALL, "retrain=true")
    (again,) = tmp_path.glob("outputs/retrained/*/*/ea_kd/seed0-*")
    assert (again / "dynamics.jsonl").read_bytes() == recorded
    caption = (tmp_path / "outputs" / "figures" / "3-authors-smoke" / "caption.md").read_text()
    assert "1 of 3 runs were trained again" in caption
    assert not (kept / "dynamics.jsonl").exists()


OTHERS = ("2b", "6", "7", "A1a", "A1b", "A2", "A3")
EXTRAS = ("fidelity", "calibration", "cka", "gallery", "weights", "map", "trajectories")


@pytest.mark.slow
def test_every_other_figure_from_nothing_and_again(tmp_path):
    """All files are there, each statement names a number, and a second call computes nothing."""
    names = [*OTHERS, *EXTRAS]
    words = [f"figure=[{','.join(names)}]", *SMALL[:2], 'overrides=["recipe.epochs=4"]']
    words += ["landscape.points=3", "landscape.images=50", "landscape.directions=[0]"]
    words += ["embedding.perplexities=[10]", "embedding.draws=1"]
    figure(tmp_path, *words)
    folders = [tmp_path / "outputs" / "figures" / f"{name}-authors-smoke" for name in names]
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    for folder in folders:
        files = {"figure.pdf", "figure.svg", "figure.png", "figure.json", "caption.md"}
        assert {path.name for path in folder.iterdir()} == files | {"data.csv", "data.npz"}
        assert "one seed" in (folder / "figure.svg").read_text(), folder
        page = json.loads((folder / "figure.json").read_text())["page"]
        assert page["shows"] and page["not_shows"]
        assert page["lines"] or folder.name.partition("-")[0] in EXTRAS
        for text, _, ours, _ in page["lines"]:
            assert ours != "–", f"{folder.name}: {text}"
    output = figure(tmp_path, *words)
    assert " 0 of 16 runs to do" in output and output.count("nothing changed") == len(names)
    assert before == {path: path.read_bytes() for path in before}
