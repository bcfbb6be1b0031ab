"""``scripts/figure.py`` as a user meets it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from recorded import segments_of, write_run, write_trio

from eakd.analysis.command import chosen, figure, plan_of
from eakd.analysis.figures import figure_names, load_figure, merged
from eakd.analysis.retraining import USUAL, retraining
from eakd.analysis.runs import glob_runs, open_run
from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.reproduce.plan import make_plan
from eakd.reproduce.table import load_table, make_table, paper_numbers

MINE = ("1", "3", "4", "5", "8")


def run(*words):
    return figure(compose(list(words), "figure"))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("data.npz")}


# Drawing from runs


@pytest.fixture(scope="module")
def drawn(trio, tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    text = run("figure=[3,4,5]", f"runs={trio}/**", f"output_root={root}")
    return root, text


def test_all_files_of_a_figure_are_there(drawn):
    root, text = drawn
    for name in "345":
        folder = root / "figures" / f"{name}-runs"
        kinds = ("figure.pdf", "figure.svg", "figure.png", "data.npz", "data.csv", "figure.json")
        assert {path.name for path in folder.iterdir()} == {*kinds, "caption.md"}
        caption = (folder / "caption.md").read_text()
        assert "n = 3 (seeds 0, 1, 2)" in caption and "resnet20 → resnet8" in caption
        assert "τ′ = 3" in caption and "train split" in caption and "12 epochs" in caption
        described = json.loads((folder / "figure.json").read_text())
        assert len(described["made_from"]["runs"]) == 9
    assert "it grows less under EA-KD: " in text and ": yes (p = " in text
    page = (root / "figures" / "index.html").read_text()
    assert page.count("<svg ") == 3 and page.index('id="3-runs"') < page.index('id="5-runs"')
    assert page.count('role="img" aria-label="Fig. ') == 3 and "<script" not in page


def test_a_second_call_computes_nothing(drawn, trio, caplog):
    root, _ = drawn
    before = times(root)
    with caplog.at_level("INFO"):
        run("figure=[3,4,5]", f"runs={trio}/**", f"output_root={root}")
    assert times(root) == before and caplog.text.count("nothing changed") == 3
    run("figure=3", f"runs={trio}/**", f"output_root={root}", "segments.segment=9")
    assert times(root) != before
    run("figure=3", f"runs={trio}/**", f"output_root={root}")


def test_redrawing_needs_neither_torch_nor_runs_and_computing_no_matplotlib(drawn, trio, tmp_path):
    root, _ = drawn
    shutil.copytree(root, tmp_path / "out")
    code = (
        "import sys; from eakd.composing import compose; from eakd.analysis.command import figure\n"
        "figure(compose(sys.argv[2:], 'figure')); sys.exit(sys.argv[1] in sys.modules)"
    )
    words = ["figure=3", f"output_root={tmp_path / 'out'}"]
    redraw = [*words, "compute=false", "label=runs", "width=single", "formats=[png]"]
    subprocess.run([sys.executable, "-c", code, "torch", *redraw], check=True)
    png = (tmp_path / "out" / "figures" / "3-runs" / "figure.png").read_bytes()
    assert int.from_bytes(png[16:20], "big") == round(3.25 * 300)
    compute = [*words, f"runs={trio}/**", "draw=false", "compute=true"]
    subprocess.run([sys.executable, "-c", code, "matplotlib", *compute], check=True)
    subprocess.run([sys.executable, "-c", code, "torch", *compute], check=True)


def test_a_picture_goes_into_a_document(drawn, trio, tmp_path):
    root, _ = drawn
    document = tmp_path / "docs" / "figures.md"
    document.parent.mkdir()
    document.write_text("# Ours\n<!-- begin figures -->\n<!-- end figures -->\nEnd\n")
    run("figure=[3,4]", f"runs={trio}/**", f"output_root={root}", f"into={document}")
    text = document.read_text()
    assert text.startswith("# Ours\n") and text.endswith("End\n")
    assert text.count("### Fig. ") == 2 and "](figures/3-runs.png)" in text
    for path in (document.parent / "figures").iterdir():
        assert 5_000 < path.stat().st_size < 60_000
    with pytest.raises(UserError, match="found no block '3-runs'"):
        run("figure=3", f"runs={trio}/**", f"output_root={root}", f"into={document}")


def test_one_that_cannot_be_drawn_is_named_and_the_others_go_on(trio, tmp_path):
    with pytest.raises(UserError, match=r"^1 of 2 figures could not be drawn: 8: runs: found .*kd"):
        run("figure=[8,3]", f"runs={trio}/**", f"output_root={tmp_path}")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"3-runs", "index.html"}


def test_runs_without_a_recording_are_left_out_and_named(tmp_path):
    write_trio(tmp_path / "runs", methods=("kd", "ea_kd"))
    (gone,) = (tmp_path / "runs").glob("**/ea_kd/seed1/dynamics.jsonl")
    gone.unlink()
    words = ("figure=3", f"runs={tmp_path}/runs/**", f"output_root={tmp_path}/out")
    run(*words)
    caption = (tmp_path / "out" / "figures" / "3-runs" / "caption.md").read_text()
    assert "Left out: 1 of 6 runs have no dynamics.jsonl" in caption
    for path in (tmp_path / "runs").glob("**/ea_kd/*/dynamics.jsonl"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"^figure 3: 3 of 6 runs have no dynamics.jsonl \(recorded "
    ):
        run(*words)


def test_a_run_that_trains_has_a_page(tmp_path, capsys):
    directory = write_run(tmp_path, "kd", 0, lines=lambda _: {"epoch": segments_of([1] * 10)})
    (directory / "summary.json").unlink()
    text = run("figure=run", f"runs={directory}", f"output_root={tmp_path}/out")
    assert "KD, seed 0, after epoch 4 of 4" in text
    folder = tmp_path / "out" / "figures" / f"run-kd-{directory.name}"
    assert (folder / "figure.svg").is_file()
    assert "n = 1: one seed (0), so no spread" in (folder / "caption.md").read_text()
    with pytest.raises(UserError, match=r"^runs: found no run in 'nowhere', allowed is a glob"):
        run("figure=run", "runs=nowhere")
    with pytest.raises(UserError, match=r"^runs: found no value, give one for figure=run"):
        run("figure=run")


def test_a_live_page_ends_with_the_run_however_that_ends(tmp_path):
    """A killed run never writes a summary; its lock is left behind."""
    from eakd.analysis.watching import is_training
    from eakd.training.lock import RunLock

    directory = write_run(tmp_path, "kd", 0, lines=lambda _: {"epoch": segments_of([1] * 10)})
    assert not is_training(open_run(directory))
    (directory / "summary.json").unlink()
    lock = RunLock(directory)
    lock.acquire()
    assert is_training(open_run(directory))
    lock.release()
    assert not is_training(open_run(directory))
    words = ("figure=run", f"runs={directory}", f"output_root={tmp_path}/out", "watch=0.01")
    assert "after epoch 4 of 4" in run(*words)


def test_damaged_runs_of_a_glob_are_named(tmp_path):
    write_trio(tmp_path / "runs", methods=("kd", "ea_kd"))
    words = ("figure=3", f"runs={tmp_path}/runs/**", f"output_root={tmp_path}/out")
    for summary in (tmp_path / "runs").glob("**/kd/seed1*/summary.json"):
        summary.write_text("{")
    run(*words)
    caption = (tmp_path / "out" / "figures" / "3-runs" / "caption.md").read_text()
    assert "kd/seed1" in caption and "damaged" in caption
    for summary in (tmp_path / "runs").glob("**/summary.json"):
        summary.write_text("{")
    with pytest.raises(UserError, match=r"^runs: found no finished run in .* \(.*: damaged: .*\)"):
        run(*words)


# Plans


def test_a_plan_records_the_snapshots_that_a_figure_needs(tmp_path):
    words = [f"output_root={tmp_path}", "seeds=[0]"]

    def moments(plan):
        found = {
            text for job in plan.students for text in job.overrides if text.startswith("record.sn")
        }
        return found

    def plan(name, *more):
        return plan_of(load_figure(name), compose([f"figure={name}", *words, *more], "figure"))

    usual, early = plan("A2"), plan("A2", "landscape.snapshots=[0.25]")
    assert moments(usual) == set()
    assert moments(early) == {"record.snapshots=[0.1667,0.25,0.5]"}
    assert [job.directory for job in usual.students] == [job.directory for job in early.students]
    late = plan("A1b", "embedding.snapshots=[0.75]")
    for plans in ([early, late], [late, early], [usual, early, late]):
        assert moments(merged(plans)) == {"record.snapshots=[0.1667,0.25,0.5,0.75]"}
    typed = 'overrides=["record.snapshots=[3]"]'
    assert moments(plan("A2", "landscape.snapshots=[0.25]", typed)) == {"record.snapshots=[3]"}
    assert list(USUAL) == list(compose([]).record.snapshots)
    first = early.students[0].directory
    (again,) = retraining(early, [first], str(tmp_path)).students
    assert "record.snapshots=[0.1667,0.25,0.5]" in again.overrides
    assert Path(compose(list(again.overrides)).run_dir) == again.directory != first


def test_a_plan_shares_its_runs_with_the_tables():
    config = compose(["figure=8", "control=true"], "figure")
    plan = plan_of(load_figure("8"), config)
    column = make_table(load_table("2"), ["resnet32x4-resnet8x4"])
    table = {job.directory for _, job in make_plan(column).each()}
    places = {job.directory for _, job in plan.each()}
    assert len(places) == 100 and len(places & table) == 10  # β = 8
    # One config is composed for all β; a run composes its own.
    for cell, job in list(plan.each())[::17]:
        assert Path(compose(list(job.overrides)).run_dir) == job.directory, cell
    for name in ("1", "3", "5"):
        plan = plan_of(load_figure(name), config)
        new = {job.directory for _, job in plan.each()} - table
        assert {path.parent.name for path in new} == ({"kd+matched"} if name != "1" else set())


def test_all_figures_are_one_plan_with_each_job_once():
    config = compose(["figure=all", "seeds=[0,1]", "scale=short"], "figure")
    figures = chosen(config)
    assert {"1", "3", "4", "5", "8"} <= {each.name for each in figures}
    assert "run" not in {each.name for each in figures}
    plans = [plan_of(each, config) for each in figures if each.name in MINE]
    whole = merged(plans)
    union = {job.directory for plan in plans for job in plan.students}
    assert len(whole.students) == len(union) and {j.directory for j in whole.students} == union
    # Plans with fewer seeds can be merged too.
    one = merged(
        [plans[0], plan_of(load_figure("3"), compose(["figure=3", "seeds=[7]"], "figure"))]
    )
    assert len(one.students) == len(plans[0].students) + 3


def test_the_plan_answers_without_torch(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "figure.py"), "figure=3", "mode=plan"]
    found = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "figure 3: Student entropy" in found and "needs dynamics, teacher" in found
    assert "15 runs (15 to do)" in found
    found = subprocess.run(
        [*script, "control=false"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert "10 runs (10 to do)" in found
    assert not any(tmp_path.glob("**/seed*"))
    code = (
        "import sys; from eakd.composing import compose; from eakd.analysis.command import figure\n"
        "figure(compose(['figure=3', 'mode=plan'], 'figure')); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_a_plan_without_runs_draws_nothing(tmp_path):
    with pytest.raises(UserError, match=r"^figure 3: found no finished run of its plan; mode=run"):
        run("figure=3", "mode=draw", f"output_root={tmp_path}")
    assert not (tmp_path / "figures").exists()


# Files of figures


def test_every_setting_of_a_file_can_be_typed_and_is_taken():
    groups = compose(["figure=3"], "figure")
    for name in figure_names():
        found = load_figure(name)
        for key in found.settings:
            assert key in groups[found.group], f"{found.group}.{key}"


def test_statements_have_the_papers_numbers():
    printed = paper_numbers()["figures"]
    for name in figure_names():
        for statement in load_figure(name).statements:
            if "paper" in statement:
                assert statement["paper"] in set(leaves(printed[name])), (name, statement)


def leaves(node):
    for each in node.values() if isinstance(node, dict) else node:
        if isinstance(each, dict | list):
            yield from leaves(each)
        else:
            yield each


def test_statements_name_what_the_results_have(drawn):
    root, _ = drawn
    for name in "345":
        page = json.loads((root / "figures" / f"{name}-runs" / "figure.json").read_text())["page"]
        assert all(line[-1] != "–" for line in page["lines"]) and page["lines"]


def test_small_figures_are_of_few_points():
    sweep, surface = load_figure("8").in_small(), load_figure("7").in_small()
    assert list(sweep.runs["variants"]) == ["1", "4", "8", "10"] and surface.settings["points"] == 5
    assert load_figure("3").in_small() == load_figure("3")


def test_a_figure_of_ones_own(own_configs, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from eakd.analysis.result import Panel, Result, Series\n"
        "import numpy as np\n"
        "def count(runs, *, output_root='outputs', factor=1) -> Result:\n"
        "    x = np.arange(2.0)\n"
        "    panel = Panel(series=(Series('kd', x, factor * x),))\n"
        "    return Result({'a': panel}, numbers={'runs': len(runs) * factor})\n"
        "def wrong(runs, *, output_root):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "kind: mine.count\nruns: {methods: [kd]}\nsettings: {factor: 2}\nstatements: []\n"
    files = {
        "figures/own.yaml": text,
        "figures/bad.yaml": text.replace("count", "wrong"),
        "figures/key.yaml": text.replace("factor", "fator"),
        "figures/odd.yaml": text + "colour: red\n",
        "figures/small.yaml": text + "smoke: {settings: {factor: 3}}\n",
        "figures/small1.yaml": text + "smoke: {variants: [a]}\n",
        "figures/small2.yaml": text + "smoke: {points: 3}\n",
        "figures/small3.yaml": text + "smoke: {settings: 3}\n",
    }
    own_configs(files)
    write_run(tmp_path / "runs", "kd", 0)
    words = (f"runs={tmp_path}/runs/**", f"output_root={tmp_path}/out")
    run("figure=own", *words)
    folder = tmp_path / "out" / "figures" / "own-runs"
    with np.load(folder / "data.npz") as arrays:
        assert [arrays[name].tolist() for name in arrays.files] == [[0, 1], [0, 2]]
    with pytest.raises(
        UserError, match=r"figures/bad.yaml: kind: found 'mine.wrong', allowed is a"
    ):
        run("figure=bad", *words)
    with pytest.raises(UserError, match=r"^mine.fator: found a key that mine.count does not take"):
        run("figure=key", *words)
    with pytest.raises(UserError, match=r"figures.odd.yaml: colour: found an unknown key"):
        run("figure=odd", *words)
    run("figure=small", "scale=smoke", *words)
    with np.load(tmp_path / "out" / "figures" / "small-runs" / "data.npz") as arrays:
        assert [arrays[name].tolist() for name in arrays.files] == [[0, 1], [0, 3]]
    for name, message in (
        ("small1", r"smoke.variants: found 'a', allowed is "),
        ("small2", r"smoke: found 'points', allowed is one of settings, variants"),
        ("small3", r"smoke.settings: found 3, allowed is a line KEY: VALUE for each"),
    ):
        with pytest.raises(UserError, match=message):
            run(f"figure={name}", *words)


# Bad inputs: one line, nothing written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure=9"], r"^figure: found '9', allowed is one of 1, .*, run, .*all$"),
        ([], r"^figure: found no value, give one: figure=…$"),
        (["figure=3", "mode=paint"], r"^mode: found 'paint', allowed is one of plan, run, status"),
        (["figure=3", "runs='nothing/**'"], r"^runs: found no finished run in 'nothing/\*\*', "),
        (["figure=3", "formats=[gif]"], r"^formats: found 'gif', allowed is one of pdf, svg, png$"),
        (["figure=3", "formats=[]"], r"^formats: found \[\], allowed is a list of pdf, svg, png$"),
        (["figure=3", "width=wide"], r"^width: found 'wide', allowed is single, double or a num"),
        (["figure=3", "width=0"], r"^width: found 0, allowed is a number >= 1"),
        (["figure=3", "compute=perhaps"], r"^compute: found 'perhaps', allowed is one of None, "),
        (["figure=3", "control=1"], r"^control: found 1, allowed is true or false"),
        (["figure=3", "pairs=[a-b,c-d]"], r"^pairs: found 2 pairs, allowed is one pair"),
        (["figure=3", "retrain=true", "runs=x"], r"^retrain: found true with runs=…, allowed is "),
        (["figure=3", "compute=false"], r"3-authors-paper/figure.json: found no file"),
        (["figure=3", "mode=plan", "scale=tiny"], r"^scale: found 'tiny', allowed is one of paper"),
    ],
)  # fmt: skip
def test_bad_inputs(words, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        run(*words, f"output_root={tmp_path / 'out'}")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["segments.segment=11"],
            r"^segments.segment: found 11, allowed is an integer >= 1 and <=",
        ),
        (["segments.by=mine"], r"^segments.by: found 'mine', allowed is one of clean, epoch$"),
    ],
)
def test_bad_settings(words, message, trio, tmp_path):
    with pytest.raises(UserError, match=message):
        run("figure=3", f"runs={trio}/**", f"output_root={tmp_path}", *words)
    assert not (tmp_path / "figures").exists()


def test_runs_that_do_not_belong_together(tmp_path):
    lines = {"lines": lambda _: {"clean": segments_of([1] * 10)}}
    write_run(tmp_path / "one", "kd", 0, **lines)
    write_run(tmp_path / "two", "kd", 0, student="resnet14", **lines)
    with pytest.raises(UserError, match=r"^runs: found students resnet14 and resnet8, allowed is"):
        run("figure=3", f"runs={tmp_path}/**", f"output_root={tmp_path}/out")
    write_run(tmp_path / "three", "kd", 0, temperature=2, **lines)
    pattern = f"{tmp_path}/[ot][nh]*/**"
    with pytest.raises(
        UserError, match=r"two runs of kd with seed 0 that differ in distiller.temp"
    ):
        run("figure=3", f"runs='{pattern}'", f"output_root={tmp_path}/out")
    write_run(tmp_path / "four", "none", 0, teacher="", **lines)
    with pytest.raises(
        UserError, match=r"^runs: found method none, allowed for figure 3 is a meth"
    ):
        run("figure=3", f"runs={tmp_path}/four/**", f"output_root={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_named(drawn, trio, tmp_path):
    root, _ = drawn
    shutil.copytree(trio, tmp_path / "runs")
    path = next((tmp_path / "runs").glob("**/kd/seed0/dynamics.jsonl"))
    path.write_text(path.read_text().replace("{", "(", 1))
    with pytest.raises(UserError, match=rf"{path}: found a damaged line 1"):
        run("figure=3", f"runs={tmp_path}/runs/**", f"output_root={tmp_path}/out")
    shutil.copytree(root, tmp_path / "drawn")
    (tmp_path / "drawn" / "figures" / "3-runs" / "data.npz").write_bytes(b"nonsense")
    words = ("figure=3", "label=runs", f"output_root={tmp_path}/drawn")
    with pytest.raises(
        UserError, match=r"data.npz: cannot be read .*; compute=true makes it again"
    ):
        run(*words, "compute=false")
    run("figure=3", f"runs={trio}/**", f"output_root={tmp_path}/drawn")  # made again by itself


def test_without_matplotlib(monkeypatch, trio, tmp_path):
    monkeypatch.setattr("eakd.analysis.command.has_matplotlib", lambda: False)
    words = ("figure=3", f"runs={trio}/**", f"output_root={tmp_path}")
    with pytest.raises(
        UserError, match=r"^figure: needs matplotlib: pip install 'eakd\[plots\]'; dr"
    ):
        run(*words)
    run(*words, "draw=false")
    assert "Not drawn" in (tmp_path / "figures" / "index.html").read_text()


def test_opening_runs(trio):
    runs = glob_runs(f"{trio}/**", order=("kd", "ea_kd"))
    assert runs.names == ["kd", "ea_kd", "kd+matched"] and runs.seeds == [0, 1, 2]
    assert [run.seed for run in runs.of("ea_kd")] == [0, 1, 2] and len(runs) == 9
    assert runs.pair == "resnet20-resnet8" and runs[0].entropy_temperature == 3.0
    assert runs[0].epochs == 12 and len(runs[0].dynamics) == len(runs[0].metrics) == 12
    assert open_run(Path(trio)) is None


def test_the_files_are_in_the_wheel():
    for name in MINE:
        assert yaml.safe_load((ROOT / "configs" / "figures" / f"{name}.yaml").read_text())
