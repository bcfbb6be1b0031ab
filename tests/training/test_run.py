"""Real runs: what they leave, how they continue, and what they refuse."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import Command
from safetensors import safe_open
from safetensors.torch import load_file

from eakd.classification import build as build_module
from eakd.composing import compose
from eakd.errors import Diverged, UserError
from eakd.training.run import run
from eakd.training.sample_values import sample_file

ROOT = Path(__file__).parents[2]


def train(*overrides):
    return run(compose(list(overrides)))


def launch(*overrides):
    return Command(["scripts/train.py", *overrides], merged=True)


def wait_for(path, lines, process):
    """Until ``path`` has that many lines."""
    for _ in range(600):
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        assert process.poll() is None, process.printed()
        time.sleep(0.1)
    raise AssertionError(f"{path} did not reach {lines} lines")


def test_a_run_leaves_everything_that_is_promised(tiny_with_teacher, tmp_path):
    config = compose([*tiny_with_teacher, "distiller=ea_kd", f"run_dir={tmp_path}"])
    summary = run(config)
    assert {p.name for p in tmp_path.iterdir()} == {
        ".hydra",
        *("config.json", "environment.json", "status.json", "metrics.jsonl", "summary.json"),
        *("dynamics.jsonl", "last.pt", "last.safetensors", "best.safetensors", "snapshots"),
    }
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert summary["method"] == "ea_kd" and summary["selection"] == "test"
    assert summary["top1_best"] >= summary["top1_last"] > 0 and summary["teacher_top1"] > 0
    assert summary["seconds"] >= summary["train_seconds"] > 0
    assert summary["peak_memory_bytes"] > 0 and summary["samples_per_second"] > 0
    assert summary["environment"]["torch"] == torch.__version__

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        total = line["train_loss_ce"] + line["train_loss_kd"] * line["weight_mean"]
        assert line["train_loss"] == pytest.approx(total, rel=0.5)
        assert 0 < line["weight_mean"] < 2.31 and line["weight_std"] >= 0
        assert 0 < line["share_low_entropy"] < 1 and 0 < line["share_high_entropy"] < 1
    assert lines[-1]["test_top1"] == summary["top1_last"]
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert float(file.metadata()["test_top1"]) == summary["top1_last"]


def test_the_teacher_is_in_no_checkpoint(tiny_with_teacher, tmp_path):
    train(*tiny_with_teacher, "teacher=resnet8", "student=resnet8", f"run_dir={tmp_path}")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(name.startswith("student.") for name in state["distiller"])
    assert set(load_file(tmp_path / "last.safetensors")) == {
        name.removeprefix("student.") for name in state["distiller"]
    }


def test_a_finished_run_is_not_run_twice(tiny_with_teacher, tmp_path):
    arguments = [*tiny_with_teacher, f"run_dir={tmp_path}"]
    first = train(*arguments)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert train(*arguments) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == stamps
    again = train(*arguments, "resume=false")
    assert again["top1_last"] == first["top1_last"]  # deterministic on a CPU
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_lost_teacher_comes_back_without_training(tiny, tmp_path):
    folder = tmp_path / "checkpoints"
    job = [*tiny, "distiller=none", "save_teacher=true", f"checkpoint_root={folder}"]
    train(*job)
    (saved,) = folder.glob("digits/*.safetensors")
    content = saved.read_bytes()
    saved.unlink()
    train(*job)
    assert saved.read_bytes() == content


def test_uniform_weighting_is_the_plain_method_and_seeds_differ(tiny_with_teacher, tmp_path):
    def weights(name, *overrides):
        train(*tiny_with_teacher, f"run_dir={tmp_path / name}", *overrides)
        return load_file(tmp_path / name / "last.safetensors")["conv1.weight"]

    plain = weights("plain")
    assert torch.equal(plain, weights("uniform", "distiller=ea_kd", "weighting=uniform"))
    assert not torch.equal(plain, weights("ea", "distiller=ea_kd"))
    assert not torch.equal(plain, weights("seed", "seed=1"))


@pytest.fixture(scope="module")
def undisturbed(tiny_with_teacher, tmp_path_factory):
    """The words of a run of twelve epochs, and where it was left in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    common = [*tiny_with_teacher, "distiller=ea_kd", "recipe.epochs=12", "threads=1"]
    common.append("record.samples=all")
    train(*common, f"run_dir={folder}")
    return common, folder


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopping_and_continuing_changes_nothing(undisturbed, tmp_path, kill):
    """SIGKILL loses the epoch under way, the others save within it; the weights are the same."""
    common, undisturbed = undisturbed
    stopped = tmp_path / "stopped"
    process = launch(*common, f"run_dir={stopped}")
    wait_for(stopped / "metrics.jsonl", 3, process)
    time.sleep(int.from_bytes(os.urandom(1), "big") / 1000)  # anywhere within an epoch
    process.send_signal(kill)
    output, _ = process.communicate(timeout=60)
    if not (stopped / "summary.json").exists():
        expected = -kill if kill == signal.SIGKILL else 128 + kill
        assert process.returncode == expected, output
        if kill != signal.SIGKILL:
            assert "the same command continues the run" in output
            assert json.loads((stopped / "status.json").read_text())["state"] == "interrupted"
        process = launch(*common, f"run_dir={stopped}")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert "continuing after epoch" in output

    weights = [path.relative_to(stopped) for path in stopped.rglob("*.safetensors")]
    assert len(weights) == 4  # last, best, and snapshots after two and six epochs
    for name in weights:
        whole, continued = (load_file(folder / name) for folder in (undisturbed, stopped))
        assert all(torch.equal(whole[key], continued[key]) for key in whole), name
    for epoch in range(1, 13):
        whole, continued = (sample_file(folder, epoch) for folder in (undisturbed, stopped))
        assert whole.read_bytes() == continued.read_bytes()
    for name in ("metrics.jsonl", "dynamics.jsonl"):
        expected, found = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for folder in (undisturbed, stopped)
        )
        for line in (*expected, *found):
            line.pop("train_seconds", None), line.pop("samples_per_second", None)
        assert expected == found and [line["epoch"] for line in found] == list(range(1, 13))


def test_a_damaged_last_checkpoint_falls_back(tiny_with_teacher, tmp_path, caplog):
    common = [*tiny_with_teacher, "recipe.epochs=4", f"run_dir={tmp_path / 'run'}"]
    whole = train(*common, f"run_dir={tmp_path / 'whole'}")
    process = launch(*common)
    wait_for(tmp_path / "run" / "metrics.jsonl", 2, process)
    process.kill()
    process.communicate()
    last = tmp_path / "run" / "last.pt"
    # Not when it was killed between the two renames of a save.
    if last.exists() and (tmp_path / "run" / "previous.pt").exists():
        last.write_bytes(last.read_bytes()[:1000])
        assert train(*common)["top1_last"] == whole["top1_last"]
        assert "continuing from" in caplog.text


def test_divergence_names_the_batch_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    arguments = [*tiny, "distiller=none", "recipe.epochs=3", f"run_dir={tmp_path}"]
    with pytest.raises(Diverged, match=r"non-finite value in epoch \d, batch \d+ \(term ce\)"):
        train(*arguments, "recipe.lr=1e30")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "diverged"
    assert not (tmp_path / "summary.json").exists()
    if (tmp_path / "last.pt").exists():
        state = torch.load(tmp_path / "last.pt", weights_only=True)
        assert all(value.isfinite().all() for value in state["distiller"].values())


def test_validation_split_selects(tiny, tmp_path):
    summary = train(*tiny, "distiller=none", "data.val_fraction=0.25", f"run_dir={tmp_path}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    chosen = max(lines, key=lambda line: line["val_top1"])
    assert summary["selection"] == "val"
    assert summary["top1_best_epoch"] == chosen["epoch"]
    assert summary["top1_best"] == chosen["test_top1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distiller.temperature=-1"], "distiller.temperature: found -1"),
        (["weighting=ea", "weighting.entropy_temperature=0"], "weighting.entropy_temperature"),
        (["recipe.epochs=-1"], "recipe.epochs: found -1"),
        (["recipe.batch_size=0"], "recipe.batch_size: found 0"),
        (["recipe.lr=fast"], "recipe.lr: found 'fast'"),
        (["seed=-1"], "seed: found -1"),
        (["device=tpu9"], "device: found 'tpu9'"),
        (["precision=fp8"], "precision: found 'fp8', allowed is one of auto, bf16, float32"),
        (["data.val_fraction=2"], "data.val_fraction: found 2"),
        (["data.num_classes=100"], "data.num_classes: found 100, allowed is 10"),
        (["teacher.checkpoint=nowhere.pth"], "teacher.checkpoint: found no file 'nowhere.pth'"),
        (["teacher=resnet56"], "student=resnet56 distiller=none save_teacher=true"),
        (["distiller=mld", "recipe.strong_view=none"], "recipe.strong_view: found none, allowed"),
        (["recipe.strong_view=cutout"], "recipe.strong_view: found 'cutout', allowed is one of"),
    ],
)
def test_refusals_name_the_key_and_write_nothing(tiny_with_teacher, tmp_path, overrides, words):
    target = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        train(*tiny_with_teacher, f"run_dir={target}", *overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not target.exists()


def test_a_method_gets_the_second_view_and_the_teacher_it_needs(
    tiny_with_teacher, tmp_path, monkeypatch
):
    seen, randaugment = [], build_module.STRONG_VIEWS["randaugment"]
    build, load = build_module.Pipeline, build_module.load_teacher

    def pipeline(*args, strong_view, **kwargs):
        seen.append(strong_view)
        return build(*args, strong_view=strong_view, **kwargs)

    def teacher(model, path, data, compute, fold, *args, **kwargs):
        seen.append(fold)
        return load(model, path, data, compute, fold, *args, **kwargs)

    monkeypatch.setattr(build_module, "Pipeline", pipeline)
    monkeypatch.setattr(build_module, "load_teacher", teacher)
    for position, (overrides, expected) in enumerate(
        [
            (["distiller=kd"], [None, True]),
            (["distiller=kd", "fold_batchnorm=false"], [None, False]),
            (["distiller=mld"], [randaugment, True]),
            (["distiller=kd", "recipe.strong_view=randaugment"], [randaugment, True]),
            (["distiller=ea_fcfd"], [None, False]),
        ]
    ):
        seen.clear()
        here = ["recipe.epochs=1", f"run_dir={tmp_path / str(position)}"]
        train(*tiny_with_teacher, *here, *overrides)
        assert seen == expected, overrides


def test_the_written_config_is_resolved(tiny_with_teacher, tmp_path):
    train(*tiny_with_teacher, "recipe.epochs=1", "distiller=ea_dkd", f"run_dir={tmp_path}")
    text = (tmp_path / ".hydra" / "config.yaml").read_text()
    assert "beta: 8.0" in text and "${" not in text


def test_a_teacher_of_another_architecture_or_class_count_is_refused(tiny_with_teacher, tmp_path):
    root = Path(next(o for o in tiny_with_teacher if o.startswith("checkpoint_root")).split("=")[1])
    weights = root / "digits" / "resnet8.safetensors"
    with pytest.raises(UserError, match=r"resnet8\.safetensors.*layer1\.1"):
        train(*tiny_with_teacher, "teacher=resnet20", f"teacher.checkpoint={weights}")
    other = tmp_path / "hundred.pth"
    state = load_file(weights)
    state["fc.weight"], state["fc.bias"] = torch.zeros(100, 64), torch.zeros(100)
    torch.save({"model": state}, other)
    with pytest.raises(UserError, match=r"hundred\.pth.*fc\.weight"):
        train(*tiny_with_teacher, f"teacher.checkpoint={other}")


def test_public_zoo_format_gives_the_same_teacher(tiny_with_teacher, tmp_path):
    root = Path(next(o for o in tiny_with_teacher if o.startswith("checkpoint_root")).split("=")[1])
    zoo = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"model": load_file(root / "digits" / "resnet8.safetensors"), "epoch": 240}, zoo)
    ours = train(*tiny_with_teacher, f"run_dir={tmp_path / 'a'}")
    zoos = train(*tiny_with_teacher, f"teacher.checkpoint={zoo}", f"run_dir={tmp_path / 'b'}")
    assert ours["teacher_top1"] == zoos["teacher_top1"]
    assert ours["top1_last"] == zoos["top1_last"]
