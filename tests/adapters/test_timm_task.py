"""`EAKDTask` in timm's loop: the losses are ours, everything else is timm's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from eakd import Weighting, kd_loss
from eakd.distillers import CTKD, MLD
from eakd.distillers.dkd import non_target_class_loss, target_class_loss
from eakd.errors import UserError
from eakd.weighting import ea_weight

pytest.importorskip("timm.task")

from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask

from eakd.adapters.timm_task import EAKDTask

SIZE, CLASSES = 32, 4


def network(seed):
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=CLASSES)


def batch(seed=0, count=6):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIZE, SIZE, generator=draw)
    return images, torch.randint(CLASSES, (count,), generator=draw)


def gradients(task, images, targets):
    task.trainable_module.train().zero_grad()
    found = task(images, targets)
    found["loss"].backward()
    return found, [p.grad.clone() for p in task.trainable_module.parameters()]


@pytest.mark.parametrize("weights", [{}, {"task_loss_weight": 0.3}, {"distill_loss_weight": 2.0}])
def test_uniform_kd_is_timms_own_task(weights):
    """The same losses and gradients, whatever the weights of the two losses."""
    made = {"criterion": LabelSmoothingCrossEntropy(0.1), "temperature": 3.0, **weights}
    ours = EAKDTask(network(1), network(2), method="kd", weighting="uniform", **made)
    timms = LogitDistillationTask(network(1), network(2), **made)
    (found, grads), (wanted, wanted_grads) = (gradients(t, *batch()) for t in (ours, timms))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(grads, wanted_grads, rtol=1e-4, atol=1e-6)
    assert found["weight"].tolist() == [1.0] * 6


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_the_weight_is_ea(method):
    settings = {"beta": 2.0, "warmup": 4} if method == "dkd" else {}
    task = EAKDTask(network(1), network(2), method=method, settings=settings)
    task.train()
    task.epoch = 2
    images, targets = batch()
    found = task(images, targets)
    logits, teacher = found["output"], task.teacher(images).detach()
    weight = ea_weight(logits, teacher)
    if method == "kd":
        losses = kd_loss(logits, teacher, 4.0)
    else:
        losses = target_class_loss(logits, teacher, targets) / 2
        losses = losses + non_target_class_loss(logits, teacher, targets)
    torch.testing.assert_close(found["weight"], weight)
    torch.testing.assert_close(found["kd_loss"], (weight * losses).mean())
    torch.testing.assert_close(found["task_loss"], F.cross_entropy(logits, targets))
    torch.testing.assert_close(found["loss"], found["task_loss"] + found["kd_loss"])
    assert not found["weight"].requires_grad


def test_two_steps_as_timms_loop_takes_them(tmp_path):
    """Its optimiser, averaged model, clipping, autocast and checkpoint around our task."""
    student, teacher = network(1), network(2)
    task = EAKDTask(student, teacher, weighting=Weighting("ea", 2.0), method="dkd_ls")
    before = [p.detach().clone() for p in student.parameters()]
    frozen = [p.detach().clone() for p in teacher.state_dict().values()]
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.1)
    task.setup_ema(decay=0.5)
    for step in range(2):
        task.epoch = 1
        task.train()
        with torch.autocast("cpu", torch.bfloat16):
            result = task(*batch(step))
        assert result["kd_loss"].dtype == torch.float32
        result["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step + 1)
    assert result["loss"].isfinite() and not teacher.training
    assert all(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    torch.testing.assert_close(frozen, list(teacher.state_dict().values()), rtol=0, atol=0)
    # What timm saves is the plain student, which timm opens.
    torch.save(task.get_checkpoint_state(), tmp_path / "last.pth.tar")
    again = timm.create_model(
        "test_resnet", num_classes=CLASSES, checkpoint_path=tmp_path / "last.pth.tar"
    )
    torch.testing.assert_close(again.state_dict(), student.state_dict())


def test_mixed_targets():
    """What mixup makes of labels has no target class, which KD does not need and DKD does."""
    images, targets = batch()
    mixed = 0.7 * F.one_hot(targets, CLASSES) + 0.3 / CLASSES
    made = {"criterion": SoftTargetCrossEntropy()}
    found = EAKDTask(network(1), network(2), **made)(images, mixed)
    assert found["loss"].isfinite()
    task = EAKDTask(network(1), network(2), method="dkd", **made)
    task.epoch = 1
    with pytest.raises(UserError, match=r"targets: found shape \(6, 4\), allowed is \(6,\)"):
        task(images, mixed)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "dkkd"}, "method: found 'dkkd', allowed is one of kd, .* nearest is kd or dkd"),
        ({"method": CTKD}, "method: found CTKD, allowed in timm's loop"),
        ({"method": MLD}, "method: found MLD, allowed in timm's loop"),
        ({"weighting": "ae"}, "weighting.kind: found 'ae', allowed is one of uniform"),
        ({"settings": {"beat": 2}, "method": "dkd"}, "settings.beat: .* nearest is beta"),
        ({"settings": {"kd_weight": 2}}, "settings.kd_weight: .* distill_loss_weight"),
        ({"settings": {"student": 2}}, "settings.student: found a key that KD does not take"),
        ({"temperature": 0}, "temperature: found 0, allowed is a number > 0"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(UserError, match=message):
        EAKDTask(nn.Identity(), "no teacher is asked for", **wrong)


def test_dkd_must_know_the_epoch():
    task = EAKDTask(network(1), network(2), method="dkd")
    with pytest.raises(UserError, match="epoch: found none"):
        task(*batch())


# A training script with the names of timm's.
SCRIPT = """
import sys, timm, torch
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from timm.task import TokenDistillationTask

def train_one_epoch(epoch, model, task=None):
    result = task(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    result["loss"].backward()
    print(type(task).__name__, task.epoch, task.method.beta, repr(task.method.weighting), model)

def main():
    student, teacher = (timm.create_model("test_resnet", num_classes=4) for _ in range(2))
    if "--kd-model-name" not in sys.argv:
        ClassificationTask(student)
    task = LogitDistillationTask(student_model=student, teacher_model=teacher, temperature=2.0)
    for epoch in range(2):
        train_one_epoch(epoch, " ".join(sys.argv[1:]), task=task)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def launch(monkeypatch, tmp_path):
    """Run the launcher in this process, in a folder with a ``train.py`` of some text."""
    from eakd.adapters import timm_train

    def start(words, text=SCRIPT):
        (tmp_path / "train.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", list(sys.argv))
        monkeypatch.setattr(sys, "path", list(sys.path))
        timm_train.main(words)

    return start


def test_the_launcher(launch, capsys):
    ours = ["--weighting", "matched", "--entropy-temperature", "2", "--method", "dkd"]
    launch(["train.py", *ours, "--set", "beta=2", "data", "--kd-model-name", "t"])
    told = "2 Weighting(matched, τ′=2, H_max=log C) data --kd-model-name t"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"EAKDTask {epoch} {told}" for epoch in (1, 2)]


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["nowhere.py"], SCRIPT, "error: nowhere.py: found no file"),
        (["train.py"], "import timm", "error: train.py: found no LogitDistillationTask in it"),
        (["train.py", "data"], SCRIPT, "error: --kd-model-name: found none"),
        (["train.py", "--set", "beta"], SCRIPT, "error: --set: found 'beta'"),
        (["train.py", "--method", "mld"], SCRIPT, "error: method: found 'mld'"),
    ],
)
def test_launching_mistakes_are_one_line(words, text, message, launch, capsys):
    with pytest.raises(SystemExit) as end:
        launch(words, text)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(message) and error.count("\n") == 1


def test_a_timm_without_tasks(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.task", None)  # as an import of what is not there
    monkeypatch.delitem(sys.modules, "eakd.adapters.timm_task")
    with pytest.raises(UserError, match=r"found version [\d.]+ without timm.task.* 1\.0\.27"):
        import eakd.adapters.timm_task  # noqa: F401


def test_timms_own_training_script(tmp_path):
    """Two steps of ``train.py`` itself, on images of two colours."""
    script = os.environ.get("EAKD_TIMM_TRAIN")
    if not script:
        pytest.skip("EAKD_TIMM_TRAIN is not set: no train.py of timm's")
    for split in ("train", "validation"):
        for colour in ("red", "blue"):
            folder = tmp_path / "data" / split / colour
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (SIZE, SIZE), colour).save(folder / f"{number}.png")
    teacher = tmp_path / "teacher"
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", num_classes=2), teacher, safe_serialization=True)
    words = [
        *(Path(script).resolve(), "--weighting", "ea", "--method", "dkd", "--set", "beta=2"),
        *("--data-dir", tmp_path / "data", "--num-classes", 2, "--model", "test_resnet"),
        *("--kd-model-name", f"local-dir:{teacher}", "--distill-loss-weight", 0.5),
        *("--input-size", 3, SIZE, SIZE, "--batch-size", 4, "--epochs", 1, "--warmup-epochs", 0),
        *("--cooldown-epochs", 0, "--workers", 0, "--device", "cpu", "--no-prefetcher"),
        *("--log-interval", 1, "--output", tmp_path / "output", "--experiment", "run"),
    ]
    command = [sys.executable, "-m", "eakd.adapters.timm_train", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "EAKDTask: DKD, Weighting(ea, τ′=3, H_max=log C)" in result.stderr
    assert "Train: 0 [   1/2 (100%)]" in result.stderr
    assert (tmp_path / "output" / "run" / "last.pth.tar").is_file()
