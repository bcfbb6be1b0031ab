"""The cache gives what was decoded, survives damage and two builders at once."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from synthetic import class_files, without_privileges, write_folder, write_zip

from eakd.data import image_folder
from eakd.data.cache import BLOCK, Labels, cached, default_cache_dir
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


def swap(path, block):
    content = bytearray(path.read_bytes())
    content[-block:], content[-2 * block : -block] = content[-2 * block : -block], content[-block:]
    replace(path, content)


def rewrite(entry, **changes):
    """Consistent JSON with other values."""
    meta = json.loads((entry / "meta.json").read_text())
    meta["content"].update(changes)
    replace(entry / "meta.json", json.dumps(meta).encode())


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "truncated images": lambda entry: truncate(entry / "train_images.npy"),
    "truncated labels": lambda entry: truncate(entry / "test_labels.npy"),
    "longer images": lambda entry: replace(
        entry / "test_images.npy", (entry / "test_images.npy").read_bytes() + b"x"
    ),
    "zeroed images": lambda entry: overwrite(entry / "test_images.npy"),
    "zeroed labels": lambda entry: overwrite(entry / "train_labels.npy"),
    "no images": lambda entry: (entry / "train_images.npy").unlink(),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
    "bad json": lambda entry: truncate(entry / "meta.json"),
    "deep json": lambda entry: (entry / "meta.json").write_text("[" * 100_000),
    "other json": lambda entry: (entry / "meta.json").write_text("[]"),
    "no text": lambda entry: (entry / "meta.json").write_bytes(b"\xff" * 99),
    "other fingerprint": lambda entry: rewrite(entry, fingerprint="0" * 64),
    "other classes": lambda entry: rewrite(entry, classes=["dog", "cat"]),
    "no checksums": lambda entry: rewrite(entry, checksums={}),
    "swapped images": lambda entry: swap(entry / "train_images.npy", 32 * 32 * 3),
    "swapped rows": lambda entry: swap(entry / "test_images.npy", 96),
    "swapped labels": lambda entry: [
        (entry / "train_labels.npy").rename(entry / "x"),
        (entry / "test_labels.npy").rename(entry / "train_labels.npy"),
        (entry / "x").rename(entry / "test_labels.npy"),
    ],
    "pipe for images": lambda entry: pipe(entry / "train_images.npy"),
    "pipe for meta": lambda entry: pipe(entry / "meta.json"),
    "a file for the folder": lambda entry: [shutil.rmtree(entry), entry.write_text("x")],
    "a link to nowhere": lambda entry: [shutil.rmtree(entry), entry.symlink_to("nowhere")],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_repaired_with_one_line(root, cache, damage, caplog):
    first = image_folder(root, cache_dir=cache)
    damage(entry_of(cache))
    with caplog.at_level(logging.WARNING):
        second = image_folder(root, cache_dir=cache)
    (record,) = caplog.records
    assert "damaged" in record.message and str(entry_of(cache)) in record.message
    assert "\n" not in record.message
    assert_same(first, second)
    caplog.clear()
    assert_same(first, image_folder(root, cache_dir=cache))
    assert not caplog.records
    assert [path.name for path in cache.iterdir()] == [entry_of(cache).name]


@pytest.mark.parametrize("file", ["train_images", "train_labels", "test_images", "test_labels"])
def test_a_flipped_bit_anywhere_is_found(root, cache, file, caplog):
    first = image_folder(root, cache_dir=cache)
    path = entry_of(cache) / f"{file}.npy"
    plain = path.read_bytes()
    places = np.random.default_rng(0).integers(0, len(plain) * 8, 40)
    for place in (0, len(plain) * 8 - 1, *map(int, places)):
        content = bytearray(plain)
        content[place // 8] ^= 1 << place % 8
        replace(path, content)
        caplog.clear()
        assert_same(first, image_folder(root, cache_dir=cache))
        assert f"{file}.npy is not what was written" in caplog.text, place
        assert path.read_bytes() == plain


def test_a_large_file_is_checked_in_all_its_blocks(tmp_path, caplog):
    """Also where two whole blocks of the checksum have changed places."""

    def build(allocate):
        images = allocate("train_images", (3 * BLOCK // 3072 + 5, 32, 32, 3))
        images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
        allocate("test_images", (1, 32, 32, 3))[:] = 0
        return Labels(("a",), np.zeros(len(images)), np.zeros(1))

    first = cached("set", "key", tmp_path, build)
    path = entry_of(tmp_path) / "train_images.npy"
    plain = path.read_bytes()
    swapped = plain[BLOCK : 2 * BLOCK] + plain[:BLOCK] + plain[2 * BLOCK :]
    flipped = bytearray(plain)
    flipped[-1000] ^= 4
    for content in (swapped, flipped, plain[:-BLOCK], plain + plain[:BLOCK]):
        replace(path, content)
        caplog.clear()
        assert_same(first, cached("set", "key", tmp_path, build))
        assert "damaged" in caplog.text


def test_the_entry_of_another_set_is_refused(tmp_path, cache, caplog):
    """Whole and sound, but under the wrong name."""
    roots = [write_zip(tmp_path / f"{n}.zip", class_files(("cat", n))) for n in ("dog", "cow")]
    first = image_folder(roots[0], cache_dir=cache)
    entry = entry_of(cache)
    image_folder(roots[1], cache_dir=tmp_path / "other")
    shutil.rmtree(entry)
    shutil.copytree(entry_of(tmp_path / "other"), entry)
    assert_same(first, image_folder(roots[0], cache_dir=cache))
    assert "damaged" in caplog.text


def test_an_entry_of_an_earlier_version_is_built_anew(root, cache, caplog):
    """As version 1 wrote it, with its samples of each file, under the name that is asked for."""
    first = image_folder(root, cache_dir=cache)
    meta = entry_of(cache) / "meta.json"
    content = json.loads(meta.read_text())["content"]
    old = {key: content[key] for key in ("classes", "fingerprint")}
    meta.write_text(json.dumps(old | {"checks": dict.fromkeys(content["checksums"], "0" * 32)}))
    assert_same(first, image_folder(root, cache_dir=cache))


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


def warned(caplog, *parts):
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for part in ("cannot keep", "EAKD_CACHE", *parts):
        assert str(part) in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()


def test_a_cache_that_cannot_be_written_is_a_warning(root, tmp_path, cache, caplog):
    expected = image_folder(root, cache_dir=cache)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cache", tmp_path / "file", "/proc/none", "x" * 300):
        data = image_folder(root, cache_dir=place)
        warned(caplog, place)
        assert_same(expected, data)
        data.train_images[:] = 0  # as writable as from a cache


def test_a_foreign_cache_is_used_and_left_alone(open_folder, caplog):
    root, cache = write_zip(open_folder / "set.zip", class_files()), open_folder / "cache"
    expected = image_folder(root, cache_dir=cache)
    with without_privileges(cache):
        assert_same(expected, image_folder(root, cache_dir=cache))
    assert not caplog.records
    truncate(entry_of(cache) / "test_images.npy")
    with without_privileges(cache):
        assert_same(expected, image_folder(root, cache_dir=cache))
    assert "damaged" in caplog.records.pop(0).getMessage()
    warned(caplog, cache)


def test_a_full_disk_is_a_warning(root, cache):
    """Not a signal, which is what a mapped file without room for its pages ends in."""
    program = textwrap.dedent("""
        import resource, sys
        from eakd.data import image_folder
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        print(image_folder(sys.argv[1], cache_dir=sys.argv[2]).fingerprint)
    """)
    command = [sys.executable, "-c", program, str(root), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "cannot keep" in done.stderr
    assert not list(cache.iterdir())
    assert done.stdout.strip() == image_folder(root, cache_dir=cache).fingerprint


@pytest.mark.parametrize("value", ["", "  ", 5, True, "a\0b", "~no such user/x"])
def test_a_cache_that_is_no_path_is_refused(root, value):
    with pytest.raises(UserError, match=r"^cache_dir: found [^\n]*$"):
        image_folder(root, cache_dir=value)


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
