"""`EAKDTrainer` takes the steps that our own loss would take."""

import pytest
import torch

from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.language.batches import collate
from eakd.language.distillers import SequenceKD
from eakd.weighting import Weighting
from language.networks import gpt2, llama, rows

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def trainer(tmp_path, student, **settings):
    from eakd.language.trainer import EAKDTrainer

    arguments = transformers.TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        learning_rate=0.5,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    found = rows(12)
    return EAKDTrainer(student, llama(), args=arguments, train_dataset=list(found), **settings)


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_first_step_is_ours(tmp_path, level):
    """SGD without momentum: the step is the gradient, of three accumulated micro-batches."""
    student, start = gpt2(), gpt2()
    found = trainer(tmp_path, student, weighting=Weighting("ea"), level=level)
    found.train()
    method = SequenceKD(start, llama(), Weighting("ea"), level=level)
    batch = collate(list(rows(12)), range(12))
    total = method.total(method(batch, Progress(0, 1, 0)))
    total.loss.backward()
    for after, before in zip(student.parameters(), start.parameters(), strict=True):
        expected = -0.5 * before.grad
        assert (after - before - expected).norm() <= 1e-4 * expected.norm() + 1e-6
    (line,) = (line for line in found.state.log_history if "weight_mean" in line)
    assert line["weight_mean"] == pytest.approx(total.weight.mean().item(), rel=1e-5)
    assert line["loss"] == pytest.approx(total.loss.item(), rel=1e-3)
    assert not any("teacher" in name for name, _ in found.model.named_parameters())


def test_it_evaluates(tmp_path):
    student = gpt2()
    found = trainer(tmp_path, student, eval_dataset=list(rows(8)))
    assert found.evaluate()["eval_loss"] > 0
    with torch.no_grad():
        assert student.training is False


@pytest.mark.parametrize(
    "settings", [{"level": "sequence_mean"}, {"weighting": Weighting("matched")}]
)
def test_what_needs_the_whole_step_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match="found one that needs the whole step"):
        trainer(tmp_path, gpt2(), **settings)
