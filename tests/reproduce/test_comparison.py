"""Means, spreads and paired tests against SciPy and by hand."""

import pytest
from scipy import stats

from eakd.config import compose
from eakd.errors import UserError
from eakd.reproduce import compare, report, to_markdown
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
    assert "| kd | 2 |" in table and "| ea_kd | 2 |" in table
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="found no finished run"):
        report(f"{tmp_path}/nowhere")
