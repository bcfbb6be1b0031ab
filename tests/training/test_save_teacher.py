"""A teacher is replaced by a better one only, and the old one is kept."""

import shlex
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from eakd.composing import compose
from eakd.errors import UserError
from eakd.models.weights import load_weights
from eakd.training.run import run
from eakd.training.save_teacher import recorded, save_teacher

GOOD = ["data.train_per_class=60", "recipe.epochs=2"]
BAD = ["data.train_per_class=2", "recipe.epochs=1", "recipe.lr=0.0001"]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Overrides of a good and of a bad run, both finished, and what they left."""
    found = {}
    for name, words in (("good", GOOD), ("bad", BAD)):
        folder = tmp_path_factory.mktemp(name)
        found[name] = [*tiny, *words, "distiller=none", f"run_dir={folder}"], folder
        run(compose(found[name][0]))
    good, bad = (recorded(f / "last.safetensors", "test_top1") for _, f in found.values())
    assert good > bad
    return found


@pytest.fixture
def save(trained, tmp_path):
    """Repeats a finished run with ``save_teacher=true``; returns its weights and the teacher's."""

    def save(name):
        words, folder = trained[name]
        run(compose([*words, "save_teacher=true", f"checkpoint_root={tmp_path}"]))
        return (folder / "last.safetensors").read_bytes()

    return save


def test_a_worse_run_does_not_replace_a_teacher(save, tmp_path, caplog):
    good, target = save("good"), tmp_path / "digits" / "resnet8.safetensors"
    assert target.read_bytes() == good and not caplog.records
    bad = save("bad")
    assert target.read_bytes() == good and list(target.parent.iterdir()) == [target]
    (record,) = caplog.records
    text = record.getMessage()
    assert (
        "\n" not in text and f"kept {target} (test_top1 " in text and "to replace it: cp " in text
    )
    subprocess.run(shlex.split(text.split("to replace it: ")[1]), check=True)
    assert target.read_bytes() == bad


def test_a_better_run_replaces_a_teacher_and_keeps_the_old_one(save, tmp_path, caplog):
    caplog.set_level("INFO")
    bad, target = save("bad"), tmp_path / "digits" / "resnet8.safetensors"
    good = save("good")
    (backup,) = set(target.parent.iterdir()) - {target}
    assert target.read_bytes() == good and backup.read_bytes() == bad
    assert backup.name.startswith("resnet8.replaced-") and f"is kept as {backup}" in caplog.text
    stamps = {path: path.stat().st_mtime_ns for path in target.parent.iterdir()}
    for name in ("good", "bad", "good"):
        save(name)
    assert {path: path.stat().st_mtime_ns for path in target.parent.iterdir()} == stamps


def test_the_kept_teacher_teaches(save, trained, tmp_path):
    save("good")
    save("bad")
    words, _ = trained["bad"]
    words = [*words, "distiller=ea_kd", f"checkpoint_root={tmp_path}", f"run_dir={tmp_path / 'r'}"]
    summary = run(compose(words))
    assert summary["teacher_top1"] > 50


def weights(path, value=0.0, **metadata):
    save_file({"a": torch.full((2,), value)}, path, metadata)


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [
        ("50", "50.1", True),
        ("9.9", "10.1", True),  # numbers, not texts
        ("50", "50", False),
        ("50", "49.9", False),
        (None, "99", False),
        ("50", None, False),
        (None, None, False),
        ("nan", "99", False),
        ("50", "nan", False),
        ("-inf", "50", False),
        ("50", "inf", False),
        ("high", "99", False),
    ],
)
def test_what_is_better(old, new, replaced, tmp_path, caplog):
    def metadata(value):
        return {} if value is None else {"test_top1": value, "test_top5": "100"}

    (tmp_path / "digits").mkdir()
    target, source = tmp_path / "digits" / "mine.safetensors", tmp_path / "last.safetensors"
    weights(target, 0.0, **metadata(old))
    weights(source, 1.0, **metadata(new))
    found = save_teacher(source, tmp_path, "digits", "mine", "test_top1")
    assert (found == target) == replaced == bool(load_file(target)["a"].sum())
    assert len(list(target.parent.iterdir())) == 1 + replaced
    assert ("to replace it" in caplog.text) != replaced


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x10\0\0\0\0\0\0\0{", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_unknown_accuracy_stays_what_auto_finds(content, suffix, tmp_path, caplog):
    (tmp_path / "digits").mkdir()
    known, source = tmp_path / "digits" / f"mine{suffix}", tmp_path / "last.safetensors"
    known.write_bytes(content)
    weights(source, test_top1="99")
    assert save_teacher(source, tmp_path, "digits", "mine", "test_top1") is None
    assert known.read_bytes() == content and list(known.parent.iterdir()) == [known]
    assert f"kept {known} (test_top1 unknown) rather than this run (99)" in caplog.text


def test_the_public_zoos_teacher_is_not_hidden(tiny, trained, tmp_path, caplog):
    (tmp_path / "digits").mkdir()
    state = load_file(trained["good"][1] / "last.safetensors")
    torch.save({"model": state}, known := tmp_path / "digits" / "resnet8.pth")
    run(compose([*trained["bad"][0], "save_teacher=true", f"checkpoint_root={tmp_path}"]))
    assert list(known.parent.iterdir()) == [known] and str(known) in caplog.text


def test_each_replaced_teacher_is_kept(tmp_path):
    (tmp_path / "digits").mkdir()
    for value in range(4):
        weights(tmp_path / "last.safetensors", float(value), test_top1=str(50 + value))
        save_teacher(tmp_path / "last.safetensors", tmp_path, "digits", "mine", "test_top1")
    backups = sorted((tmp_path / "digits").glob("mine.replaced-*.safetensors"))
    assert sorted(load_file(path)["a"][0] for path in backups) == [0, 1, 2]
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(torch.full((2,), -1.0))
    load_weights(model, backups[0])  # still a file of weights


@pytest.mark.parametrize("blocked", ["file", "folder"])
def test_a_place_that_cannot_be_written_is_one_line(blocked, tmp_path):
    weights(source := tmp_path / "last.safetensors", test_top1="9")
    root = tmp_path / "root"
    if blocked == "file":
        root.write_text("no folder")
    else:
        (root / "digits" / "mine.safetensors" / "x").mkdir(parents=True)
    with pytest.raises(UserError, match="save_teacher: found ") as error:
        save_teacher(source, root, "digits", "mine", "test_top1")
    assert str(source) in str(error.value) and "\n" not in str(error.value)


def test_a_lost_student_is_one_line(trained, tmp_path):
    words, folder = trained["bad"]
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "last.safetensors").unlink()
    words = [*words, "save_teacher=true", f"checkpoint_root={tmp_path}", f"run_dir={copy}"]
    with pytest.raises(UserError, match="resume=false trains it again"):
        run(compose(words))
    assert not (tmp_path / "digits" / "resnet8.safetensors").exists()
