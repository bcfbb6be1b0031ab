"""Lost, damaged and foreign files in a run's directory: repaired, or named; never believed."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file

from eakd.composing import compose
from eakd.errors import UserError
from eakd.training import state as state_module
from eakd.training.reading import checksum, read_json, read_metrics, read_object, read_summary
from eakd.training.record import RunRecord
from eakd.training.run import run

TIMES = ("train_seconds", "samples_per_second")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def job(tiny_with_teacher):
    return [*tiny_with_teacher, "distiller=ea_kd", "recipe.epochs=6", "threads=1"]


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(compose([*job, f"run_dir={folder}"]))
    return folder


def killed(job, folder, monkeypatch, epoch=4):
    """Leave what a kill leaves right after the checkpoint of an epoch."""
    save = state_module.save_checkpoint

    def save_then_die(directory, state):
        save(directory, state)
        if state["epoch"] == epoch:
            raise Killed

    monkeypatch.setattr(state_module, "save_checkpoint", save_then_die)
    with pytest.raises(Killed):
        run(compose([*job, f"run_dir={folder}"]))
    monkeypatch.setattr(state_module, "save_checkpoint", save)


def lines(folder, name):
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def damage_lines(path, kind):
    text = path.read_text()
    rows = text.splitlines(keepends=True)
    damaged = {
        "missing line": lambda: "".join(rows[:1] + rows[2:]),
        "first line missing": lambda: "".join(rows[1:]),
        "double line": lambda: "".join([*rows[:2], rows[1], *rows[2:]]),
        "swapped lines": lambda: "".join([rows[1], rows[0], *rows[2:]]),
        "cut in the middle": lambda: text[: len(rows[0]) + len(rows[1]) // 2],
        "cut line within": lambda: rows[0] + rows[1][:40] + "\n" + "".join(rows[2:]),
        "another digit": lambda: text.replace('"epoch": 2, "', '"epoch": 2, "x": 1, "', 1),
        "flipped digit": lambda: text.replace("0.", "1.", 1),
        "NaN": lambda: text.replace(rows[1], '{"epoch": 2, "train_loss": NaN}\n'),
        "not an object": lambda: text.replace(rows[1], "[2]\n"),
        "a text for a number": lambda: text.replace('"epoch": 2', '"epoch": "2"', 1),
        "empty": lambda: "",
        "zeros": lambda: "\0" * len(text),
    }
    path.write_text(damaged[kind]())


KINDS = [
    *("missing line", "first line missing", "double line", "swapped lines", "cut in the middle"),
    *("cut line within", "another digit", "flipped digit", "NaN", "not an object"),
    *("a text for a number", "empty", "zeros"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.jsonl", "dynamics.jsonl"])
@pytest.mark.parametrize("kind", [*KINDS, "gone", "not UTF-8"])
def test_lines_are_repaired_from_the_checkpoint(
    name, kind, job, whole, tmp_path, monkeypatch, caplog
):
    killed(job, tmp_path, monkeypatch)
    path = tmp_path / name
    if kind == "gone":
        path.unlink()
    elif kind == "not UTF-8":
        path.write_bytes(path.read_bytes()[:50] + b"\xff\xfe" + path.read_bytes()[52:])
    else:
        damage_lines(path, kind)
    summary = run(compose([*job, f"run_dir={tmp_path}"]))
    assert f"{path}: lost or damaged lines are written again" in caplog.text
    for each in ("metrics.jsonl", "dynamics.jsonl"):
        assert lines(tmp_path, each) == lines(whole, each)
    assert summary["top1_last"] == read_summary(whole)["top1_last"]


@pytest.mark.slow
def test_what_a_kill_leaves_is_no_damage(job, tmp_path, monkeypatch, caplog):
    killed(job, tmp_path, monkeypatch)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "train_loss": 1.0}\n{"epoch": 6, "tr')
    run(compose([*job, f"run_dir={tmp_path}"]))
    assert "damaged" not in caplog.text
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_readers_name_the_damaged_file_of_lines(kind, whole, tmp_path):
    if kind in ("another digit", "flipped digit", "empty"):
        pytest.skip("sound lines, or none at all: only their run can tell")
    (tmp_path / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())
    damage_lines(tmp_path / "metrics.jsonl", kind)
    if kind in ("cut in the middle", "zeros"):  # as if it were being written
        assert [line["epoch"] for line in read_metrics(tmp_path)] == [1][: kind != "zeros"]
        return
    with pytest.raises(UserError, match=r"metrics\.jsonl: found"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "dynamics.jsonl"])
@pytest.mark.parametrize("kind", [*KINDS, "gone"])
def test_lines_of_a_finished_run_are_verified_and_written_again(kind, name, job, whole, tmp_path):
    for path in whole.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / name
    sound = path.read_text()
    path.unlink() if kind == "gone" else damage_lines(path, kind)
    if kind != "gone":
        with pytest.raises(UserError, match=f"{name}: found"):
            read_metrics(tmp_path, name)
    run(compose([*job, f"run_dir={tmp_path}"]))
    assert path.read_text() == sound
    damage_lines(path, kind if kind != "gone" else "empty")
    (tmp_path / "last.pt").unlink()
    with pytest.raises(UserError, match=f"{name}: found .*resume=false"):
        run(compose([*job, f"run_dir={tmp_path}"]))


# --- summaries ---


def test_every_flipped_bit_of_a_summary_is_noticed(whole, tmp_path):
    content = (whole / "summary.json").read_bytes()
    original = json.loads(content)
    rng, noticed = random.Random(0), 0
    for _ in range(400):
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= bit
        (tmp_path / "summary.json").write_bytes(damaged)
        try:
            found = read_summary(tmp_path)
        except UserError as error:
            assert str(tmp_path / "summary.json") in str(error) and "\n" not in str(error)
            noticed += 1
        else:
            assert found == original, (place, bit)  # white space
    assert noticed > 250


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"",
        b"{",
        b'{"top1_last": NaN}',
        b'{"top1_last": Infinity}',
        b'{"top1_last": "high"}',
        b'{"top1_best": true}',
        b'{"top1_last": null}',
        b'{"seed": 1.5}',
        b'{"epochs": "3"}',
        b'{"top1_last": 97.0, "checksum": "0123456789abcdef"}',
        b'\xff\xfe{"top1_last": 9}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_summary_is_named_and_the_run_is_not_finished(content, job, tmp_path):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match=r"summary\.json: found"):
        read_summary(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert RunRecord(tmp_path, {}).summary is None
    assert read_json(tmp_path / "nothing.json") is None


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    for name in ("summary.json", "metrics.jsonl", "config.json"):
        (tmp_path / name / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"summary\.json: found no readable file"):
        read_summary(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"metrics\.jsonl: found no readable file"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"config\.json: found no readable file"):
        RunRecord(tmp_path / "config.json", {})
    with pytest.raises(UserError, match="no readable file"):
        read_object(tmp_path / "config.json" / "config.json")


@pytest.mark.slow
def test_a_damaged_summary_is_made_again_from_the_checkpoint(job, tmp_path, caplog):
    first = run(compose([*job, f"run_dir={tmp_path}"]))
    before = load_file(tmp_path / "last.safetensors")
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace('"top1_last": ', '"top1_last": 1'))
    again = run(compose([*job, f"run_dir={tmp_path}"]))
    assert "do not fit its checksum" in caplog.text
    assert again["top1_last"] == first["top1_last"] and read_summary(tmp_path) == again
    after = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_summaries_of_version_0_1_are_read(tmp_path):
    (tmp_path / "summary.json").write_text('{"seed": 0, "epochs": 3, "top1_last": 50.5}')
    assert read_summary(tmp_path)["top1_last"] == 50.5


def test_the_checksum_does_not_depend_on_the_order_of_keys():
    assert checksum({"a": 1, "b": [1.5]}) == checksum({"b": [1.5], "a": 1, "checksum": "x"})


# --- states that a kill leaves ---


def test_a_kill_between_summary_and_status_heals(job, whole, tmp_path):
    for path in whole.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "status.json").write_text('{"state": "running", "time": "then"}')
    run(compose([*job, f"run_dir={tmp_path}"]))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_what_killed_processes_left_is_removed(job, tmp_path):
    (tmp_path / "snapshots").mkdir()
    left = [
        tmp_path / ".last.pt.k2j4.tmp",
        tmp_path / "snapshots" / ".epoch003.safetensors.x1.tmp",
        tmp_path / ".lock.json.abcdef",
    ]
    for path in left:
        path.write_text("half of something")
    run(compose([*job, f"run_dir={tmp_path}"]))
    assert not any(path.exists() for path in left)
    assert not list(tmp_path.rglob(".*.tmp"))


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_opening_a_finished_run_writes_nothing(job, whole):
    stamps = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert run(compose([*job, f"run_dir={whole}"]))["epochs"] == 6
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == stamps
