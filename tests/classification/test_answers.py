"""A table of the teacher's logits answers for it, and changes no bit of a run."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import Command
from safetensors.torch import load_file
from torch import nn

from eakd import models
from eakd.classification.answers import AnswerTable, answered_sizes, facts_of_table
from eakd.composing import compose
from eakd.config import ROOT, run_name
from eakd.data import Pipeline, digits
from eakd.data.randaugment import RandAugment
from eakd.distillers import KD, MLD
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.models.weights import save_weights
from eakd.training import Compute
from eakd.training.device import _has_native_bfloat16
from eakd.training.lock import RunLock
from eakd.training.run import run

CPU = torch.device("cpu")
COMPUTE = Compute.create("cpu", "float32")
TEACHERS = ("resnet20", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2")
PRECISIONS = ("float32", "bf16") if _has_native_bfloat16(CPU) else ("float32",)


def network(name):
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return model.eval()


def pipeline(**options):
    geometry = {"crop_padding": 1, "flip": False, "mean": [0.3] * 3, "std": [0.3] * 3}
    return Pipeline(digits(train_per_class=5), **{"batch_size": 16, **geometry, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with teachers."""
    folder = tmp_path_factory.mktemp("answers")
    for name in TEACHERS:
        save_weights(network(name), folder / "checkpoints" / "digits" / f"{name}.safetensors", {})
    return folder


@pytest.fixture
def job(root, tmp_path):
    """Overrides of a run of five steps over 9 views of 80 images, with no table yet."""
    shutil.copytree(root / "checkpoints", tmp_path / "checkpoints")
    return [
        *("data.train_per_class=8", "data.crop_padding=1", "recipe.epochs=1"),
        *("recipe.batch_size=16", "teacher=resnet20", "student=resnet8", "device=cpu", "threads=1"),
        *("precision=float32", f"checkpoint_root={tmp_path / 'checkpoints'}"),
        f"output_root={tmp_path / 'outputs'}",
    ]


def train(job, folder, *overrides):
    """The summary of a run and the weights that it leaves."""
    summary = run(compose([*job, f"run_dir={folder}", *overrides]))
    return summary, load_file(Path(folder) / "last.safetensors")


def the_table(tmp_path):
    (folder,) = (tmp_path / "checkpoints" / "answers").iterdir()
    return folder


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def check_equal_runs(job, tmp_path, *overrides):
    plain, expected = train(job, tmp_path / "plain", *overrides, "teacher.table=false")
    table, found = train(job, tmp_path / "table", *overrides, "teacher.table=true")
    assert plain["teacher_table"] == "none" != table["teacher_table"]
    assert same(expected, found)
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("plain", "table")
    ]
    for line in lines:
        line.pop("train_seconds"), line.pop("samples_per_second")
    assert lines[0] == lines[1]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TEACHERS[1:-1]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("teacher", [TEACHERS[0], *SLOW, TEACHERS[-1]])
def test_every_network_gives_the_same_weights(teacher, precision, job, tmp_path):
    check_equal_runs(job, tmp_path, f"teacher={teacher}", f"precision={precision}")


@pytest.mark.parametrize(
    "method", ["ea_kd", "ctkd", "ea_dkd", "mld", "ea_mld_ls", "kd_ls", "ea_dkd_ls"]
)
def test_every_logit_method_gives_the_same_weights(method, job, tmp_path):
    check_equal_runs(job, tmp_path, f"distiller={method}", "recipe.epochs=2", "data.flip=true")


@pytest.mark.parametrize(
    "words",
    [
        ["distiller=kd", "recipe.batch_size=79"],
        ["distiller=mld", "recipe.batch_size=79"],
        ["distiller=kd", "recipe.batch_size=21"],
        ["distiller=mld", "recipe.batch_size=32", "recipe.accumulate=3"],
    ],
    ids=" ".join,
)
def test_every_size_of_batch_gives_the_same_weights(words, job, tmp_path):
    """A last batch of one, too; and whatever this machine's kernels round differently."""
    plain, expected = train(job, tmp_path / "plain", *words)
    _, found = train(job, tmp_path / "table", *words, "teacher.table=true")
    assert plain["teacher_table"] == "none"
    assert same(expected, found)


def test_each_form_of_a_teacher_has_its_own_table(job, tmp_path):
    forms = ("channels_last=true", "channels_last=false", "fold_batchnorm=false")
    for number, form in enumerate(forms):
        check_equal_runs(job, tmp_path / f"{number}", form)
    assert len(list((tmp_path / "checkpoints" / "answers").iterdir())) == len(forms)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": True},
        {"crop_padding": 0},
        {"crop_padding": 0, "flip": True},
        {"crop_padding": 2, "flip": True, "val_fraction": 0.2, "part": (1, 2)},
        {"accumulate": 2, "batch_size": 25, "strong_view": RandAugment()},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_row_is_the_view_that_the_batch_shows(options):
    data = pipeline(**options)
    count = len(data.data.train_labels)
    data.answers = torch.arange(data.views * count)[:, None]
    seen = set()
    for epoch in range(1, 9):
        for step in data.epoch(epoch):
            for batch in step if isinstance(step, list) else [step]:
                row = batch.teacher_logits[:, 0]
                assert torch.equal(row % count, batch.index)
                assert torch.equal(data.view(row // count, row % count), batch.images)
                seen |= set((row // count).tolist())
    assert len(seen) > 0.9 * data.views
    assert {len(b.index) for b in pipeline().epoch(1)} == pipeline().batch_sizes() == {16, 2}


def test_views_are_all_different_and_a_rotation_has_none():
    data = pipeline(flip=True, crop_padding=1)
    members = torch.full((data.views,), 7)
    images = data.view(torch.arange(data.views), members)
    assert len(images) == len(images.flatten(1).unique(dim=0)) == 18
    assert pipeline(rotation=5).views is None


def test_a_single_image_goes_to_the_teacher():
    data = pipeline(batch_size=49)
    data.answers = torch.zeros(data.views * 50, 10)
    full, single = data.epoch(1)
    assert full.teacher_logits is not None and len(single.index) == 1
    assert single.teacher_logits is None


def test_in_a_notebook_the_teacher_is_asked_for_what_the_table_lacks_alone(tmp_path):
    """KD runs no teacher, MLD for the strong view only."""
    teacher, student = network("resnet20"), network("resnet8")
    asked = []
    teacher.register_forward_hook(lambda *call: asked.append(len(call[1][0])))
    for method, counts in ((KD, [[], [16]]), (MLD, [[16], [32]])):
        data = pipeline(strong_view=RandAugment())
        table = AnswerTable(tmp_path, facts_of_table("weights", data, COMPUTE, folded=False))
        table.build(teacher, data, COMPUTE)
        answers = table.open()
        assert 16 in answered_sizes(answers, teacher, data, COMPUTE, doubled=method is MLD)
        results = []
        for data.answers, expected in zip((answers, None), counts, strict=True):
            asked.clear()
            distiller = method(student, teacher)
            terms = distiller(next(data.epoch(1)), Progress(0, 1, 0))
            results.append(terms)
            assert asked == expected
        assert torch.equal(results[0].teacher_logits, results[1].teacher_logits)
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_teacher_in_training_mode_fills_no_table(tmp_path):
    data = pipeline()
    table = AnswerTable(
        tmp_path / "answers", facts_of_table("weights", data, COMPUTE, folded=False)
    )
    with pytest.raises(UserError, match="found it in training mode"):
        table.build(network("resnet8").train(), data, COMPUTE)
    assert not (tmp_path / "answers").exists()


def test_the_notebook_of_the_page_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "teacher-table.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    teacher, data = network("resnet20").train(), pipeline()
    path = tmp_path / "checkpoints" / "digits_pool" / "resnet20.safetensors"
    save_weights(teacher, path, {})
    monkeypatch.chdir(tmp_path)
    exec(code, {"teacher": teacher, "data": data, "compute": COMPUTE})
    assert next(data.epoch(1)).teacher_logits.shape == (16, 10)


def test_sizes_that_round_differently_are_found():
    teacher, data = network("resnet20"), pipeline()
    count = data.views * 50
    with torch.no_grad():
        rows = torch.arange(count)
        answers = teacher(data.view(rows // 50, rows % 50), features=False).logits
    assert 1 not in answered_sizes(answers, teacher, pipeline(batch_size=49), COMPUTE)
    assert 16 in answered_sizes(None, teacher, data, COMPUTE)
    assert not answered_sizes(answers + 1e-5, teacher, data, COMPUTE)


def test_a_table_is_used_by_all_who_can(job, tmp_path, caplog):
    caplog.set_level("INFO")
    assert train(job, tmp_path / "before")[0]["teacher_table"] == "none"
    assert "teacher.table" not in caplog.text  # nothing was asked for, nothing is there
    built, _ = train(job, tmp_path / "one", "teacher.table=true")
    assert "building 9 views of 80 images, 0.0 MB" in caplog.text
    name = the_table(tmp_path).name
    assert built["teacher_table"] == name
    environment = json.loads((tmp_path / "one" / "environment.json").read_text())
    assert environment["teacher_table"] == name
    content = (the_table(tmp_path) / "logits.bin").read_bytes()
    for number, words in enumerate((["distiller=ea_mld"], ["seed=3"], ["data.val_fraction=0.25"])):
        assert train(job, tmp_path / f"{number}", *words)[0]["teacher_table"] == name
    off, _ = train(job, tmp_path / "off", "teacher.table=false")
    assert off["teacher_table"] == "none"
    others = ("data.crop_padding=2", "data.mean=[0.1,0.1,0.1]", "teacher=vgg8")
    for number, word in enumerate(others):
        assert train(job, tmp_path / f"other{number}", word)[0]["teacher_table"] == "none"
    assert (the_table(tmp_path) / "logits.bin").read_bytes() == content


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["distiller=reviewkd"], "ReviewKD asks the teacher for more than logits"),
        (["distiller=fcfd"], "FCFD asks the teacher for more than logits"),
        (["data.rotation=10"], "data.rotation makes views without number"),
    ],
)
def test_what_cannot_use_a_table_says_so_and_goes_on(words, reason, job, tmp_path, caplog):
    caplog.set_level("INFO")
    summary, _ = train(job, tmp_path / "run", *words, "teacher.table=true")
    assert summary["teacher_table"] == "none"
    assert caplog.text.count(f"teacher.table: not used, {reason}") == 1
    assert not (tmp_path / "checkpoints" / "answers").exists()


def test_the_key_is_no_part_of_a_run(job, tmp_path):
    names = {run_name(compose([*job, f"teacher.table={v}"])) for v in ("auto", "true", "false")}
    assert names == {run_name(compose(job))}
    for value in ("yes", "1", "null", "[]"):
        with pytest.raises(UserError, match=r"^teacher\.table: found .* auto, True, False"):
            compose([*job, f"teacher.table={value}"])
    first, _ = train(job, tmp_path / "run")
    assert train(job, tmp_path / "run", "teacher.table=true")[0] == first  # finished is finished


def flip_a_bit(folder):
    content = bytearray((folder / "logits.bin").read_bytes())
    content[4321] ^= 1
    (folder / "logits.bin").write_bytes(content)


def cut_short(folder):
    path = folder / "logits.bin"
    path.write_bytes(path.read_bytes()[:-4])


def lose_the_numbers(folder):
    (folder / "logits.bin").unlink()


def lose_the_record(folder):
    (folder / "table.json").write_text('{"facts": ')


def lose_a_checksum(folder):
    record = json.loads((folder / "table.json").read_text())
    record["checksums"][3] = None
    (folder / "table.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, lose_the_numbers, lose_the_record, lose_a_checksum]
)
def test_a_damaged_table_is_not_used_and_can_be_completed(damage, job, tmp_path, caplog):
    caplog.set_level("INFO")
    train(job, tmp_path / "one", "teacher.table=true")
    folder = the_table(tmp_path)
    content = (folder / "logits.bin").read_bytes()
    damage(folder)
    assert train(job, tmp_path / "auto")[0]["teacher_table"] == "none"
    assert f"{folder} is unfinished or damaged" in caplog.text
    assert train(job, tmp_path / "true", "teacher.table=true")[0]["teacher_table"] == folder.name
    assert (folder / "logits.bin").read_bytes() == content
    assert {path.name for path in folder.iterdir()} == {"logits.bin", "table.json"}


def test_no_room_and_no_folder_are_one_line(job, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match=r"^teacher\.table: found 0\.0 MB free for 0\.0 MB") as e:
        train(job, tmp_path / "run", "teacher.table=true")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "checkpoints" / "answers").exists() and not (tmp_path / "run").exists()
    monkeypatch.undo()
    (tmp_path / "checkpoints" / "answers").write_text("a file")
    with pytest.raises(UserError, match=r"^teacher\.table: found .* cannot be written") as e:
        train(job, tmp_path / "run", "teacher.table=true")
    assert "\n" not in str(e.value) and not (tmp_path / "run").exists()


def test_one_builds_and_the_others_wait(job, tmp_path, caplog):
    caplog.set_level("INFO")
    train(job, tmp_path / "one", "teacher.table=true")
    folder = the_table(tmp_path)
    (folder / "table.json").unlink()
    results = []
    waiting = threading.Thread(
        target=lambda: results.append(train(job, tmp_path / "two", "teacher.table=true")[0])
    )
    with RunLock(folder):
        waiting.start()
        for _ in range(600):
            if "waiting for the process that builds it" in caplog.text:
                break
            time.sleep(0.1)
        assert not (folder / "table.json").exists()
    waiting.join()
    assert results[0]["teacher_table"] == folder.name


def launch(job, *overrides):
    return Command(["scripts/train.py", *job, *overrides], merged=True)


def wait_until(there, process):
    for _ in range(6000):
        if there():
            return
        assert process.poll() is None, process.printed()
        time.sleep(0.01)
    raise AssertionError("it did not come so far")


def test_building_is_killed_and_goes_on(job, tmp_path):
    words = [*job, "data.crop_padding=2", "teacher.table=true"]
    train(words, tmp_path / "whole")
    folder = the_table(tmp_path)
    whole = (folder / "logits.bin").read_bytes()
    shutil.rmtree(folder)
    process = launch(words, f"run_dir={tmp_path / 'run'}")
    wait_until((folder / "table.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    record = json.loads((folder / "table.json").read_text())
    done = [place for place, checksum in enumerate(record["checksums"]) if checksum is not None]
    assert done
    assert len(done) == 25 or (folder / "lock.json").exists()
    _, weights = train(words, tmp_path / "run")
    assert (folder / "logits.bin").read_bytes() == whole
    assert same(weights, load_file(tmp_path / "whole" / "last.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("then", ["true", "false"])
def test_a_run_with_a_table_is_killed_and_goes_on_either_way(then, job, tmp_path):
    words = [*job, "distiller=ea_kd", "recipe.epochs=8"]
    _, expected = train(words, tmp_path / "whole", "teacher.table=false")
    process = launch(words, f"run_dir={tmp_path / 'run'}", "teacher.table=true")
    lines = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: lines.exists() and len(lines.read_text().splitlines()) > 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    summary, found = train(words, tmp_path / "run", f"teacher.table={then}")
    assert (summary["teacher_table"] == "none") == (then == "false")
    assert same(expected, found)


@pytest.mark.gpu
def test_on_a_gpu_a_run_keeps_to_what_it_began_with(job, tmp_path, caplog):
    caplog.set_level("INFO")
    words = [*job, "device=cuda", "recipe.epochs=3"]
    with_table, _ = train(words, tmp_path / "with", "teacher.table=true")
    assert with_table["teacher_table"] == the_table(tmp_path).name
    for began, then, allowed in (("false", "auto", True), ("true", "false", False)):
        folder = tmp_path / f"{began}-{then}"
        train(words, folder, f"teacher.table={began}")
        (folder / "summary.json").unlink()  # as if it had been stopped
        (folder / "status.json").unlink()
        if allowed:
            assert train(words, folder, f"teacher.table={then}")[0]["teacher_table"] == "none"
            assert "teacher.table: not used, this run began without" in caplog.text
        else:
            with pytest.raises(UserError, match=r"^teacher_table: found none"):
                train(words, folder, f"teacher.table={then}")
