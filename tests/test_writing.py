"""Files are written whole, with the permissions of any new file, and nothing is left behind."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from eakd.files import write_atomically, write_folder, write_json, write_text
from eakd.models.weights import save_weights

OLD = time.time() - 2 * 3600


def leftover(path: Path, age: float = 2 * 3600) -> Path:
    path.write_text("half of it")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750)],
)
@pytest.mark.parametrize(
    "save",
    [
        lambda path: write_text(path, "text"),
        lambda path: write_json(path, {"a": 1}),
        lambda path: save_weights(torch.nn.Linear(2, 2), path),
        lambda path: write_atomically(path, lambda temporary: torch.save({}, temporary)),
    ],
    ids=["text", "json", "safetensors", "torch"],
)
def test_the_umask_decides_the_permissions(save, umask, file_mode, folder_mode, tmp_path):
    path = tmp_path / "new" / "folder" / "a.safetensors"
    before = os.umask(umask)
    try:
        save(path)
        save(path)  # replaces it
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == file_mode
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == folder_mode
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_killed_writer_leaves_the_old_file_and_its_leftover_goes(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from eakd.files import write_atomically\n"
        "def write(path):\n    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = set(tmp_path.iterdir()) - {path}
    assert path.read_text() == "1\n" and left.read_text() == "half"
    write_json(path, 2)
    assert left.exists()  # too young to be certain of
    os.utime(left, (OLD, OLD))
    write_json(path, 3)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.json", "a", "with space [1]*.pt", ".hidden"])
def test_leftovers_of_the_same_file_only(name, dead, tmp_path):
    path = tmp_path / name
    gone = [f".{name}.{dead}.0123abcd.tmp", f".{name}.x_3kq9zz.tmp"]  # the latter of old versions
    kept = [
        f".{name}.{os.getpid()}.0123abcd.tmp",  # a living writer
        f".{name}.1.0123abcd.tmp",
        f".{name}.more.{dead}.0123abcd.tmp",  # of another file
        f".other.{dead}.0123abcd.tmp",
        f"{name}.{dead}.0123abcd.tmp",
        f".{name}.tmp",
        f".{name}.{dead}.0123abcd",
    ]
    for each in gone + kept:
        leftover(tmp_path / each)
    young = leftover(tmp_path / f".{name}.{dead}.4567abcd.tmp", age=60)
    ahead = leftover(tmp_path / f".{name}.{dead}.89abcdef.tmp", age=-7200)
    write_text(path, "text")
    assert {p.name for p in tmp_path.iterdir()} == {*kept, name, young.name, ahead.name}


def test_a_living_writer_keeps_its_file_however_long_it_takes(tmp_path):
    path = tmp_path / "a.txt"

    def slow(temporary):
        temporary.write_text("slow")
        os.utime(temporary, (OLD, OLD))
        write_text(path, "quick")
        assert path.read_text() == "quick"

    write_atomically(path, slow)
    assert path.read_text() == "slow" and len(list(tmp_path.iterdir())) == 1


def test_leftovers_that_cannot_be_removed_do_not_matter(dead, tmp_path):
    folder = tmp_path / f".a.txt.{dead}.0123abcd.tmp"
    folder.mkdir()
    os.utime(folder, (OLD, OLD))
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text" and folder.is_dir()


def test_many_writers_of_one_file(tmp_path):
    path, texts = tmp_path / "a.txt", [str(n) * 5000 for n in range(8)]
    threads = [
        threading.Thread(target=lambda t=t: [write_text(path, t) for _ in range(20)]) for t in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["folder", "file/a.txt"])
def test_a_place_that_is_taken_is_named_and_left_alone(place, tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("in the way")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError) as error:
        write_text(tmp_path / place, "text")
    assert str(tmp_path / place.split("/")[0]) in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_is_replaced_whole_or_stays(dead, tmp_path):
    path = tmp_path / "folder"

    def write(folder, name="new"):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / name).write_text("text")

    def half(folder):
        write(folder)
        raise RuntimeError("in the middle")

    left = tmp_path / f".folder.{dead}.0123abcd.tmp"
    left.mkdir()
    os.utime(left, (OLD, OLD))
    write_folder(path, lambda folder: write(folder, "old"))
    with pytest.raises(RuntimeError):
        write_folder(path, half)
    assert sorted(tmp_path.rglob("*")) == [path, path / "inner", path / "inner" / "old"]
    write_folder(path, write)
    assert sorted(tmp_path.rglob("*")) == [path, path / "inner", path / "inner" / "new"]
