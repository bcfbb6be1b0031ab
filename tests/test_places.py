"""A folder of one's own configs is read before it is used; commands are shown as they are typed."""

import sys

import processes
import pytest

from eakd.config import ROOT
from eakd.errors import UserError
from eakd.places import CONFIGS, check_config_dir, command_words, config_dirs

OURS = (CONFIGS / "data" / "digits.yaml").read_bytes()


def refusal(folder):
    with pytest.raises(UserError) as caught:
        check_config_dir(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a:\n\tb: 1\n", "found no YAML in line 2 (found character '\\t'"),
        (b"a: 1\nb: [\n", "found no YAML in line 3 (expected the node content"),
        (b"a: 1\na: 2\n", "found no YAML in line 2 (found duplicate key a)"),
        (b"a: 1\n---\nb: 1\n", "found no YAML in line 2 (but found another document)"),
        (
            b"a: !!python/object/apply:os.getcwd []\n",
            "found no YAML in line 1 (could",
        ),
        (b"a: ${b\n", "cannot be read (no viable alternative"),
        (b"\xff\xfe\x00", "cannot be read ('utf-8' codec"),
        (b"a: \x00\n", "cannot be read (unacceptable character"),
        (b"3\n", "cannot be read (Invalid loaded object type"),
        (b"- a\n", "found a list, allowed are lines KEY: VALUE"),
        (None, "cannot be read (Is a directory)"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, message, tmp_path):
    path = tmp_path / "data" / "deep" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.mkdir() if content is None else path.write_bytes(content)
    assert refusal(tmp_path).startswith(f"{path}: {message}")


def test_a_file_that_ours_hides_is_named_but_a_copy_may_stay(tmp_path):
    path = tmp_path / "data" / "digits.yaml"
    path.parent.mkdir()
    path.write_bytes(OURS)
    check_config_dir(tmp_path)
    path.write_bytes(OURS.replace(b"num_classes: 10", b"num_classes: 9"))
    assert refusal(tmp_path).startswith(f"{path}: found a file that would not be read, because ")


def test_what_is_no_config_is_not_read(tmp_path):
    for name in ("notes.yaml", "outputs/broken.yaml", "data/.hidden.yaml", "data/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a: [")
    check_config_dir(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file", "mine"])
def test_a_command_refuses_a_folder_in_one_line(name, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "net.yaml").write_text("a: [")
    words = [f"--config-dir={name}", "distiller=none", f"output_root={tmp_path / 'outputs'}"]
    result = processes.run([ROOT / "scripts" / "train.py", *words], cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    found = "net.yaml: found no YAML" if name == "mine" else f"--config-dir: found '{tmp_path}/"
    assert line.startswith("error: ") and found in line
    assert not (tmp_path / "outputs").exists()


def test_every_spelling_of_the_option_is_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in (["--config-dir=a"], ["--config-dir", "a"], ["-cd=a"], ["-cd", "a"]):
        assert config_dirs(["train.py", *words, "seed=1"]) == [str(tmp_path / "a")]
    assert config_dirs(["train.py", "--config-dir="]) == [str(tmp_path)]
    assert config_dirs(["train.py", "seed=1"]) == []


def test_commands_are_shown_as_this_one_was_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["scripts/report.py"])
    assert command_words("train") == ["python", "scripts/train.py"]
    monkeypatch.chdir(tmp_path)
    assert command_words("train") == ["python", str(ROOT / "scripts" / "train.py")]
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/eakd-report", "runs=x"])
    assert command_words("train") == ["eakd-train"]
