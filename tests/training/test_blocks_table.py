"""A table is built once: killed anywhere it goes on, and nothing damaged or foreign is read."""

import json
import shutil
from collections import namedtuple

import pytest

from eakd.errors import UserError
from eakd.training.table import Table

SIZES = (40, 8, 16)


def content(block):
    return bytes(range(SIZES[block]))


@pytest.fixture
def table(tmp_path):
    facts = {"weights": "a" * 64, "data": "b" * 64, "precision": "float32"}
    return Table(tmp_path, facts, SIZES)


def test_built_once(table):
    assert table.open() is None
    asked = []
    table.build(lambda block: asked.append(block) or content(block))
    assert asked == [0, 1, 2]
    assert table.open().tobytes() == b"".join(map(content, range(3)))
    table.build(asked.append)  # nothing is missing
    assert len(asked) == 3


def test_killed_and_continued(table):
    def killed(block):
        if block == 1:
            raise KeyboardInterrupt
        return content(block)

    with pytest.raises(KeyboardInterrupt):
        table.build(killed)
    assert table.open() is None and table.missing() == [1, 2]
    asked = []
    table.build(lambda block: asked.append(block) or content(block))
    assert asked == [1, 2] and table.missing() == []
    assert not (table.folder / "lock.json").exists()


def test_damaged_blocks_are_missing(table):
    table.build(content)
    path = table.folder / table.file
    whole = bytearray(path.read_bytes())
    whole[44] ^= 1
    path.write_bytes(whole)
    assert table.missing() == [1] and table.open() is None
    path.write_bytes(whole[:-1])
    assert table.missing() == [0, 1, 2]


def test_of_other_facts_nothing_is_read(table):
    table.build(content)
    other = Table(table.root, table.facts | {"place": "elsewhere"}, SIZES)
    assert other.folder != table.folder
    shutil.copytree(table.folder, other.folder)
    assert other.missing() == [0, 1, 2]
    record = json.loads((table.folder / "table.json").read_text())
    (table.folder / "table.json").write_text(json.dumps(record | {"checksums": [1]}))
    assert table.missing() == [0, 1, 2]


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_told(table, monkeypatch, tmp_path):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(63))
        with pytest.raises(UserError, match=r"teacher\.table: found 0\.0 MB free for 0\.0 MB of"):
            table.build(content)
    assert not table.folder.exists()
    (tmp_path / "file").write_text("")
    blocked = Table(tmp_path / "file", table.facts, SIZES)
    with pytest.raises(UserError, match=r"teacher\.table: found .* cannot be written"):
        blocked.build(content)
