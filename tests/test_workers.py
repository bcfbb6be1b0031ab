"""Processes: helpers, and the lock of a sweep's workers, which lies where everybody may write."""

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from eakd.errors import UserError
from eakd.workers import claim, in_processes, usable_cores

pytest.importorskip("fcntl")
NAME = f"eakd-workers-{os.getuid()}.lock"
ELSEWHERE = "precious"


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A temporary folder of all users, of this test's own."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (tmp_path / ELSEWHERE).write_text("mine")
    (tmp_path / ELSEWHERE).chmod(0o644)
    claim.cache_clear()
    yield folder
    claim.cache_clear()
    assert (tmp_path / ELSEWHERE).read_text() == "mine"
    assert stat.S_IMODE((tmp_path / ELSEWHERE).stat().st_mode) == 0o644


def foreign(path):
    path.touch()
    os.chown(path, os.getuid() + 1, -1)


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_the_lock_is_the_users_own(shared, umask, caplog):
    before = os.umask(umask)
    try:
        assert claim(12345, 2) == 0
    finally:
        os.umask(before)
    (lock,) = shared.iterdir()
    assert lock.name == NAME and stat.S_IMODE(lock.stat().st_mode) == 0o600 and not caplog.text


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o777])
def test_a_lock_that_others_could_open_is_closed_to_them(shared, mode, caplog):
    (shared / NAME).touch()
    (shared / NAME).chmod(mode)
    assert claim(12345, 2) == 0 and not caplog.text
    assert stat.S_IMODE((shared / NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "place",
    [
        lambda path: path.symlink_to(path.parent.parent / ELSEWHERE),
        lambda path: path.symlink_to(path.parent.parent / "not there"),
        lambda path: path.symlink_to("/dev/null"),
        lambda path: os.link(path.parent.parent / ELSEWHERE, path),
        lambda path: path.mkdir(),
        os.mkfifo,
        pytest.param(
            foreign, marks=pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
        ),
    ],
    ids=["link", "dangling link", "device", "hard link", "folder", "pipe", "somebody else's"],
)
def test_whatever_else_lies_there_is_left_alone(shared, place, caplog):
    place(shared / NAME)
    before = (shared / NAME).lstat()
    assert claim(12345, 3) in range(3)
    (record,) = caplog.records  # one line
    text = record.getMessage()
    assert str(shared / NAME) in text and "TMPDIR" in text and "\n" not in text
    after = (shared / NAME).lstat()
    assert (after.st_mode, after.st_uid, after.st_size) == (
        before.st_mode,
        before.st_uid,
        before.st_size,
    )
    assert sorted(p.name for p in shared.parent.iterdir()) == [ELSEWHERE, "shared"]


def test_no_temporary_folder_at_all(shared, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(shared / "gone"))
    assert claim(12345, 2) in range(2)
    assert len(caplog.records) == 1


def test_two_living_workers_have_two_slots(shared):
    code = "import sys; from eakd.workers import claim; print(claim(12345, 2), flush=True); input()"
    environment = {**os.environ, "TMPDIR": str(shared)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert {int(worker.stdout.readline()) for worker in workers} == {0, 1}
    for worker in workers:
        worker.communicate("\n")


def of_three(number):
    return os.getpid(), 3 // number


def gone(_):
    os._exit(9)


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core")
def test_helpers_answer_in_order_and_from_other_processes():
    answers = in_processes(of_three, [1, 3, 2, 3])
    assert [answer for _, answer in answers] == [3, 1, 1, 1]
    assert os.getpid() not in {process for process, _ in answers}
    assert {process for process, _ in in_processes(of_three, [1, 2], most=1)} == {os.getpid()}
    assert {process for process, _ in in_processes(of_three, [1, 2], chunk=2)} == {os.getpid()}
    assert in_processes(of_three, []) == []


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core")
def test_what_goes_wrong_in_a_helper_is_told_here():
    with pytest.raises(ZeroDivisionError):
        in_processes(of_three, [1, 0])
    with pytest.raises(UserError, match="a helper process was killed, perhaps for want of memory"):
        in_processes(gone, [1, 2])
