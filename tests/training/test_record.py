"""A run directory belongs to one config."""

import json

import pytest

from eakd.errors import UserError
from eakd.training import RunRecord

CONFIG = {"recipe": {"epochs": 3, "lr": 0.1}, "seed": 0}


def test_another_config_is_refused_and_nothing_changes(tmp_path):
    RunRecord(tmp_path, CONFIG).begin()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = {"recipe": {"epochs": 4, "lr": 0.1}, "seed": 0}
    with pytest.raises(UserError, match=r"recipe\.epochs \(found 3, wanted 4\)"):
        RunRecord(tmp_path, other)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_results_without_a_readable_config_are_refused(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    record.append_metrics({"epoch": 1})
    (tmp_path / "config.json").write_text('{"recipe": {"ep')
    with pytest.raises(UserError, match=r"holds metrics\.jsonl but no readable config\.json"):
        RunRecord(tmp_path, CONFIG)


def test_opening_writes_nothing(tmp_path):
    RunRecord(tmp_path / "new", CONFIG)
    assert not (tmp_path / "new").exists()


def test_metrics_survive_a_cut_line_and_restart_where_training_does(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    for epoch in (1, 2, 3):
        record.append_metrics({"epoch": epoch, "test_top1": 1 / 3 * epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "test_')
    assert [line["epoch"] for line in record.metrics()] == [1, 2, 3]
    record.keep_metrics(2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads(lines[1])["test_top1"] == 1 / 3 * 2  # full precision


def test_fresh_start_removes_the_old_results(tmp_path):
    record = RunRecord(tmp_path, CONFIG)
    record.begin()
    record.append_metrics({"epoch": 1})
    record.write_summary({"top1_last": 1.0})
    record.close()
    record.begin(fresh=True)
    assert record.summary is None and record.metrics() == []
