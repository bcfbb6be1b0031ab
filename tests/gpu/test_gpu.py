"""What only a GPU can show: ``pytest -m gpu``, and with the benchmark ``scripts/gpu_check.sh``."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from steps import BATCH, COUNT, METHODS, method_of, pipeline

from eakd.benchmark.loops import our_loop, random_images
from eakd.benchmark.timing import peak_memory
from eakd.classification import Classification
from eakd.composing import compose
from eakd.data import Pipeline, digits
from eakd.data.randaugment import randaugment
from eakd.distillers import KD
from eakd.distillers.base import Progress
from eakd.errors import Interrupted
from eakd.models import resnet8, resnet14
from eakd.training import Compute, Recipe, RunRecord, fit
from eakd.training.meters import Meters
from eakd.training.optimizer import make_optimizer
from eakd.training.reading import read_metrics
from eakd.training.run import build_compute, run
from eakd.training.table import placed
from eakd.weighting import Weighting

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Words of a run of ten epochs, with its teacher."""
    root = tmp_path_factory.mktemp("gpu")
    words = [f"output_root={root / 'outputs'}", f"checkpoint_root={root / 'checkpoints'}"]
    words += ["device=cuda", "teacher=resnet14", "recipe.epochs=10", "data.train_per_class=40"]
    run(compose([*words, "student=resnet14", "distiller=none", "save_teacher=true"]))
    return [*words, "distiller=ea_kd"]


def curve(job, folder, *words):
    """Training loss after each epoch, and the run's summary."""
    summary = run(compose([*job, *words, f"run_dir={folder}"]))
    return [line["train_loss"] for line in read_metrics(folder)], summary


@pytest.mark.parametrize(
    ("words", "tolerance"),
    [
        (["precision=float32", "channels_last=true"], 0.05),
        (["precision=bf16", "channels_last=false"], 0.1),
        (["precision=bf16", "channels_last=true"], 0.1),
    ],
    ids=["channels_last", "bf16", "both"],
)
def test_fast_settings_learn_as_float32_does(words, tolerance, job, tmp_path):
    """Rounding grows with the steps: the first epoch closely, the whole curve in the mean."""
    plain, _ = curve(job, tmp_path / "plain", "precision=float32", "channels_last=false")
    fast, _ = curve(job, tmp_path / "fast", *words)
    assert fast[0] == pytest.approx(plain[0], rel=tolerance / 2)
    assert sum(fast) == pytest.approx(sum(plain), rel=tolerance)
    assert fast[-1] < 0.7 * fast[0]


def test_a_table_on_the_device_answers_as_the_teacher_does(job, tmp_path):
    asked, summary = curve(job, tmp_path / "asked", "teacher.table=false")
    known, with_table = curve(job, tmp_path / "known", "teacher.table=true")
    assert summary["teacher_table"] == "none" != with_table["teacher_table"]
    assert known[0] == pytest.approx(asked[0], rel=0.02)
    assert sum(known) == pytest.approx(sum(asked), rel=0.1)
    assert placed(torch.zeros(9, 3), torch.device("cuda")).device.type == "cuda"


class Stopping(KD):
    """Is told to stop in the middle of the second epoch, once."""

    told = False

    def forward(self, batch, progress):
        if (progress.epoch, progress.step) == (2, 3) and not Stopping.told:
            Stopping.told = True
            signal.raise_signal(signal.SIGTERM)
        return super().forward(batch, progress)


def test_stopped_and_continued_bit_for_bit(tmp_path, monkeypatch):
    """With deterministic kernels; the default lets cuDNN choose by speed."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    compute = Compute(torch.device("cuda"), "float32")
    recipe = Recipe(epochs=4, batch_size=16, lr=0.05, milestones=[])

    def train(kind, folder):
        torch.manual_seed(0)
        networks = [compute.place(network(10)) for network in (resnet8, resnet14)]
        data = Pipeline(
            digits(), batch_size=16, device="cuda", seed=1, mean=[0.5] * 3, std=[0.25] * 3
        )
        with RunRecord(folder, {}) as record:
            fit(kind(*networks, Weighting("ea")), data, recipe, compute, record, progress=False)

    try:
        train(KD, tmp_path / "whole")
        with pytest.raises(Interrupted):
            train(Stopping, tmp_path / "stopped")
        assert not (tmp_path / "stopped" / "summary.json").exists()
        train(KD, tmp_path / "stopped")
    finally:
        torch.use_deterministic_algorithms(before)
    whole, stopped = (load_file(tmp_path / n / "last.safetensors") for n in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits_for_the_device(name, precision):
    """The first step, which sets things up, may; what reads the batches is the pipeline's."""
    compute, recipe = Compute(torch.device("cuda"), precision), Recipe(epochs=2, batch_size=BATCH)
    view = randaugment if name.startswith("mld") else None
    data = pipeline("cuda", strong_view=view)
    method = method_of(name, "cuda", Weighting("ea"))
    optimizer = make_optimizer(method, recipe, compute)
    task, meters = Classification(), Meters(compute.device, COUNT)
    modes = iter(["default", "error", "error"])
    try:
        for step, batch in enumerate(list(data.epoch(1))):
            torch.cuda.set_sync_debug_mode(next(modes))
            with compute.autocast():
                now = Progress(seed=0, epoch=1, step=step)
                terms = method(batch, now)
                total = method.total(terms, now)
            total.loss.backward()
            measured = task.measure(batch, terms)
            meters.update(step, batch.index, terms, total, measured, data.step_size(step))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    meters.check_finite(1, last_good=None)
    assert meters.seen == COUNT


def test_weights_cost_a_step_no_memory():
    words = ["teacher=resnet32x4", "student=resnet8x4", "steps=10", "device=cuda"]
    config = compose(words, "benchmark")
    compute, data = build_compute(config), random_images(config, steps=4)
    plain, ea = (
        peak_memory(our_loop(config, data, compute, Weighting(kind)), compute)
        for kind in ("uniform", "ea")
    )
    assert 0 < ea <= 1.1 * plain  # cuDNN tries kernels with more or less memory
