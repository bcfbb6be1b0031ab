"""Trackers that meet the world: no server, a silent server, W&B's own variables, TensorBoard."""

import contextlib
import json
import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import wandb

from eakd.composing import compose
from eakd.errors import UserError
from eakd.training import TensorBoardTracking
from eakd.training.run import run
from eakd.training.tracking import run_id

WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A key that looks like one, and a server that is not there."""
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads the variables once in a process
    yield monkeypatch
    wandb.teardown()


@pytest.fixture
def silent_server():
    """The address of a server that takes every connection and never answers."""
    taken = []

    def serve():
        with contextlib.suppress(OSError):  # closed
            while True:
                taken.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in taken:
            connection.close()


def started(tiny, place, *words):
    """The folder that W&B's files of a run are in."""
    job = ["distiller=none", "recipe.epochs=1", "recipe.evaluate_every=0", "tracking=wandb"]
    summary = run(compose([*tiny, *job, f"run_dir='{place}'", *words]))
    assert summary["epochs"] == 1
    return list((place / "wandb").glob("*run-*"))


def test_a_server_that_is_not_there(online, tiny, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (folder,) = started(tiny, tmp_path / "a run")  # with a space, which a shell would split
    assert folder.name.startswith("offline-run-") and list(folder.glob("*.wandb"))
    assert "cannot be reached (http://127.0.0.1:9: [Errno 111]" in caplog.text
    # The line as it is pasted finds the run; all that it lacks is a key.
    (command,) = re.findall(r"to upload this run: (wandb sync .*)$", caplog.text, re.M)
    words = shlex.split(command)
    assert words == ["wandb", "sync", str(folder)]
    online.delenv("WANDB_API_KEY")
    pasted = [WANDB, *words[1:]]
    done = subprocess.run(pasted, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = " ".join((done.stdout + done.stderr).split())
    assert "Syncing 1 run(s)" in said and folder.name in said and "No API key" in said


def test_a_server_that_never_answers(online, silent_server, tiny, tmp_path, caplog):
    online.setenv("WANDB_BASE_URL", silent_server)
    (folder,) = started(tiny, tmp_path / "run", "tracking.timeout=1")
    assert folder.name.startswith("offline-run-")
    assert "cannot be reached" in caplog.text and "timed out" in caplog.text


def test_a_server_that_refuses(online, tiny, tmp_path, caplog):
    """Something that is no W&B answers: its own client gives up, and the run is offline."""
    script = "import http.server as h; s = h.ThreadingHTTPServer(('127.0.0.1', 0), "
    script += "h.BaseHTTPRequestHandler); print(s.server_port, flush=True); s.serve_forever()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        online.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{int(server.stdout.readline())}")
        folders = started(tiny, tmp_path / "run", "tracking.timeout=3")
        server.kill()
    (offline,) = (folder for folder in folders if folder.name.startswith("offline-run-"))
    assert offline.name.endswith((tmp_path / "run" / "wandb_id").read_text())
    assert list(offline.glob("*.wandb")) and "cannot be used online" in caplog.text


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_variables_of_wandb_count(mode, online, tiny, tmp_path):
    online.setenv("WANDB_MODE", mode)
    online.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    assert started(tiny, tmp_path / "run", "tracking.mode=online") == []
    found = list((tmp_path / "elsewhere").glob("wandb/offline-run-*/*.wandb"))
    assert len(found) == (mode == "offline")


def test_a_run_of_a_sweep_has_the_name_that_its_agent_waits_for(online, tmp_path):
    mine = run_id(tmp_path)
    assert run_id(tmp_path) == mine
    online.setenv("WANDB_RUN_ID", "abcd1234")
    assert run_id(tmp_path) == mine  # no sweep
    online.setenv("WANDB_SWEEP_ID", "efgh5678")
    assert run_id(tmp_path) == "abcd1234" == (tmp_path / "wandb_id").read_text()


def test_tensorboard_continues_without_doubled_points(tiny_with_teacher, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = [*tiny_with_teacher, "distiller=ea_kd", "recipe.epochs=3", f"run_dir={tmp_path}"]
    config = compose([*words, "tracking=tensorboard", "record.snapshots=[]"])
    log = TensorBoardTracking._log

    def killed(self, metrics):
        log(self, metrics)
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt  # as late as can be: this epoch's point is in the file

    monkeypatch.setattr(TensorBoardTracking, "_log", killed)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    # The checkpoint of the second epoch is lost, so that it is trained, and told, once more.
    os.replace(tmp_path / "previous.pt", tmp_path / "last.pt")
    monkeypatch.undo()
    pictures = {"figure": Path(__file__).parents[2].joinpath("docs/quickstart.png").read_bytes()}
    run(config, lambda directory: pictures)

    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = events.EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0})
    found.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = set(found.Tags()["scalars"])
    assert set(lines[0]) - {"epoch"} <= names and "dynamics/loss_high" in names
    for name in set(lines[0]) - {"epoch"}:
        points = [(point.step, point.value) for point in found.Scalars(name)]
        assert points == [(each["epoch"], pytest.approx(each[name], rel=1e-6)) for each in lines]
    assert [image.step for image in found.Images("figure")] == [3]


def test_tensorboard_without_its_package_is_one_line_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = compose([*tiny, "distiller=none", "tracking=tensorboard", f"run_dir={tmp_path}/new"])
    with pytest.raises(UserError) as refused:
        run(config)
    assert str(refused.value) == (
        "tracking.tensorboard: found no such package: pip install 'eakd[tensorboard]'"
    )
    assert not (tmp_path / "new").exists()
