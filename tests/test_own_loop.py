"""What a training loop of one's own takes from the package: losses, accuracy, constants."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient

import eakd
import eakd.data
from eakd import accuracy, curriculum_temperature, dkd_loss, kd_loss, mld_losses, standardize
from eakd.config import CONFIGS
from eakd.data.base import Batch
from eakd.detection.faster_rcnn import MEAN, STD
from eakd.distillers import CTKD, DKD, KD, MLD, Progress
from eakd.distillers.ctkd import cosine_lambda
from eakd.errors import UserError
from eakd.models.base import Output

NOTEBOOK = Path(__file__).parents[1] / "docs" / "own-loop.ipynb"


def text_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if "text" in output)


@pytest.mark.slow
def test_the_notebook_runs_and_agrees_with_fit(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    text = text_of(notebook)
    assert "largest difference of any weight: 0.0\n" in text
    means = dict(re.findall(r"^(uniform|ea|matched|shuffled) +([\d.]+) ", text, re.M))
    assert means["ea"] == means["matched"] == means["shuffled"] != means["uniform"]
    assert "instance_weak    (16,)" in text
    reached = re.findall(r"^(teacher|EA-KD|EA-DKD): top-1 (\d+) %", text, re.M)
    assert len(reached) == 3 and all(float(top1) > 60 for _, top1 in reached)
    assert list(tmp_path.iterdir()) == []


class Fixed(torch.nn.Module):
    """A network that answers with given logits, one row for each image."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, images, features=True):
        # The pixel says which row: views may come together.
        return Output(self.logits[images[:, 0, 0, 0].long()], [], [], images)


@pytest.fixture
def fixed():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(12, 5, generator=generator) for _ in range(2))
    rows = torch.arange(12).float()[:, None, None, None].expand(12, 3, 1, 1)
    batch = Batch(rows[:6], torch.arange(6) % 5, torch.arange(6), rows[6:])
    return student, teacher, batch


def terms_of(method, fixed, epoch=30, **options):
    student, teacher, batch = fixed
    return method(Fixed(student), Fixed(teacher), **options)(batch, Progress(0, epoch, 0))


@pytest.mark.parametrize("standard", [False, True], ids=["raw", "ls"])
def test_functions_are_what_the_methods_compute(fixed, standard):
    student, teacher, batch = fixed
    pair, raw = (student[:6], teacher[:6]), (student[:6], teacher[:6])
    strong = raw_strong = student[6:], teacher[6:]
    if standard:
        pair, strong = (tuple(map(standardize, each)) for each in (pair, strong))
    terms = terms_of(KD, fixed, kd_weight=1.0, standardize=standard)
    torch.testing.assert_close(terms["kd"], kd_loss(*pair, 4.0))

    terms = terms_of(DKD, fixed, alpha=1.5, beta=3.0, standardize=standard)
    found = dkd_loss(*pair, batch.targets, 4.0, alpha=1.5, beta=3.0)
    torch.testing.assert_close(terms["tckd"] + terms["nckd"], found)
    assert found.shape == (6,)

    terms = terms_of(MLD, fixed, kd_weight=1.0, standardize=standard)
    found = mld_losses(raw, raw_strong, compared=(pair, strong) if standard else None)
    names = ("instance_weak", "instance_strong", "batch", "class")
    for name, part in zip(names, found, strict=True):
        torch.testing.assert_close(terms[name], part)
    assert [part.shape for part in found] == [(6,), (6,), (), ()]


def test_the_temperature_of_ctkd_learns_as_in_the_method(fixed):
    student, teacher, batch = fixed
    method = CTKD(Fixed(student), Fixed(teacher), kd_weight=1.0)
    term = method(batch, Progress(0, 3, 0))["kd"]
    term.mean().backward()
    theta = torch.nn.Parameter(torch.tensor(1.0))
    temperature = curriculum_temperature(theta, cosine_lambda(3))
    own = kd_loss(student[:6], teacher[:6], temperature)
    own.mean().backward()
    torch.testing.assert_close(term, own)
    torch.testing.assert_close(theta.grad, method.theta.grad)
    assert theta.grad != 0 and temperature.item() == pytest.approx(1 + 20 / (1 + 2.718281828**-1))


def test_an_unknown_variant_of_mld_is_named(fixed):
    student, teacher, _ = fixed
    with pytest.raises(UserError, match="variant: found 'other', allowed is one of published"):
        mld_losses((student, teacher), (student, teacher), variant="other")


def test_accuracy():
    logits = torch.tensor([[3.0, 2, 1, 0], [0, 3, 2, 1], [1, 0, 3, 2], [0, 1, 2, 3]])
    top1, top2, top9 = accuracy(logits.requires_grad_(), torch.tensor([0, 2, 1, 3]), topk=(1, 2, 9))
    assert (top1, top2, top9) == (50.0, 75.0, 100.0) and not top1.requires_grad
    assert accuracy(logits, torch.tensor([0, 2, 1, 3])).tolist() == [50.0, 100.0]
    for wrong, targets, topk in (
        (logits[0], torch.tensor([0]), (1,)),
        (logits, torch.tensor([0]), (1,)),
        (logits[:0], torch.tensor([], dtype=torch.long), (1,)),
        (logits, torch.tensor([0, 2, 1, 3]), (0,)),
    ):
        with pytest.raises(UserError, match="allowed"):
            accuracy(wrong, targets, topk)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
        ("tiny_imagenet", "TINY_IMAGENET"),
        ("image_folder", "IMAGENET"),
        ("digits", "DIGITS"),
        ("digits_pool", "DIGITS"),
    ],
)
def test_constants_are_those_of_the_configs(file, name):
    node = yaml.safe_load((CONFIGS / "data" / f"{file}.yaml").read_text(encoding="utf-8"))
    for key in ("mean", "std"):
        constant = getattr(eakd.data, f"{name}_{key.upper()}")
        assert list(constant) == node[key] and isinstance(constant, tuple)
    if name == "IMAGENET":
        assert (MEAN, STD) == (eakd.data.IMAGENET_MEAN, eakd.data.IMAGENET_STD)


def test_every_public_name_is_there_and_needs_no_command_line():
    for name in eakd.__all__:
        assert getattr(eakd, name) is not None
    code = (
        "import sys; from eakd import accuracy, kd_loss, dkd_loss, mld_losses, standardize;"
        "sys.exit(any(m in sys.modules for m in ('hydra', 'wandb', 'timm', 'lightning')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
