"""Checkpoints come back as they were, or not at all."""

import subprocess
import sys

import pytest
import torch

from eakd.errors import UserError
from eakd.training.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint


def state(value):
    return {"epoch": value, "weights": {"w": torch.full((64, 64), float(value))}}


def test_round_trip_and_rotation(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path, state(epoch))
    assert load_checkpoint(tmp_path)["epoch"] == 3
    assert read_checkpoint(tmp_path / "previous.pt")["epoch"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def damage(path, how):
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no archive":
        path.write_bytes(b"not a checkpoint" * 100)
    else:  # one flipped bit inside the tensor data
        position = whole.index(torch.full((8,), 2.0).numpy().tobytes())
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])


@pytest.mark.parametrize("how", ["truncated", "empty", "no archive", "flipped bit"])
def test_damage_is_noticed_and_the_previous_checkpoint_is_used(tmp_path, how, caplog):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    damage(tmp_path / "last.pt", how)
    with pytest.raises(UserError, match=r"last\.pt"):
        read_checkpoint(tmp_path / "last.pt")
    restored = load_checkpoint(tmp_path)
    assert restored["epoch"] == 1
    torch.testing.assert_close(restored["weights"], state(1)["weights"], rtol=0, atol=0)
    assert "last.pt" in caplog.text and "continuing from" in caplog.text


def test_only_damaged_checkpoints_is_an_error(tmp_path):
    save_checkpoint(tmp_path, state(2))
    damage(tmp_path / "last.pt", "truncated")
    with pytest.raises(UserError, match="resume=false"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1))
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path, {"unpicklable": lambda: None})
    assert load_checkpoint(tmp_path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_nothing_is_unpickled_that_is_not_plain_data(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"epoch": 1, "evil": Evil()}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="unreadable checkpoint"):
        read_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "save",
    [
        "checkpoint.save_checkpoint(p, {'a': torch.zeros(99999)})",
        "weights.save_weights(torch.nn.Linear(300, 300), p / 'a.safetensors')",
        "files.write_json(p / 'a.json', ['a' * 999999])",
    ],
    ids=["torch", "safetensors", "json"],
)
def test_a_refused_write_names_the_file_and_the_reason(tmp_path, save):
    """A limit on file sizes refuses like a full disk does."""
    code = (
        "import errno, resource, sys, torch; from pathlib import Path; p = Path(sys.argv[1])\n"
        "from eakd import files; from eakd.models import weights\n"
        "from eakd.training import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try: {save}\n"
        "except OSError as error: print(error.errno == errno.EFBIG, error.filename)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.stdout.startswith(f"True {tmp_path}/"), result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == []
