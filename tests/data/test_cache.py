"""The cache gives what was decoded, survives damage and two builders at once."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from synthetic import class_files, write_folder, write_zip

from eakd.data import image_folder
from eakd.data.cache import Labels, cached, default_cache_dir
from eakd.errors import UserError


@pytest.fixture
def root(tmp_path):
    return write_zip(tmp_path / "set.zip", class_files())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def entry_of(cache):
    (entry,) = cache.iterdir()
    return entry


def assert_same(a, b):
    assert (a.name, a.classes, a.fingerprint) == (b.name, b.classes, b.fingerprint)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_second_start_decodes_nothing(root, cache, monkeypatch):
    first = image_folder(root, cache_dir=cache)
    monkeypatch.setattr("eakd.data.folders.class_folders", None)
    second = image_folder(root, cache_dir=cache)
    assert_same(first, second)
    assert isinstance(second.train_images, np.memmap) and second.train_images.flags.writeable
    second.train_images[:] = 0  # stays in this process
    assert_same(image_folder(root, cache_dir=cache), first)


def test_changed_source_is_decoded_again(tmp_path, cache):
    root = write_folder(tmp_path / "set", class_files(train=3))
    first = image_folder(root, cache_dir=cache)
    write_folder(root, class_files(train=4))
    second = image_folder(root, cache_dir=cache)
    assert len(second.train_labels) == 8 and second.fingerprint != first.fingerprint


def replace(path, content):
    """As a new file: what another process has mapped stays as it was."""
    path.unlink()
    path.write_bytes(content)


def truncate(path):
    replace(path, path.read_bytes()[:-100])


def overwrite(path):
    replace(path, bytes(path.stat().st_size))


DAMAGES = {
    "truncated images": lambda entry: truncate(entry / "train_images.npy"),
    "truncated labels": lambda entry: truncate(entry / "test_labels.npy"),
    "zeroed images": lambda entry: overwrite(entry / "test_images.npy"),
    "zeroed labels": lambda entry: overwrite(entry / "train_labels.npy"),
    "no images": lambda entry: (entry / "train_images.npy").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "bad json": lambda entry: truncate(entry / "meta.json"),
    "other json": lambda entry: (entry / "meta.json").write_text("[]"),
    "no fingerprint": lambda entry: rewrite(entry, "fingerprint"),
    "no checks": lambda entry: rewrite(entry, "checks"),
}


def rewrite(entry, key):
    meta = json.loads((entry / "meta.json").read_text())
    del meta[key]
    (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_repaired_with_one_line(root, cache, damage, caplog):
    first = image_folder(root, cache_dir=cache)
    damage(entry_of(cache))
    with caplog.at_level(logging.INFO):
        second = image_folder(root, cache_dir=cache)
    (record,) = caplog.records
    assert "damaged" in record.message and str(entry_of(cache)) in record.message
    assert "\n" not in record.message
    assert_same(first, second)
    caplog.clear()
    assert_same(first, image_folder(root, cache_dir=cache))
    assert not caplog.records
    assert [path.name for path in cache.iterdir()] == [entry_of(cache).name]


def test_a_failing_builder_leaves_the_cache_alone(cache):
    def build(allocate):
        allocate("train_images", (1, 2, 2, 3))[:] = 1
        raise UserError("root: found it broken")

    with pytest.raises(UserError, match="root: found it broken"):
        cached("set", "key", cache, build)
    assert not list(cache.iterdir())


def test_leftovers_of_killed_builders_are_removed(root, cache):
    image_folder(root, cache_dir=cache)
    entry = entry_of(cache)
    old, new = (cache / f".{entry.name}.{word}.tmp" for word in ("old", "new"))
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    truncate(entry / "meta.json")
    image_folder(root, cache_dir=cache)
    assert not old.exists() and new.exists()  # the new one may belong to a running process


def test_two_processes_build_at_once(root, cache, tmp_path):
    """Both start decoding before either finishes, and both get the whole set."""
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import eakd.data.folders as folders
        root, cache, mine, other = map(Path, sys.argv[1:])
        plain = folders.read
        def read(*args, **kwargs):
            labels = plain(*args, **kwargs)
            mine.touch()
            while not other.exists():
                time.sleep(0.01)
            return labels
        folders.read = read
        print(folders.image_folder(root, cache_dir=cache).train_images[:].sum())
        print(folders.image_folder(root, cache_dir=cache).fingerprint)
    """)
    marks = [str(tmp_path / name) for name in "ab"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(root), str(cache), *order],
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in (marks, marks[::-1])
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    data = image_folder(root, cache_dir=cache)
    assert outputs == [f"{data.train_images.sum()}\n{data.fingerprint}\n"] * 2
    assert [path.name for path in cache.iterdir()] == [entry_of(cache).name]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("EAKD_CACHE", str(tmp_path / "a"))
    assert default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("EAKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "eakd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(default_cache_dir()) == "/home/someone/.cache/eakd"


def test_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache_dir: found .*file.*EAKD_CACHE") as caught:
        image_folder(root, cache_dir=tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)


def test_keys_and_names_separate_entries(cache):
    def build(value):
        def fill(allocate):
            for name in ("train_images", "test_images"):
                allocate(name, (1, 2, 2, 3))[:] = value
            return Labels(("a",), np.zeros(1), np.zeros(1))

        return fill

    values = [
        cached(name, key, cache, build(value)).train_images.max()
        for value, (name, key) in enumerate((("a", "1"), ("a", "2"), ("b", "1"), ("a", "1")))
    ]
    assert values == [0, 1, 2, 0]
