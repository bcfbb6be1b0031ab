"""Teachers are listed, fetched, trained and checked; what is not what it should be never stays."""

import hashlib
import json
import resource
import shlex
from pathlib import Path

import processes
import pytest
import torch
import yaml
from safetensors import safe_open

from eakd.classification.build import MANIFEST
from eakd.composing import compose
from eakd.config import run_name
from eakd.errors import UserError
from eakd.models import resnet8, resnet14
from eakd.models.weights import load_state, load_weights
from eakd.reproduce.plan import make_plan
from eakd.reproduce.table import load_table, make_table, printed
from eakd.teachers.command import training
from eakd.teachers.teacher import Teacher, needed

from .conftest import MEMBER, write_tar, write_zip


@pytest.fixture
def zoo(trained, tmp_path):
    """The archive as it is published."""
    content = trained[0].read_bytes()
    return write_tar(tmp_path / "zoo.tar", {f"cifar_teachers/{MEMBER}": content})


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def refused(call, *parts):
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and all(part in text for part in parts), text


@pytest.mark.parametrize("form", ["tar", "zip", "folder", "inner folder"])
def test_a_local_archive_becomes_the_teacher(form, trained, published, command, root, tmp_path):
    file, top1 = trained
    content, target = file.read_bytes(), root / "digits" / "resnet8.safetensors"
    archive = tmp_path / "mine"
    if "folder" in form:
        place = archive / ("" if "inner" in form else "cifar_teachers") / MEMBER
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
    else:
        (write_tar if form == "tar" else write_zip)(archive, {f"zoo/{MEMBER}": content})
    command(published(), "mode=fetch", f"archive={archive}")
    assert files(root) == ["resnet8.pin.json", "resnet8.safetensors"] and archive.exists()
    state = load_state(file)
    assert all(torch.equal(x, state[key]) for key, x in load_state(target).items())
    with safe_open(target, "pt") as opened:
        header = opened.metadata()
    digest = hashlib.sha256(content).hexdigest()
    assert float(header["test_top1"]) == top1 and header["sha256"] == digest
    assert header["source"] == str(archive)
    pin = json.loads((root / "digits" / "resnet8.pin.json").read_text())
    assert pin["sha256"] == digest and pin["top1"] == top1


def test_fetching_and_fetching_again(site, zoo, published, command, root, capsys):
    folder, url, seen = site
    (folder / "zoo.tar").write_bytes(zoo.read_bytes())
    manifest = published(f"{url}/zoo.tar")
    command(manifest, "mode=fetch")
    assert seen == ["/zoo.tar"] and files(root) == ["resnet8.pin.json", "resnet8.safetensors"]
    command(manifest, "mode=fetch")
    assert len(seen) == 1 and "there already" in capsys.readouterr().out
    command(manifest, "mode=fetch", "replace=true")
    assert len(seen) == 2 and files(root) == ["resnet8.pin.json", "resnet8.safetensors"]
    command(manifest, "mode=check")
    assert ": ok" in capsys.readouterr().out
    command(manifest, "mode=list")
    assert f"{url}/zoo.tar" in capsys.readouterr().out


def test_mirrors_are_tried_in_order(site, zoo, published, command, root):
    folder, url, seen = site
    (folder / "page.tar").write_text("<html>Sign in</html>")
    (folder / "zoo.tar").write_bytes(zoo.read_bytes())
    names = ["absent.tar", "page.tar", "cut.tar", "to/http://example.org/zoo.tar"]
    urls = [f"{url}/{name}" for name in names]
    manifest = published(*urls)
    refused(
        lambda: command(manifest, "mode=fetch"),
        *(f"{urls[0]}: HTTP Error 404", f"{urls[1]}: the download: found a web page"),
        *(f"{urls[2]}: ", f"{urls[3]}: ", "allowed is https", "archive=FILE"),
    )
    assert seen == [f"/{name}" for name in names] and files(root) == []
    command(published(*urls, f"{url}/zoo.tar"), "mode=fetch")
    assert files(root) == ["resnet8.pin.json", "resnet8.safetensors"]
    (root / "digits" / "resnet8.safetensors").unlink()
    command(manifest, "mode=fetch", f"mirrors=['{url}/to/{url}/zoo.tar']")
    assert files(root) == ["resnet8.pin.json", "resnet8.safetensors"]


@pytest.mark.parametrize("url", ["http://example.org/zoo.tar", "file:///zoo.tar", "zoo.tar"])
def test_what_is_not_secure_is_not_asked(url, published, command, root):
    refused(lambda: command(published(url), "mode=fetch"), url, "https")
    assert files(root) == []


def test_no_network_prints_the_command_that_trains(published, command, root, capsys):
    refused(lambda: command(published("https://127.0.0.1:9/zoo.tar"), "mode=fetch"), "127.0.0.1:9")
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "train it with: " in x)
    words = shlex.split(line.split("train it with: ")[1])
    assert words[:2] == ["python", "scripts/train.py"] and files(root) == []
    config = compose(words[2:])
    assert config.student.name == "resnet8" and config.save_teacher
    assert config.checkpoint_root == str(root)


def test_a_wrong_accuracy_is_refused(zoo, trained, published, command, root):
    manifest = published(top1=trained[1] - 0.3)
    refused(
        lambda: command(manifest, "mode=fetch", f"archive={zoo}"),
        *(f"{trained[1]:.2f} % top-1 on digits", f"{trained[1] - 0.3:.2f} ± 0.2"),
    )
    assert files(root) == []
    command(published(top1=trained[1] - 0.15), "mode=fetch", f"archive={zoo}")


class Harmful:
    def __reduce__(self):
        return exec, ("open('harmed', 'w')",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": resnet14(10).state_dict()}, "not the weights of this ResNet: unexpected"),
        ({"model": resnet8(100).state_dict()}, "shape of fc.weight"),
        ({"model": {"fc.weight": torch.zeros(10, 64)}}, "missing conv1.weight"),
        ({"model": resnet8(10).state_dict(), "opt": Harmful()}, "could run code"),
        ({"epoch": 240}, "found no weights"),
    ],
    ids=["deeper", "classes", "few", "harmful", "none"],
)
def test_other_files_are_refused(content, expected, published, command, root, tmp_path):
    (tmp_path / "zoo").mkdir()
    torch.save(content, tmp_path / "file")
    archive = write_tar(tmp_path / "mine.tar", {MEMBER: (tmp_path / "file").read_bytes()})
    refused(
        lambda: command(published(), "mode=fetch", f"archive={archive}"),
        f"{archive}, {MEMBER}: ",
        expected,
    )
    assert files(root) == [] and not Path("harmed").exists()


def test_the_digest_is_pinned(zoo, trained, published, command, root, tmp_path):
    """Other bytes are refused from then on, however good they are."""
    command(published(), "mode=fetch", f"archive={zoo}")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    torch.save({"model": load_state(trained[0])}, tmp_path / "same")
    other = write_tar(tmp_path / "other.tar", {MEMBER: (tmp_path / "same").read_bytes()})
    fetch = ["mode=fetch", f"archive={other}", "replace=true"]
    pin = root / "digits" / "resnet8.pin.json"
    refused(lambda: command(published(), *fetch), "found resnet8_vanilla", "SHA-256", f"{pin} pins")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    for text, expected in (("{", "damaged file"), ('{"sha256": 1}', "damaged pin")):
        pin.write_text(text)
        refused(lambda: command(published(), *fetch), f"{pin}: found a ", expected)
    pin.unlink()
    command(published(), *fetch)
    digest = hashlib.sha256((tmp_path / "same").read_bytes()).hexdigest()
    assert json.loads(pin.read_text())["sha256"] == digest
    assert files(root) == ["resnet8.pin.json", "resnet8.safetensors"]  # the same weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_teacher_that_is_there_stays(suffix, zoo, published, command, root):
    mine = root / "digits" / f"resnet8{suffix}"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    command(published(), "mode=fetch", f"archive={zoo}")
    assert files(root) == [mine.name] and mine.read_bytes() == b"mine"
    command(published(), "mode=fetch", f"archive={zoo}", "replace=true")
    (kept,) = mine.parent.glob("resnet8.replaced-*")
    assert kept.read_bytes() == b"mine" and kept.suffix == suffix
    load_weights(resnet8(10), root / "digits" / "resnet8.safetensors")


def test_a_full_disk_is_one_line_and_nothing_stays(site, zoo, published, command, root):
    """A limit on file sizes refuses like a full disk does."""
    folder, url, _ = site
    (folder / "zoo.tar").write_bytes(zoo.read_bytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    words = [published(f"{url}/zoo.tar"), "mode=fetch"]
    try:
        refused(lambda: command(*words), "checkpoint_root: found", "too large")
        refused(lambda: command(*words, f"archive={zoo}"), "checkpoint_root: found", "too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(root) == []


def test_a_place_that_cannot_be_written(site, zoo, published, command, root):
    folder, url, _ = site
    (folder / "zoo.tar").write_bytes(zoo.read_bytes())
    root.write_text("a file")
    words = [published(f"{url}/zoo.tar"), "mode=fetch"]
    refused(lambda: command(*words), "checkpoint_root: found", "is no folder")
    refused(lambda: command(*words, f"archive={zoo}"), "checkpoint_root: found", "is no folder")
    assert root.read_text() == "a file"


def test_an_archive_that_a_killed_process_left_is_used(site, zoo, published, command, root):
    _, url, seen = site
    root.mkdir()
    (root / "zoo.tar").write_bytes(zoo.read_bytes())
    command(published(f"{url}/zoo.tar"), "mode=fetch")
    assert seen == [] and "resnet8.safetensors" in files(root)


def test_training_continues_and_is_done_once(published, command, root, capsys, tmp_path):
    manifest, small = published(), ["recipe.epochs=1", "data.train_per_class=5"]
    words = ["mode=train", "teachers=[resnet8,resnet14]", f"overrides={small}"]
    refused(lambda: command(manifest, *words, "overrides=['recipe.epoch=1']"), "recipe.epoch")
    assert files(tmp_path / "outputs") == []
    command(manifest, *words)
    assert files(root) == ["resnet14.safetensors", "resnet8.safetensors"]
    stamps = [path.stat().st_mtime_ns for path in sorted(root.rglob("*.safetensors"))]
    (root / "digits" / "resnet14.safetensors").unlink()
    runs = list(tmp_path.glob("outputs/**/summary.json"))
    before = [path.stat().st_mtime_ns for path in runs]
    command(manifest, *words)  # saved again, not trained again
    assert [path.stat().st_mtime_ns for path in runs] == before and len(runs) == 2
    assert (root / "digits" / "resnet8.safetensors").stat().st_mtime_ns == stamps[1]
    capsys.readouterr()
    command(manifest, "mode=list", "teachers=[resnet8,resnet14,resnet20]")
    lines = capsys.readouterr().out.splitlines()
    assert "trained here" in lines[1] and "trained here" in lines[2]
    assert lines[3].split() == ["digits", "resnet20", "-", "-", "-", "absent:", "mode=train"]


def test_a_failed_training_is_named(published, command, root):
    words = ["mode=train", "overrides=['recipe.lr=-1']"]
    refused(lambda: command(published(), *words), "1 of 1", "resnet8: recipe.lr: found -1")
    assert files(root) == []


def test_check_finds_what_is_amiss(zoo, trained, published, command, root, capsys):
    manifest, target = published(), root / "digits" / "resnet8.safetensors"
    refused(lambda: command(manifest, "mode=check"), "found none of resnet8")
    command(manifest, "mode=fetch", f"archive={zoo}")
    whole = target.read_bytes()
    refused(lambda: command(published(top1=99.0), "mode=check"), "allowed is 98.80 to 99.20")
    published()
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # a last digit of the classifier, which no accuracy shows
    target.write_bytes(flipped)
    refused(lambda: command(manifest, "mode=check"), "found other weights than")
    refused(lambda: command(manifest, "mode=fetch"), "found other weights than")
    target.write_bytes(whole[:-8])
    refused(lambda: command(manifest, "mode=check"), str(target))
    assert capsys.readouterr().out.count("FAILED") == 3
    target.write_bytes(whole)
    command(published(), "mode=check")
    # As if trained here: as good as published less a point, or as its own header says.
    (root / "digits" / "resnet8.pin.json").unlink()
    command(published(top1=trained[1] + 0.9), "mode=check")
    command(published(top1=trained[1] - 5), "mode=check")
    refused(lambda: command(published(top1=trained[1] + 1.1), "mode=check"), "reaches")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mode=fech"], ["mode: found 'fech', allowed is one of list, fetch, train, check"]),
        (["teachers=[resnet99]"], ["teachers: found 'resnet99', allowed is one of", "resnet56"]),
        (["teachers=resnet8"], ["teachers: found 'resnet8', allowed is a list"]),
        (["teachers=[]"], ["teachers: found []"]),
        (["mirrors=[]"], ["mirrors: found []"]),
        (["mirrors=https://a.b/c.tar"], ["mirrors: found"]),
        (["overrides=[3]"], ["overrides: found [3]"]),
        (["replace=1"], ["replace: found 1"]),
        (["mode=fetch", "archive=7"], ["archive: found the number 7"]),
        (["mode=fetch", "archive=nowhere.tar"], ["nowhere.tar: found no file or folder"]),
        (["mode=fetch", "mirrors=['https://a.b/']"], ["the name of the archive: found ''"]),
        (["mode=fetch", "teachers=[resnet14]"], ["resnet14 is not published for digits"]),
    ],
)
def test_mistakes_are_one_line(words, parts, published, command, root):
    refused(lambda: command(published("https://127.0.0.1:9/zoo.tar"), *words), *parts)
    assert files(root) == []


def test_without_the_data_the_line_says_which(root, tmp_path):
    words = ["mode=fetch", f"data.root={tmp_path}", "data.download=false"]
    words += [f"checkpoint_root={root}", f"output_root={tmp_path / 'outputs'}"]
    result = processes.run(["scripts/teachers.py", *words])
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: data.root: found")
    assert "test images of cifar100" in line and not root.exists()
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_has_every_teacher_of_the_tables():
    known = yaml.safe_load(MANIFEST.read_text())
    for name in ("1", "2", "3", "4", "7", "8", "control"):
        table = load_table(name)
        for pair in table["pairs"]:
            paper = printed(name, pair, "teacher")
            entry = known[table["data"]][pair.partition("-")[0]]
            assert paper.get("top1", entry["top1"]) == entry["top1"]
    assert needed("cifar100") == ["resnet32x4", "wrn_28_4", "wrn_40_2", "vgg13", "resnet50"]
    assert needed("digits") == ["resnet20"]


@pytest.mark.parametrize("name", ["2", "3", "4"])
def test_training_is_the_run_that_reproduce_takes(name, tmp_path):
    table = load_table(name)
    words = [f"checkpoint_root={tmp_path}", f"data={table['data']}"]
    config = compose(words, "teachers")
    found = [Teacher.listed(MANIFEST, tmp_path, table["data"], n) for n in needed(table["data"])]
    ours = {teacher.name: run_name(compose(training(config, teacher))) for teacher in found}
    plan = make_plan(make_table(table, methods=["kd"]), seeds=[0], checkpoint_root=str(tmp_path))
    for job in plan.teachers:
        name = job.label.removeprefix("teacher ").removesuffix(", seed 0")
        assert job.directory == Path("outputs") / ours[name]
    assert plan.teachers


@pytest.mark.slow
def test_a_real_teacher_in_the_zoos_format(real_data, published, root, tmp_path):
    from eakd.teachers.command import teachers

    file, data = real_data / "resnet20_cifar100.pth", real_data / "cifar100-images.zip"
    for path in (file, data):
        if not path.exists():
            pytest.skip(f"no {path}")
    member = "resnet20_vanilla/ckpt_epoch_240.pth"
    archive = write_tar(tmp_path / "zoo.tar", {f"cifar_teachers/{member}": file.read_bytes()})
    manifest = tmp_path / "manifest.yaml"
    entry = {"top1": 67.22, "archive": [], "member": member}
    manifest.write_text(yaml.safe_dump({"cifar100": {"resnet20": entry}}))
    common = ["teachers=[resnet20]", f"data.root={data}", f"checkpoint_root={root}"]
    common.append(f"data.cache_dir={tmp_path / 'cache'}")
    for words in (["mode=fetch", f"archive={archive}"], ["mode=check"]):
        teachers(compose([*common, *words], "teachers"), manifest)
    assert files(root) == ["resnet20.pin.json", "resnet20.safetensors"]
    pin = json.loads((root / "cifar100" / "resnet20.pin.json").read_text())
    assert pin["top1"] == pytest.approx(67.22, abs=0.05)
