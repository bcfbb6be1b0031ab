"""Text becomes part of a path only after it was checked."""

import pytest
from synthetic import class_files, write_folder

from eakd.data import image_folder
from eakd.data.cache import cached
from eakd.download import Archive, download
from eakd.errors import UserError, check_name

BAD = [
    *("", " ", ".", "..", "../../x", "a/b", "/a", "a/", "..\\x", "a\\b", ".hidden", ".a"),
    *(" a", "a ", "a\n", "a\tb", "a\0b", "\x1b[31m", "a\x7f", "\u202eabc", "\udce9", "\u2028"),
    *("x" * 101, "x" * 250, "x" * 100_000, "é" * 51, 5, 0, 1.5, None, True, b"a", ["a"]),
]
GOOD = [
    "a",
    "cifar100",
    "my set",
    "x" * 100,
    "é" * 50,
    "a.b",
    "-a",
    "2024",
    "日本",
    "a..b",
    "A_b-c",
]


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:30])
def test_bad_names_are_refused_in_one_short_line(tmp_path, value):
    root = write_folder(tmp_path / "set", class_files())
    for use in (
        lambda: check_name("name", value),
        lambda: image_folder(root, name=value, cache_dir=tmp_path / "cache"),
        lambda: cached(value, "key", tmp_path / "cache", None),
    ):
        with pytest.raises(UserError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith("name: found ") and "allowed is" in message
        assert message.isprintable() and len(message) < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize("value", GOOD)
def test_good_names_are_names_of_entries(tmp_path, value):
    root = write_folder(tmp_path / "set", class_files())
    data = image_folder(root, name=value, cache_dir=tmp_path / "cache")
    assert data.name == value
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.name.startswith(f"{value}-")


@pytest.mark.parametrize("value", ["../x", ".x", "x" * 250, "a/b"])
def test_names_of_downloads(tmp_path, value):
    archive = Archive("a file", (tmp_path / "f").as_uri(), "0" * 64)
    with pytest.raises(UserError, match="name of the download: found"):
        download(archive, tmp_path / "to", value)
    assert not list(tmp_path.iterdir())
