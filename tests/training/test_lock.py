"""One process at a time in a run directory; a dead owner is replaced, a living one never."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from eakd.composing import compose
from eakd.training import lock as lock_module
from eakd.training.lock import NAME, STALE, Locked, RunLock, read_owner
from eakd.training.run import run

HOLD = (
    "import sys, time; from pathlib import Path; from eakd.training.lock import RunLock;"
    "RunLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def foreign(directory, silent):
    """A lock whose owner ran on another machine and was last heard of ``silent`` seconds ago."""
    owner = {"host": "node7", "system": "elsewhere", "pid": 1, "started": "5", "token": "abc"}
    path = directory / NAME
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - silent,) * 2)


@contextmanager
def heartbeat(path):
    """Touch a lock as its owner on another machine would."""
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_living_owner_keeps_the_lock(tmp_path, other_process):
    with pytest.raises(Locked, match=f"process {other_process.pid} on "):
        RunLock(tmp_path).acquire()
    assert read_owner(tmp_path)["alive"]


def test_a_killed_owner_is_replaced_at_once(tmp_path, other_process):
    other_process.kill()
    other_process.wait()
    assert not read_owner(tmp_path)["alive"]
    with RunLock(tmp_path):
        assert read_owner(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_owner_is_not_dead(tmp_path, other_process):
    os.kill(other_process.pid, 19)  # SIGSTOP
    os.utime(tmp_path / NAME, (0, 0))
    with pytest.raises(Locked):
        RunLock(tmp_path).acquire()


def test_an_owner_elsewhere_is_dead_after_silence(tmp_path):
    foreign(tmp_path, silent=STALE / 2)
    with heartbeat(tmp_path / NAME), pytest.raises(Locked, match="process 1 on node7"):
        RunLock(tmp_path).acquire()
    foreign(tmp_path, silent=2 * STALE)
    with RunLock(tmp_path):
        assert read_owner(tmp_path)["host"] != "node7"


def test_a_moved_job_waits_for_its_former_lock_to_be_silent(tmp_path):
    foreign(tmp_path, silent=STALE - 2)
    assert read_owner(tmp_path)["alive"]
    with RunLock(tmp_path):
        assert read_owner(tmp_path)["host"] != "node7"


def test_a_damaged_lock_is_respected_while_young(tmp_path):
    (tmp_path / NAME).write_text('{"host": "no')
    with heartbeat(tmp_path / NAME), pytest.raises(Locked, match="an unknown host"):
        RunLock(tmp_path).acquire()
    os.utime(tmp_path / NAME, (0, 0))
    with RunLock(tmp_path) as lock:
        assert read_owner(tmp_path)["token"] == lock.token


def test_one_of_many_takes_over_a_dead_lock(tmp_path):
    for _ in range(20):
        foreign(tmp_path, silent=2 * STALE)

        def attempt(_):
            try:
                return RunLock(tmp_path).acquire()
            except Locked:
                return None

        with ThreadPoolExecutor(8) as pool:
            winners = [lock for lock in pool.map(attempt, range(8)) if lock]
        assert len(winners) == 1
        winners[0].release()


def test_a_claim_whose_creator_died_does_not_block_for_ever(tmp_path):
    foreign(tmp_path, silent=2 * STALE)
    claim = tmp_path / f".{NAME}.abc"
    claim.touch()
    with pytest.raises(Locked, match="taking over"):
        RunLock(tmp_path).acquire()
    os.utime(claim, (0, 0))
    with RunLock(tmp_path):
        assert not claim.exists()


def test_the_owner_gives_signs_of_life_and_notices_a_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT", 0.02)
    with RunLock(tmp_path) as lock:
        os.utime(lock.path, (0, 0))
        deadline = time.monotonic() + 30
        while lock.path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.check()
        foreign(tmp_path, silent=0)
        while not lock._lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Locked, match="lost the lock to process 1 on node7"):
            lock.check()
    assert read_owner(tmp_path)["host"] == "node7"  # another's lock is not removed


def test_a_run_takes_and_returns_the_lock(tiny_with_teacher, tmp_path):
    overrides = [*tiny_with_teacher, f"run_dir={tmp_path / 'run'}"]
    (tmp_path / "run").mkdir()
    foreign(tmp_path / "run", silent=0)
    with heartbeat(tmp_path / "run" / NAME), pytest.raises(Locked, match="node7"):
        run(compose(overrides))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]
    (tmp_path / "run" / NAME).unlink()
    summary = run(compose(overrides))
    assert not (tmp_path / "run" / NAME).exists()
    foreign(tmp_path / "run", silent=0)  # a finished run needs no lock to be read
    assert run(compose(overrides)) == summary


def foreign_ahead(directory, seconds):
    """A lock of another machine whose clock is ahead of ours."""
    foreign(directory, -seconds)


def test_a_date_in_the_future_is_watched_by_our_own_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "STALE", 0.6)
    foreign_ahead(tmp_path, 10_000)
    assert not read_owner(tmp_path)["alive"]  # a plan doesn't wait for it
    with RunLock(tmp_path):  # silent all the while: dead
        pass
    foreign_ahead(tmp_path, 10_000)
    path = tmp_path / NAME
    ended = threading.Event()

    def beat():
        ahead = time.time() + 10_000
        while not ended.wait(0.05):
            ahead += 0.05
            os.utime(path, (ahead, ahead))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Locked):  # a sign of life, whatever its clock says
            RunLock(tmp_path).acquire()
    finally:
        ended.set()
        thread.join()


def claim_of(directory, pid):
    """What a process leaves that is killed while it takes over the lock of `foreign`."""
    foreign(directory, STALE + 5)
    owner = {**lock_module._process(pid), "token": "dead"}
    (directory / f".{NAME}.abc").write_text(json.dumps(owner))


def test_a_kill_while_taking_over_costs_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    claim_of(tmp_path, process.pid)
    process.wait()
    with RunLock(tmp_path):
        assert read_owner(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_claim_is_respected(tmp_path):
    claim_of(tmp_path, os.getpid())
    with pytest.raises(Locked, match="just taking over"):
        RunLock(tmp_path).acquire()


def test_of_many_that_meet_a_dead_claim_one_gets_the_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    for _ in range(20):
        claim_of(tmp_path, process.pid)
        locks = [RunLock(tmp_path) for _ in range(8)]

        def take(lock):
            try:
                lock.acquire()
            except Locked:
                return None
            return lock

        with ThreadPoolExecutor(8) as pool:
            holders = [lock for lock in pool.map(take, locks) if lock is not None]
        assert len(holders) <= 1
        for holder in holders:
            holder.check()
            holder.release()
        for path in tmp_path.iterdir():
            path.unlink()
