"""Reports of tables: numbers against SciPy, by hand and the paper's own; every format complete."""

import csv
import io
import random
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats

from eakd.composing import compose
from eakd.errors import UserError
from eakd.reproduce import read_runs
from eakd.reproduce.palette import looks
from eakd.reproduce.table import load_table, make_table
from eakd.reproduce.table_report import insert_block, markdown, summarise, write_report
from eakd.reproduce.table_report.layout import grids
from eakd.reproduce.table_report.numbers import holm
from eakd.reproduce.table_report.provenance import paper_epochs
from eakd.training.run import run as train

PAIR = "resnet32x4-resnet8x4"
TABLES = ("1", "2", "3", "4", "7", "8", "control")


def table(name, **narrowed):
    return make_table(load_table(name), **narrowed)


def run(root, cell, seed, last, best=None, epochs=None, **more):
    """A summary; ``last`` and ``best`` are a top-1 accuracy, or top-1 and top-5."""
    last = last if isinstance(last, tuple) else (last, 90.0)
    best = best or last
    best = best if isinstance(best, tuple) else (best, 91.0)
    summary = {
        "seed": seed,
        "recipe": "authors",
        "epochs": epochs or paper_epochs(table("2"), cell),
        "selection": "test",
        "top1_last": last[0],
        "top1_best": best[0],
        "top1_best_epoch": 233,
        "top5_last": last[1],
        "top5_best": best[1],
        "seconds": 1800.5,
        "device": "cuda:0",
        "precision": "bf16",
        "data_fingerprint": "27beeaa4",
        "environment": {"torch": "2.9.0", "commit": "911b24d", "modified": False},
        "directory": root / "outputs" / cell.pair / cell.method / f"{cell.variant}seed{seed}",
        "config": {},
    }
    if cell.method != "none":
        summary |= {"teacher_top1": 79.42, "teacher_top5": 94.5}
    return {**summary, **more}


def cell_of(of, method, variant="", pair=PAIR):
    (cell,) = of.at(pair=pair, method=method, variant=variant)
    return cell


def noisy(of, root, seeds=range(3), finished=1.0):
    """Runs near the paper's numbers, ``finished`` of them."""
    rng, results = random.Random(0), {}
    for cell in of.cells:
        for seed in seeds if cell.method != "teacher" else ():
            if rng.random() < finished:
                top1 = round(cell.paper.get("top1", 74.0) + rng.gauss(0, 0.5), 2)
                top5 = round(cell.paper.get("top5", 92.0) + rng.gauss(0, 0.5), 2)
                best = (round(top1 + 0.11, 2), round(top5 + 0.07, 2))
                epochs = paper_epochs(of, cell)
                summary = run(root, cell, seed, (top1, top5), best, epochs)
                results.setdefault(cell, {})[seed] = summary
    return results


def summary_of(of, results, root, select="last", wanted_seeds=range(3), states=None, about=None):
    return summarise(
        of,
        results,
        root / "report",
        select=select,
        wanted_seeds=wanted_seeds,
        states=states or {},
        about=about or {},
    )


def written(of, results, root, folder="report", **settings):
    settings = {"wanted_seeds": range(3), "states": {}, "about": {}, **settings}
    text = write_report(summarise(of, results, root / folder, **settings), root / folder)
    files = {path.suffix[1:]: path for path in sorted((root / folder).iterdir())}
    assert set(files) | {"svg"} == {"csv", "html", "md", "svg", "tex"}
    files = {kind: path.read_text(encoding="utf-8") for kind, path in files.items()}
    assert files["md"] == text
    return files


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def entry_of(report, cell, metric="top1"):
    (entry,) = [e for e in report.entries if e.cell == cell and e.metric == metric]
    return entry


# Numbers


def test_holm_by_hand():
    # Sorted: 0.005·4, 0.01·3, 0.03·2, and 0.04·1, which may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_gains_match_scipy_and_are_corrected(tmp_path):
    of = table("2", pairs=[PAIR], methods=["kd", "ea_kd", "dkd", "ea_dkd", "mld", "ea_mld"])
    values = {
        "kd": (70.0, 71.0, 72.5),
        "ea_kd": (72.1, 73.0, 74.4),
        "dkd": (74.0, 75.0, 74.5),
        "ea_dkd": (74.4, 74.9, 74.6),
        "mld": (76.0, 76.4, 76.1),
        "ea_mld": (75.0, 75.5, 75.0),
    }
    results = {
        cell_of(of, method): {
            seed: run(tmp_path, cell_of(of, method), seed, value)
            for seed, value in enumerate(numbers)
        }
        for method, numbers in values.items()
    }
    gains = {gain.cell.method: gain for gain in summary_of(of, results, tmp_path).gains}
    tests = {m: stats.ttest_rel(values[m], values[m[3:]]) for m in ("ea_kd", "ea_dkd", "ea_mld")}
    assert list(gains) == list(tests)
    for method, test in tests.items():
        low, high = test.confidence_interval(0.95)
        found = gains[method].test
        assert (found.low, found.high, found.p) == pytest.approx((low, high, test.pvalue))
        assert gains[method].seeds == 3
    assert gains["ea_kd"].mean == pytest.approx(2.0)
    assert gains["ea_kd"].paper == pytest.approx(75.46 - 73.33)
    assert gains["ea_kd"].holm == pytest.approx(3 * tests["ea_kd"].pvalue)
    assert gains["ea_mld"].holm == pytest.approx(2 * tests["ea_mld"].pvalue)
    assert gains["ea_dkd"].holm == pytest.approx(tests["ea_dkd"].pvalue)
    assert [gain.verdict for gain in gains.values()] == ["gain", "noise", "loss"]


def test_small_numbers_keep_their_meaning(tmp_path):
    """A tiny p is not printed as zero, and a tiny loss has no minus before 0.00."""
    of = table("2", pairs=[PAIR], methods=["kd", "ea_kd"])
    kd, ea_kd = cell_of(of, "kd"), cell_of(of, "ea_kd")
    results = {
        kd: {s: run(tmp_path, kd, s, v) for s, v in enumerate((73.32, 73.33, 73.33))},
        ea_kd: {s: run(tmp_path, ea_kd, s, v) for s, v in enumerate((75.0, 75.0, 75.01))},
    }
    files = written(of, results, tmp_path)
    assert files["md"].count("| ours − paper | +0.00 |") == 2  # the teacher and kd
    assert "| 3 | &lt;0.001 | &lt;0.001 | gain |" in files["md"]
    assert files["html"].count("<span>&lt;0.001</span>") == 2
    assert "& $<$0.001 & $<$0.001 & gain &" in files["tex"]


def test_the_correction_decides(tmp_path):
    """p = 0.02 alone is a gain, and noise as one of seven tests."""
    of = table("2", pairs=[PAIR])
    results = {}
    for cell in of.cells[1:]:
        values = (71.0, 71.3, 71.0) if cell.method.startswith("ea_") else (70.0, 70.0, 70.2)
        results[cell] = {seed: run(tmp_path, cell, seed, v) for seed, v in enumerate(values)}
    gains = summary_of(of, results, tmp_path).gains
    assert len(gains) == 7 and {gain.verdict for gain in gains} == {"noise"}
    assert gains[0].test.p < 0.05 <= gains[0].holm == pytest.approx(7 * gains[0].test.p)
    alone = table("2", pairs=[PAIR], methods=["kd", "ea_kd"])
    assert [gain.verdict for gain in summary_of(alone, results, tmp_path).gains] == ["gain"]


def test_no_test_without_two_shared_seeds_or_without_spread(tmp_path):
    of = table("2", pairs=[PAIR], methods=["kd", "ea_kd", "dkd", "ea_dkd", "mld", "ea_mld"])
    numbers = {
        "kd": {0: 70.0, 1: 71.0},
        "ea_kd": {1: 71.5, 2: 73.0},
        "dkd": {0: 70.1, 1: 70.3},
        "ea_dkd": {0: 70.3, 1: 70.5},  # the same difference, but for the last bit
        "mld": {0: 75.0},
        "ea_mld": {1: 75.0},
    }
    results = {
        cell_of(of, method): {s: run(tmp_path, cell_of(of, method), s, v) for s, v in by.items()}
        for method, by in numbers.items()
    }
    one_seed, no_spread, none_shared = summary_of(of, results, tmp_path).gains
    assert (one_seed.mean, one_seed.seeds, one_seed.verdict) == (0.5, 1, "no test")
    assert no_spread.mean == pytest.approx(0.2) and no_spread.verdict == "no test"
    assert (none_shared.mean, none_shared.verdict) == (None, "no shared seed")
    text = markdown(summary_of(of, results, tmp_path))
    assert f"| ea_kd − kd | {PAIR} | +0.50 | – | 1 | – | – | no test | +2.13 |" in text


def test_the_papers_own_numbers_give_its_averages_and_marks(tmp_path):
    of = table("2")
    results = {
        cell: {0: run(tmp_path, cell, 0, cell.paper["top1"])}
        for cell in of.cells
        if cell.method != "teacher"
    }
    report = summary_of(of, results, tmp_path, wanted_seeds=[0])
    assert [average.name for average in report.averages][-2:] == ["ea_fcfd", "all"]
    assert len(report.averages) == 8
    for average in report.averages:
        assert average.ours == pytest.approx(average.printed, abs=0.01)
        assert average.paper == pytest.approx(average.ours)
        assert average.done == average.total == (49 if average.name == "all" else 7)
    for entry in report.entries:
        if entry.cell.method != "teacher":
            assert entry.last.mean == entry.paper.mean and entry.last.mark == entry.paper.mark
    best = {e.cell.pair: e.cell.method for e in report.entries if e.last.mark == "best"}
    second = {e.cell.pair: e.cell.method for e in report.entries if e.last.mark == "second"}
    assert list(best.values()) == [*["ea_mld_ls"] * 4, "ea_fcfd", "ea_fcfd", "ea_mld_ls"]
    assert second[PAIR] == "mld_ls" and second["vgg13-mobilenetv2"] == "mld_ls"
    row = f"|  | ours | {' | '.join(f'**{n}** (1)' for n in ('78.38', '77.60', '75.78', '75.38'))}"
    assert row in markdown(report)
    assert markdown(report).count("| +0.00 |") >= 14


def test_averages_over_what_is_finished(tmp_path):
    of = table("2", methods=["kd", "ea_kd"])
    wrn = "wrn_28_4-wrn_16_2"
    results = {
        cell: {0: run(tmp_path, cell, 0, 75.0 + (cell.method == "ea_kd"))}
        for cell in of.cells
        if cell.pair in (PAIR, wrn) and cell.method != "teacher"
    }
    kd, every = summary_of(of, results, tmp_path).averages
    assert (kd.name, kd.ours, kd.done, kd.total, kd.printed) == ("ea_kd", 1.0, 2, 7, 1.48)
    assert kd.paper == pytest.approx((75.46 - 73.33 + 75.79 - 75.04) / 2)
    assert (every.name, every.ours, every.total) == ("all", 1.0, 7)


def test_equal_numbers_share_a_mark_and_a_lone_one_has_none(tmp_path):
    of = table("2", pairs=[PAIR], methods=["none", "kd", "ea_kd", "dkd"])
    kd, ea_kd, dkd, none = (cell_of(of, m) for m in ("kd", "ea_kd", "dkd", "none"))
    results = {
        none: {0: run(tmp_path, none, 0, 99.0)},
        kd: {0: run(tmp_path, kd, 0, 75.0)},
        ea_kd: {0: run(tmp_path, ea_kd, 0, 75.0)},
        dkd: {0: run(tmp_path, dkd, 0, 74.0)},
    }
    report = summary_of(of, results, tmp_path)
    marks = {entry.cell.method: entry.last.mark for entry in report.entries}
    assert marks == {"teacher": "", "none": "", "kd": "best", "ea_kd": "best", "dkd": "second"}
    alone = summary_of(of, {kd: results[kd]}, tmp_path)
    assert entry_of(alone, kd).last.mark == "" and entry_of(alone, kd).paper.mark == ""
    assert entry_of(alone, ea_kd).paper.mark == "second"  # after dkd


def test_select_decides_what_is_compared_and_both_are_shown(tmp_path):
    of = table("2", pairs=[PAIR], methods=["kd", "ea_kd"])
    kd, ea_kd = cell_of(of, "kd"), cell_of(of, "ea_kd")
    results = {
        kd: {0: run(tmp_path, kd, 0, 73.0, 74.0), 1: run(tmp_path, kd, 1, 73.2, 74.1)},
        ea_kd: {0: run(tmp_path, ea_kd, 0, 74.0, 76.0), 1: run(tmp_path, ea_kd, 1, 74.4, 76.3)},
    }
    last = markdown(summary_of(of, results, tmp_path, "last", range(2)))
    best = markdown(summary_of(of, results, tmp_path, "best", range(2)))
    assert "|  | ours | <u>73.10 ± 0.14</u> (2) |" in last
    assert "| kd | <u>74.05 ± 0.07</u> (2) |" in last
    assert "|  | ours − paper | −0.23 |" in last and "## Gains, last epoch" in last
    assert "|  | ours | <u>74.05 ± 0.07</u> (2) |" in best
    assert "| kd | <u>73.10 ± 0.14</u> (2) |" in best
    assert "|  | ours − paper | +0.72 |" in best and "## Gains, best epoch" in best
    assert "| +1.10 |" in last and "| +2.10 |" in best
    with pytest.raises(UserError, match="select: found 'first', allowed is one of last, best"):
        summary_of(of, results, tmp_path, "first")


# What is missing, and what to beware of


def test_without_runs_the_table_is_there(tmp_path):
    files = written(table("2"), {}, tmp_path)
    assert "0 of 315 runs are finished" in files["md"]
    assert "| kd | paper | 73.33 |" in files["md"]
    assert "|  | ours | – (0 of 3) | – (0 of 3) |" in files["md"]
    assert "<span>–</span> <small>(0 of 3)</small>" in files["html"]
    assert "-- (0 of 3)" in files["tex"]
    assert {row["state"] for row in rows_of(files["csv"])} == {"missing"}
    assert "No finished cell" in files["svg"] and "<circle" not in files["svg"]
    assert "Warning" not in files["md"]


def test_states_and_partial_cells(tmp_path):
    of = table("2", pairs=[PAIR], methods=["kd"])
    kd = cell_of(of, "kd")
    results = {kd: {0: run(tmp_path, kd, 0, 73.0), 7: run(tmp_path, kd, 7, 74.0)}}
    states = {kd: {1: "epoch 30 of 240", 2: "failed: CUDA\nout of memory"}}
    files = written(of, results, tmp_path, wanted_seeds=range(4), states=states)
    assert "| 73.50 ± 0.71 (2 of 5) |" in files["md"]  # seeds beyond the wanted ones count too
    (line,) = [line for line in files["md"].splitlines() if line.startswith("- kd, ")]
    assert line == (
        f"- kd, {PAIR}: [seed 0](../outputs/{PAIR}/kd/seed0) 73.00, seed 1: epoch 30 of 240, "
        f"seed 2: failed: CUDA out of memory, seed 3: missing, "
        f"[seed 7](../outputs/{PAIR}/kd/seed7) 74.00"
    )
    assert f"<li>kd, {PAIR}, seed 1: epoch 30 of 240</li>" in files["html"]
    found = [(row["seed"], row["last"], row["state"]) for row in rows_of(files["csv"])[1:]]
    assert found == [
        ("0", "73.0", "finished"),
        ("1", "", "epoch 30 of 240"),
        ("2", "", "failed: CUDA out of memory"),
        ("3", "", "missing"),
        ("7", "74.0", "finished"),
    ]


def test_a_teachers_accuracy_comes_from_its_students_runs(tmp_path):
    of = table("2", methods=["none", "kd"])
    kd, none = cell_of(of, "kd"), cell_of(of, "none")
    results = {
        none: {0: run(tmp_path, none, 0, 72.0)},
        kd: {0: run(tmp_path, kd, 0, 73.0, teacher_top1=79.10)},
    }
    report = summary_of(of, results, tmp_path)
    assert entry_of(report, cell_of(of, "teacher")).last.mean == 79.10
    assert entry_of(report, cell_of(of, "teacher", pair="vgg13-vgg8")).last.mean is None
    text = markdown(report)
    assert "| teacher | paper | 79.42 |" in text and "|  | ours | 79.10 | – |" in text
    assert "|  | ours − paper | −0.32 | – |" in text and "Warning" not in text
    results[kd][1] = run(tmp_path, kd, 1, 73.0, teacher_top1=79.11)  # one image
    assert "Warning" not in markdown(summary_of(of, results, tmp_path))
    results[kd][2] = run(tmp_path, kd, 2, 73.0, teacher_top1=79.42)
    text = markdown(summary_of(of, results, tmp_path))
    assert "- Warning: top1 of the teacher resnet32x4 is from 79.10 to 79.42 among" in text


def test_warnings_name_what_differs(tmp_path):
    of = table("2", pairs=[PAIR], methods=["kd", "mld"])
    kd, mld = cell_of(of, "kd"), cell_of(of, "mld")
    other = {"torch": "2.8.0", "commit": "aaaa", "modified": True}
    results = {
        kd: {
            0: run(tmp_path, kd, 0, 73.0, device="cuda:1"),  # as good as cuda:0
            1: run(tmp_path, kd, 1, 73.0, environment=other, precision="float32", device="cpu"),
            2: run(tmp_path, kd, 2, 73.0, selection="val", recipe="common"),
        },
        mld: {0: run(tmp_path, mld, 0, 77.0, epochs=240), 1: run(tmp_path, mld, 1, 77.0)},
    }
    report = summary_of(of, results, tmp_path)
    assert set(report.notes) == {
        "Warning: 240 epochs instead of the 480 of the authors' protocol in 1 run",
        "Warning: mixed selection among the runs: test (4 runs), val (1 run)",
        "Warning: mixed recipe among the runs: authors (4 runs), common (1 run)",
        "Warning: mixed torch among the runs: 2.9.0 (4 runs), 2.8.0 (1 run)",
        "Warning: mixed commit among the runs: 911b24d (4 runs), aaaa (1 run)",
        "Warning: mixed precision among the runs: bf16 (4 runs), float32 (1 run)",
        "Warning: mixed device among the runs: cuda (4 runs), cpu (1 run)",
        "Warning: the code had uncommitted changes in 1 run",
        *(note for note in report.notes if note.startswith("Note on the paper: Table ")),
    }
    assert "commit: 911b24d (4 runs), aaaa (1 run)" in report.environment
    assert "the test and val split" in markdown(report)
    files = written(of, results, tmp_path)
    for kind in ("md", "html", "tex"):
        assert "in 1 run" in files[kind] and "2.9.0 (4 runs)" in files[kind]


def test_notes_of_the_paper_that_concern_the_table(tmp_path):
    def found(name):
        return [note[19:] for note in summary_of(table(name), {}, tmp_path).notes]

    assert [note[:7] for note in found("2")] == ["Table 8", "Table 2"]  # "Tables 2 and 7 print"
    assert [note[:7] for note in found("7")] == ["Table 8"]
    assert [note[:7] for note in found("1")] == ["Table 1"]
    assert [note[:7] for note in found("4")] == ["Tiny-Im"]
    assert found("control") == []


def test_a_shared_run_is_counted_once(tmp_path):
    pairs = ["vgg13-mobilenetv2", "resnet50-mobilenetv2"]
    of = table("2", pairs=pairs, methods=["none"])
    same = run(tmp_path, cell_of(of, "none", pair=pairs[0]), 0, 64.0)
    results = {cell_of(of, "none", pair=pair): {0: same} for pair in pairs}
    report = summary_of(of, results, tmp_path)
    assert report.seconds == (1800.5,) and "commit 911b24d" in report.environment[0]
    assert sum(run.summary is not None for run in report.runs) == 2


# Layouts


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("1", ["kd"], ["uniform", "teacher", "student", "inverted_teacher", "inverted_student"]),
        ("3", ["teacher", "none", "kd", "ea_kd"], ["top1", "top5"]),
        ("4", ["vit_b-resnet8x4", "deit_b-resnet8x4"], ["teacher", "kd", "ea_kd"]),
        ("7", [PAIR, "wrn_28_4-wrn_16_2"], ["τ′=2", "τ′=3", "τ′=4"]),
        ("8", ["kd", "mld", "mld_ls", "fcfd"], ["uniform", "base", "interaction", "ea"]),
        ("control", ["kd", "ctkd"], ["uniform", "matched", "shuffled", "ea", "ea_100"]),
    ],
)
def test_tables_are_laid_out_as_in_the_paper(tmp_path, name, rows, columns):
    of = table(name)
    grid = grids(summary_of(of, noisy(of, tmp_path), tmp_path))[0]
    assert list(grid.columns) == columns
    labels = list(dict.fromkeys(labels[0] for labels, _ in grid.rows))
    assert labels[: len(rows)] == rows
    assert len(grid.rows) == len(labels) * (1 if name == "control" else 3)


def test_numbers_land_in_their_cells(tmp_path):
    """Two metrics along the top; and an axis that is neither down nor along joins the rows."""
    of = table("3", methods=["kd", "ea_kd"])
    kd = cell_of(of, "kd")
    results = {kd: {0: run(tmp_path, kd, 0, (56.5, 79.14), (57.5, 80.0))}}
    text = markdown(summary_of(of, results, tmp_path))
    assert "| kd | paper | <u>56.00</u> | <u>79.64</u> |" in text
    assert "|  | ours | 56.50 (1 of 3) | 79.14 (1 of 3) |" in text
    assert "|  | ours − paper | +0.50 | −0.50 |" in text
    assert "| kd | 57.50 (1 of 3) | 80.00 (1 of 3) |" in text
    both = replace(table("2", pairs=[PAIR], methods=["kd"]), metrics=("top1", "top5"))
    (kd,) = both.at(method="kd")
    text = markdown(summary_of(both, {kd: {0: run(tmp_path, kd, 0, (73.0, 93.0))}}, tmp_path))
    assert "| kd, top1 | paper | 73.33 |" in text and "| kd, top5 | paper | – |" in text
    assert "|  | ours | 93.00 (1 of 3) |" in text and "top-1" in text


def test_a_table_of_another_quantity_says_nothing_of_accuracy(tmp_path):
    definition = load_table("2") | {
        "name": "texts",
        "title": "Instructions, ROUGE-L <1>",
        "metrics": ["rouge", "exact"],
        "pairs": ["resnet20-resnet8"],
        "methods": ["teacher", "kd", "ea_kd"],
        "quantity": "<score>",
        "quantities": "<scores>",
        "unit": "points",
    }
    of = make_table(definition)
    cells = [replace(c, paper={"rouge": 23.0 + n, "exact": 5.0}) for n, c in enumerate(of.cells)]
    of = replace(of, cells=tuple(cells))
    results = {}
    for cell in cells[1:]:
        for seed in range(3):
            each = run(tmp_path, cell, seed, 0.0, epochs=240)
            each = {k: v for k, v in each.items() if not re.search("top[15]", k)}
            each |= {"metrics": {"rouge": "ROUGE-L", "exact": "exact %"}, "rouge_best_epoch": 7}
            each |= {f"{m}_{w}": 20.0 + seed for m in of.metrics for w in ("last", "best")}
            results.setdefault(cell, {})[seed] = each | {"teacher_rouge": 30.0}
    files = written(of, results, tmp_path)
    for kind, text in files.items():
        assert not re.search(r"top.?[15]|accurac|percent", text), kind
    assert "Ours: test &lt;score> in points, mean" in files["md"]
    assert "the highest &lt;score> on the test split" in files["md"]
    assert "## Gains, last epoch, in points" in files["md"]
    assert "paper, rouge points</text>" in files["svg"] and "<scores>" not in files["svg"]
    assert "| teacher, rouge | paper | 23.00 |" in files["md"] and "| 30.00 |" in files["md"]
    assert {row["best_epoch"] for row in rows_of(files["csv"])} == {"", "7"}
    plain = replace(of, unit="", quantity="value", quantities="values")
    text = written(plain, results, tmp_path)["md"]
    assert "test value, mean" in text and "## Gains, last epoch\n" in text

    older = {cell: {0: run(tmp_path, cell, 0, 1.0)} for cell in cells[1:]}
    with pytest.raises(UserError, match=r"metrics of table texts: found 'rouge', .* top1, top5"):
        written(of, older, tmp_path)


def test_variants_compete_within_their_method(tmp_path):
    report = summary_of(table("8"), {}, tmp_path)
    best = [(e.cell.method, e.cell.variant) for e in report.entries if e.paper.mark == "best"]
    assert best == [(method, "ea") for method in ("kd", "mld", "mld_ls", "fcfd")]
    gains = summary_of(table("7"), {}, tmp_path).gains
    assert gains[0].names == ("τ′=2", "τ′=3") and gains[0].paper == pytest.approx(73.9 - 75.46)


# Formats


class Page(HTMLParser):
    """Checks that tags are closed in order; collects what pages refer to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.links += [value for key, value in attrs if key in ("href", "src")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_latex(text):
    """Balanced, and every row has as many cells as the table has columns."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[{}&%$#_\\]", "", code)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert bare.count(r"\begin{") == bare.count(r"\end{")
    assert all(ord(char) < 128 for char in bare)
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\bottomrule", code, flags=re.DOTALL
    ):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) > 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("name", TABLES)
def test_every_format_has_every_number(tmp_path, name, select):
    of = table(name)
    results = noisy(of, tmp_path, finished=0.8)
    files = written(of, results, tmp_path, select=select)
    report = summary_of(of, results, tmp_path, select)
    page = Page(files["html"])
    check_latex(files["tex"])

    shown = []
    for entry in report.entries:
        for score in (entry.last, entry.best):
            if score.std is not None:
                shown.append(f"{score.mean:.2f} ± {score.std:.2f}")
    assert len(shown) > 2
    for text in shown:
        assert text in files["md"] and text in files["html"]
        assert text.replace("±", r"$\pm$") in files["tex"]

    rows = {
        (r["pair"], r["method"], r["variant"], r["seed"], r["metric"]): r
        for r in rows_of(files["csv"])
        if r["seed"]
    }
    assert len(rows) == len(report.runs) * len(of.metrics)
    hrefs = set(page.links)
    for cell, by_seed in results.items():
        for seed, each in by_seed.items():
            for metric in of.metrics:
                row = rows[cell.pair, cell.method, cell.variant, str(seed), metric]
                assert float(row["last"]) == each[f"{metric}_last"]
                assert float(row["best"]) == each[f"{metric}_best"]
                assert row["paper"] == str(cell.paper.get(metric, ""))
                assert (row["state"], row["commit"]) == ("finished", "911b24d")
                assert (row["best_epoch"], row["seconds"]) == ("233", "1800.5")
                place = tmp_path / "report" / row["directory"]
                assert place.resolve() == each["directory"].resolve()
            link = f"../outputs/{cell.pair}/{cell.method}/"
            assert any(href.startswith(link) for href in hrefs)
            value = f"{each[f'{of.metrics[0]}_{select}']:.2f}"
            assert f"seed{seed}) {value}" in files["md"]


def test_csv_round_trips(tmp_path):
    of = table("3")
    text = written(of, noisy(of, tmp_path, finished=0.5), tmp_path)["csv"]
    stream, rows = io.StringIO(), rows_of(text)
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert stream.getvalue() == text


def test_the_page_stands_alone_and_is_accessible(tmp_path):
    of = table("2")
    page = Page(written(of, noisy(of, tmp_path), tmp_path)["html"])
    tags = [tag for tag, _ in page.seen]
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert all(link.startswith("../outputs/") for link in page.links) and page.links
    assert len(page.links) == len(set(page.links)) == 15 * 7 * 3
    assert all("scope" in attrs for tag, attrs in page.seen if tag == "th")
    assert ("html", {"lang": "en"}) in page.seen and tags.count("svg") == 1
    style = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in style and "@media print" in style
    assert "url(" not in style.replace("url(#", "") and "@import" not in style


def test_the_chart_has_a_dot_for_each_cell(tmp_path):
    of = table("2", pairs=[PAIR, "vgg13-vgg8"])
    results = {
        cell: {0: run(tmp_path, cell, 0, cell.paper["top1"])}
        for cell in of.cells
        if cell.method != "teacher"
    }
    kd = cell_of(of, "kd")
    results[kd] |= {1: run(tmp_path, kd, 1, 75.33)}
    svg = written(of, results, tmp_path)["svg"]
    dots = re.findall(
        r'<g id="cell-\d+"><title>([^<]*)</title>.*?<use [^>]*? x="([\d.]+)" y="([\d.]+)" '
        r'style="(.*?)"',
        svg,
        re.S,
    )
    assert len(dots) == len(results) == 30
    titles = {title: (float(x), float(y)) for title, x, y, _ in dots}
    own = titles.pop(f"kd, {PAIR}: paper 73.33, ours 74.33 ± 1.41 (2)")
    # The others lie on the diagonal, where x and y add up to one number; kd lies above it.
    sums = [x + y for x, y in titles.values()]
    assert max(sums) - min(sums) < 0.3 and sum(own) < min(sums) - 1
    assert svg.count('<g id="spread-') == 1
    looks = {title.partition(",")[0]: style for title, _, _, style in dots}
    assert looks["kd"] != looks["ea_kd"] and "fill-opacity: 0;" in looks["kd"]
    assert len(set(looks.values())) == 15
    names = re.findall(r"<text [^>]*>(\w+)</text>", svg)
    assert set(looks) <= set(names)  # the legend


def test_without_matplotlib_the_report_says_what_to_install(tmp_path, monkeypatch):
    of = table("2", pairs=[PAIR], methods=["kd"])
    before = written(of, noisy(of, tmp_path), tmp_path)
    monkeypatch.setattr("eakd.reproduce.table_report.has_matplotlib", lambda: False)
    after = written(of, noisy(of, tmp_path), tmp_path)
    assert sorted(after) == ["csv", "html", "md", "tex"] and after["md"] == before["md"]
    assert "<svg" not in after["html"]
    assert "<p>The chart needs matplotlib: pip install 'eakd[plots]'</p>" in after["html"]


def test_a_method_and_its_ea_form_share_a_colour():
    names = ["kd", "ea_kd", "kd+matched", "dkd", "ea_mld", "ea_100", "uniform"]
    found = looks(names)
    assert list(found) == names
    assert found["kd"].colour == found["ea_kd"].colour
    assert not found["kd"].filled and found["ea_kd"].filled
    assert all(found[name].filled for name in names[2:])
    assert len(set(found.values())) == len({look.colour for look in found.values()}) + 1 == 7


def test_names_cannot_break_out(tmp_path):
    nasty = "<script>alert('x')</script> a|b & c_ *d* `e` \\f {g} $h$ %i #j ~k ^l [m](n)"
    of = table("7", pairs=[PAIR], variants=["τ′=2", "τ′=3"])
    kd, ea_kd = (
        replace(cell, variant=v) for cell, v in zip(of.cells, ("plain", nasty), strict=True)
    )
    strange = tmp_path / "a b&c|d<script>(e)_f#g%h" / "seed0"
    names = {"title": nasty, "variants": ("plain", nasty), "gains": ((nasty, "plain"),)}
    of = replace(of, cells=(kd, ea_kd), **names)
    results = {
        cell: {0: run(tmp_path, cell, 0, 74.0, directory=strange, environment={"torch": nasty})}
        for cell in (kd, ea_kd)
    }
    states = {kd: {1: nasty + "\n\n# heading"}}
    files = written(of, results, tmp_path, states=states, about={nasty: nasty})
    for kind in ("md", "html", "svg"):
        assert "<script" not in files[kind] and "&lt;script>" in files[kind].replace("&gt;", ">")
    page = Page(files["html"])
    assert "../a%20b%26c%7Cd%3Cscript%3E%28e%29_f%23g%25h/seed0" in page.links
    assert "](../a%20b%26c%7Cd%3Cscript%3E%28e%29_f%23g%25h/seed0) 74.00" in files["md"]
    assert "\n# heading" not in files["md"] and "\n\\# heading" not in files["md"]
    assert r"a\|b &amp; c\_ \*d\* \`e\` \\f" in files["md"] and r"[m\](n)" in files["md"]
    assert r"\$h\$" in files["md"]
    check_latex(files["tex"])
    assert r"\$h\$ \%i \#j" in files["tex"] and "c\\_ *d*" in files["tex"]
    first, unfinished, *_, last = rows_of(files["csv"])
    assert Path(first["directory"]) == Path("..") / strange.relative_to(tmp_path)
    assert unfinished["state"] == f"{nasty} # heading" and last["variant"] == nasty


def test_the_same_runs_give_the_same_bytes(tmp_path):
    of = table("2")
    results = noisy(of, tmp_path, seeds=range(5), finished=0.9)
    backwards = {
        cell: dict(reversed(list(by.items()))) for cell, by in reversed(list(results.items()))
    }
    first = written(of, results, tmp_path, "one")
    assert written(of, backwards, tmp_path, "two") == first
    slower = {
        cell: {seed: {**each, "seconds": 9.0} for seed, each in by.items()}
        for cell, by in results.items()
    }
    other = written(of, slower, tmp_path, "three")
    for kind, text in first.items():
        changed = set(text.splitlines()) ^ set(other[kind].splitlines())
        assert bool(changed) == (kind in ("csv", "md", "html"))
        assert kind == "csv" or all(line.startswith("Time: ") for line in changed)
    assert [{**row, "seconds": ""} for row in rows_of(first["csv"])] == [
        {**row, "seconds": ""} for row in rows_of(other["csv"])
    ]


def test_a_full_table_is_quick(tmp_path):
    of = table("2")
    results = noisy(of, tmp_path, seeds=range(5))
    assert sum(map(len, results.values())) == 525
    began = time.perf_counter()
    written(of, results, tmp_path, wanted_seeds=range(5))
    assert time.perf_counter() - began < 10


def test_real_runs_have_what_a_report_needs(tiny_with_teacher, tmp_path):
    of = table("2", pairs=["resnet8-resnet8"], methods=["none", "kd", "ea_kd"])
    results = {}
    for cell in of.cells[1:]:
        directories = []
        for seed in (0, 1):
            directory = tmp_path / cell.method / str(seed)
            job = [f"distiller={cell.method}", f"seed={seed}", f"run_dir={directory}"]
            train(compose([*tiny_with_teacher, *job]))
            directories.append(directory)
        results[cell] = {each["seed"]: each for each in read_runs(directories)}
    files = written(of, results, tmp_path, wanted_seeds=(0, 1))
    assert "6 of 6 runs are finished" in files["md"]
    assert "2 epochs instead of the 240 of the authors' protocol in 6 runs" in files["md"]
    assert "| teacher |" in files["md"] and "ours − paper" not in files["md"]  # a pair of our own
    (teacher, *rest) = rows_of(files["csv"])
    assert float(teacher["last"]) == results[of.cells[2]][0]["teacher_top1"]
    assert [row["directory"] for row in rest[:2]] == ["../none/0", "../none/1"]


# Blocks in documents


def test_a_block_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("before\n<!-- begin t -->\nold\n<!-- end t -->\nafter é\n", encoding="utf-8")
    insert_block(path, "t", "\nnew | \\1 table\n\n")
    wanted = "before\n<!-- begin t -->\nnew | \\1 table\n<!-- end t -->\nafter é\n"
    assert path.read_text(encoding="utf-8") == wanted
    insert_block(path, "t", "new | \\1 table")
    assert path.read_text(encoding="utf-8") == wanted
    assert [each.name for each in tmp_path.iterdir()] == ["results.md"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- begin t -->",
        "<!-- end t -->\n<!-- begin t -->",
        "<!-- begin t -->\n<!-- begin t -->\n<!-- end t -->",
        "<!-- begin other -->\n<!-- end other -->",
    ],
)
def test_a_block_without_its_markers_is_refused(tmp_path, text):
    path = tmp_path / "results.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"no block 't', .*<!-- begin t --> and.*<!-- end t -->"):
        insert_block(path, "t", "new")
    assert path.read_text(encoding="utf-8") == text
