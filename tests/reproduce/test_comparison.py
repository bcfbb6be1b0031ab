"""Means, spreads and paired tests against SciPy and by hand."""

import json

import pytest
from scipy import stats

from eakd.composing import compose
from eakd.errors import UserError
from eakd.reproduce import compare, plot_curves, report, to_markdown
from eakd.reproduce.comparison import metrics_of
from eakd.training.run import run as train


def run(method, seed, last, best=None):
    return {
        "method": method,
        "seed": seed,
        "top1_last": last,
        "top1_best": best or last + 1,
        "seconds": 10.0,
        "directory": f"{method}/{seed}",
        "config": {"recipe": {"lr": 0.05}},
    }


RUNS = [run("kd", s, v) for s, v in enumerate((70.0, 71.0, 72.5))] + [
    run("ea_kd", s, v) for s, v in enumerate((70.5, 71.2, 73.6))
]


def test_paired_difference_matches_scipy():
    row = next(row for row in compare(RUNS) if row.method == "ea_kd")
    test = stats.ttest_rel((70.5, 71.2, 73.6), (70.0, 71.0, 72.5))
    assert row.difference.mean == pytest.approx(0.6)
    assert row.difference.p == pytest.approx(test.pvalue)
    assert row.difference.low == pytest.approx(test.confidence_interval().low)
    assert row.difference.seeds == 3


@pytest.mark.filterwarnings("error")
def test_differences_that_are_equal_but_for_rounding_are_equal():
    """0.8 - 0.5 and 70.8 - 70.5 differ in the sixteenth digit: no spread to divide by."""
    runs = [run("kd", s, v) for s, v in enumerate((0.5, 70.5, 61.5))]
    runs += [run("ea_kd", s, v) for s, v in enumerate((0.8, 70.8, 61.8))]
    (row,) = [row for row in compare(runs) if row.method == "ea_kd"]
    assert row.difference.low == row.difference.high == row.difference.mean
    assert row.difference.mean == pytest.approx(0.3) and row.difference.p == 0


def test_differences_use_shared_seeds_only():
    rows = compare([*RUNS, run("ea_kd", 9, 10.0)])
    row = next(row for row in rows if row.method == "ea_kd")
    assert row.seeds == (0, 1, 2, 9) and row.difference.seeds == 3
    assert row.difference.mean == pytest.approx(0.6)


def test_last_and_best_are_kept_apart():
    table = to_markdown(compare(RUNS, select="best"), select="best")
    assert "last top-1" in table and "best top-1" in table and "best vs kd" in table
    assert "71.17 ± 1.26" in table and "72.17 ± 1.26" in table


def test_two_settings_are_never_averaged():
    other = {**run("kd", 1, 50.0), "config": {"recipe": {"lr": 1}}}
    with pytest.raises(UserError, match=r"two runs of kd with seed 1 that differ in recipe\.lr"):
        compare([*RUNS, other])
    rows = compare([*RUNS, other], by=("method", "recipe.lr"))
    assert [row.method for row in rows] == ["kd, lr=0.05", "ea_kd, lr=0.05", "kd, lr=1"]


def other_metric(method, seed, value, **more):
    """A summary of a task that knows no accuracy."""
    return {
        **{k: v for k, v in run(method, seed, 0.0).items() if not k.startswith("top1")},
        "metrics": {"rouge": "ROUGE-L", "exact": "exact match %"},
        "rouge_last": value,
        "rouge_best": value + 2,
        "exact_last": 1.0,
        "exact_best": 1.0,
        **more,
    }


def test_the_first_metric_of_the_runs_is_compared():
    runs = [other_metric("kd", s, v) for s, v in enumerate((20.0, 21.0))]
    runs += [other_metric("ea_kd", s, v) for s, v in enumerate((22.0, 24.0))]
    rows = compare(runs)
    assert [row.last for row in rows] == [(20.0, 21.0), (22.0, 24.0)]
    assert rows[1].best == (24.0, 26.0) and rows[1].difference.mean == 2.5
    lines = to_markdown(rows).splitlines()
    assert lines[0].startswith("| method | seeds | last ROUGE-L | best ROUGE-L | seconds a run |")
    assert "| ea_kd | 2 | 23.00 ± 1.41 |" in lines[3] and "top" not in "".join(lines)


def test_summaries_from_before_metrics_had_headings():
    head = to_markdown(compare(RUNS)).splitlines()[0]
    assert "| last top-1 % | best top-1 % |" in head
    new = [{**each, "metrics": {"top1": "top-1 %", "top5": "top-5 %"}} for each in RUNS]
    assert to_markdown(compare(new)) == to_markdown(compare(RUNS))
    unknown = [{k.replace("top1", "f1"): v for k, v in each.items()} for each in RUNS]
    assert "| last f1 | best f1 |" in to_markdown(compare(unknown))
    assert metrics_of({"b_last": 1, "b_best": 2, "a_last": 3}) == {"b": "b", "a": "a"}


def test_different_first_metrics_are_never_compared(tmp_path):
    mixed = [*RUNS, other_metric("kd", 7, 20.0)]
    message = "^runs: found some measured by top1 and some by rouge, allowed are runs of one metric"
    with pytest.raises(UserError, match=message):
        compare(mixed)
    with pytest.raises(UserError, match=message):
        plot_curves(mixed, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_have_a_point_for_each_evaluation(tmp_path, monkeypatch):
    drawn = {}

    def plot(axes, epochs, values, label, **look):
        drawn[label] = dict(zip(epochs, values, strict=True))
        return original(axes, epochs, values, label=label, **look)

    import matplotlib.axes

    original = matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", plot)
    evaluated = {("kd", 0): (2, 4, 5), ("kd", 1): (2, 4, 5), ("ea_kd", 0): (5,), ("ea_kd", 1): ()}
    runs = []
    for (method, seed), epochs in evaluated.items():
        folder = tmp_path / method / str(seed)
        folder.mkdir(parents=True)
        lines = [{"epoch": epoch, "train_loss": 1.0} for epoch in range(1, 6)]
        for line in lines:
            line |= {"test_rouge": 10.0 * line["epoch"] + seed} if line["epoch"] in epochs else {}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(other_metric(method, seed, 1.0, directory=folder))
    plot_curves(runs, tmp_path / "curves.png")
    assert drawn == {"kd (n = 2)": {2: 20.5, 4: 40.5, 5: 50.5}, "ea_kd (n = 2)": {}}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_reads_what_runs_leave(tiny_with_teacher, tmp_path):
    for seed in (0, 1):
        for method in ("kd", "ea_kd"):
            job = [
                f"distiller={method}",
                f"seed={seed}",
                f"run_dir={tmp_path / method / str(seed)}",
            ]
            train(compose([*tiny_with_teacher, *job]))
    table = report(f"{tmp_path}/**", plot=str(tmp_path / "curves.png"))
    assert "| last top-1 % | best top-1 % |" in table
    assert "| kd | 2 |" in table and "| ea_kd | 2 |" in table
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="found no finished run"):
        report(f"{tmp_path}/nowhere")
