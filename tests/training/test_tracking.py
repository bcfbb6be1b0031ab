"""Weights & Biases, really offline, and never in the way."""

import json
import logging
import time
from pathlib import Path

import pytest

from eakd.analysis.watching import pictures as pictures_of
from eakd.composing import compose
from eakd.errors import UserError
from eakd.training import WandbTracking
from eakd.training.run import run
from eakd.training.tracking import has_credentials


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_credentials(no_credentials, monkeypatch, tmp_path):
    assert not has_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert has_credentials()
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {'x' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_credentials()


def test_offline_without_credentials_and_two_runs_do_not_merge(
    no_credentials, tiny, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    for seed in (0, 1):
        job = [
            "distiller=none",
            "tracking=wandb",
            f"seed={seed}",
            f"run_dir={tmp_path / str(seed)}",
        ]
        run(compose([*tiny, *job]))
        (folder,) = (tmp_path / str(seed) / "wandb").glob("offline-run-*")
        identifier = (tmp_path / str(seed) / "wandb_id").read_text()
        assert folder.name.endswith(identifier)
        assert f"wandb sync {folder}" in caplog.text
        assert list(folder.glob("*.wandb"))
    assert (tmp_path / "0" / "wandb_id").read_text() != (tmp_path / "1" / "wandb_id").read_text()


def test_the_group_is_data_and_pair_or_what_was_given(no_credentials, tiny, tmp_path):
    for place, given in (("a", []), ("b", ["tracking.group='table 2: none, vgg13-vgg8'"])):
        job = ["distiller=none", "tracking=wandb", f"run_dir={tmp_path / place}", *given]
        run(compose([*tiny, *job]))
        (log,) = (tmp_path / place).glob("wandb/offline-run-*/*.wandb")
        group, other = b"digits resnet8", b"table 2: none, vgg13-vgg8"
        if given:
            group, other = other, group
        deadline = time.monotonic() + 60
        while group not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)  # W&B's own process writes the file a moment later
        assert group in log.read_bytes() and other not in log.read_bytes()


def test_disabled_writes_nothing(no_credentials, tiny, tmp_path):
    overrides = ["distiller=none", "tracking=wandb", "tracking.mode=disabled"]
    run(compose([*tiny, *overrides, f"run_dir={tmp_path}"]))
    assert not (tmp_path / "wandb").exists()


def test_a_failing_tracker_does_not_end_training(no_credentials, tiny, tmp_path, caplog):
    (tmp_path / "wandb").parent.mkdir(exist_ok=True)
    (tmp_path / "wandb_id").mkdir()  # W&B cannot read its id here
    overrides = ["distiller=none", "tracking=wandb", f"run_dir={tmp_path}"]
    summary = run(compose([*tiny, *overrides]))
    assert summary["top1_last"] > 0
    assert "training goes on" in caplog.text
    assert json.loads((Path(tmp_path) / "status.json").read_text())["state"] == "finished"


def test_wrong_mode_is_named():
    with pytest.raises(UserError, match="mode: found 'cloud', allowed is one of auto"):
        WandbTracking(mode="cloud")


def test_a_run_ends_with_its_picture_and_epochs_have_dynamics(
    no_credentials, tiny_with_teacher, tmp_path
):
    shown = []

    def pictures(directory):
        found = pictures_of(directory)
        shown.append(found["figure"])
        return found

    job = ["tracking=wandb", f"run_dir={tmp_path / 'a'}", "distiller=ea_kd"]
    run(compose([*tiny_with_teacher, *job]), pictures)
    assert shown[0].startswith(b"\x89PNG")
    assert list((tmp_path / "a").glob("wandb/offline-run-*/files/media/images/figure_*.png"))
    (log,) = (tmp_path / "a").glob("wandb/offline-run-*/*.wandb")
    for name in ("loss_low", "loss_high", "student_entropy_high_std"):
        assert f"dynamics/{name}".encode() in log.read_bytes()


def test_a_picture_that_cannot_be_drawn_stops_nothing(no_credentials, tiny, tmp_path, caplog):
    def pictures(directory):
        raise ValueError("no ink")

    job = ["tracking=wandb", f"run_dir={tmp_path / 'a'}", "distiller=none", "seed=3"]
    assert run(compose([*tiny, *job]), pictures)["epochs"] == 2
    assert "no pictures for W&B (no ink)" in caplog.text
