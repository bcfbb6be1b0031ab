"""EA-KD for users of `transformers.Trainer`: the same loss, their loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.language.batches import Batch, collate
from eakd.language.distillers import SequenceKD
from eakd.language.models import check_same_tokens, check_vocabulary, load_model, load_tokenizer
from eakd.language.text import Row
from eakd.weighting import Weighting


class EAKDTrainer(Trainer):
    """A `transformers.Trainer` whose loss is `SequenceKD`'s.

    Only the loss is replaced: batches, accumulation, devices, logging and checkpoints are the
    Trainer's. Its divisor is ``num_items_in_batch``, the answer tokens of the whole step, so that
    accumulation changes nothing. The readings that need more of a step than a micro-batch are not
    offered: ``level="sequence_mean"``, and the weighting ``matched``.

    Args:
        model: the student, or its directory.
        teacher_model: frozen, or its directory.
        train_dataset: `Row` objects, as `load_rows` returns them, or dictionaries with
            ``prompt_ids`` and ``response_ids``.
        weighting, divergence, temperature, ce_weight, kd_weight, level: of `SequenceKD`.
        processing_class: the tokenizer; by default the student's directory's.
        **arguments: of `transformers.Trainer`.

    Raises:
        UserError: a wrong value, or models with different tokenizers.
    """

    def __init__(
        self,
        model: nn.Module | str,
        teacher_model: nn.Module | str,
        *,
        weighting: Weighting | None = None,
        divergence: str = "forward_kl",
        temperature: float = 2.0,
        ce_weight: float = 0.5,
        kd_weight: float = 0.5,
        level: str = "sequence",
        processing_class: Any = None,
        **arguments: Any,
    ):
        if level == "sequence_mean" or getattr(weighting, "kind", "") == "matched":
            raise UserError(
                "level, weighting: found one that needs the whole step, allowed in a Trainer is "
                "sequence, token_mean or token, and any weighting but matched"
            )
        tokenizer = processing_class
        if tokenizer is None and isinstance(model, str):
            tokenizer = load_tokenizer(model, "model")
        if tokenizer is not None and isinstance(teacher_model, str):
            check_same_tokens(tokenizer, load_tokenizer(teacher_model, "teacher_model"))
        student, teacher = (
            load_model(each, key) if isinstance(each, str) else each
            for each, key in ((model, "model"), (teacher_model, "teacher_model"))
        )
        for network, role in ((student, "model"), (teacher, "teacher_model")):
            if tokenizer is not None:
                check_vocabulary(network, tokenizer, role)
        arguments.setdefault("data_collator", gather_rows)
        super().__init__(model=student, processing_class=tokenizer, **arguments)
        # Rows are no dictionaries of a model's arguments, and nothing of them is to be dropped.
        self.args.remove_unused_columns = False
        self.model_accepts_loss_kwargs = True  # num_items_in_batch is wanted
        self.loss_is_scaled_for_ga = True  # and divides the loss already
        self.method = SequenceKD(
            student,
            teacher.to(self.args.device),
            weighting,
            divergence,
            temperature,
            ce_weight,
            kd_weight,
            level=level,
            vocabulary=None if tokenizer is None else len(tokenizer),
        )
        self._weights: list[Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The step's share of the loss; see `transformers.Trainer`."""
        batch = batch_of(inputs)
        if num_items_in_batch is not None:
            batch = batch._replace(count=int(num_items_in_batch))
        self.method.student = self.accelerator.unwrap_model(model)
        now = Progress(self.args.seed, int(self.state.epoch or 0) + 1, self.state.global_step)
        terms = self.method(batch, now)
        total = self.method.total(terms, now)
        if total.weight is not None and model.training:
            self._weights.append(total.weight.detach())
        return (total.loss, {"loss": total.loss}) if return_outputs else total.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With the mean and the standard deviation of the weights since the last time."""
        if self._weights and "loss" in logs:
            weights = torch.cat(self._weights)
            logs = {
                **logs,
                "weight_mean": weights.mean().item(),
                "weight_std": weights.std(correction=0).item(),
            }
            self._weights = []
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss alone: logits of all tokens are too large to keep."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def gather_rows(rows: Sequence[Any]) -> dict[str, Any]:
    """A collator: a `Batch` as the dictionary that a Trainer moves and counts.

    Its ``labels`` have an entry other than -100 for each answer token: what a Trainer counts.
    """
    found = [
        each if isinstance(each, Row) else Row(*_ids(each), ("",), "", place)
        for place, each in enumerate(rows)
    ]
    batch = collate(found, range(len(found)))
    tensors = {name: getattr(batch, name) for name in ("tokens", "places", "targets", "row")}
    return {**tensors, "index": batch.index, "labels": batch.targets}


def batch_of(inputs: Mapping[str, Any]) -> Batch:
    """The `Batch` behind `gather_rows`."""
    lengths = tuple(inputs["row"].bincount(minlength=len(inputs["index"])).tolist())
    tensors = (inputs[name] for name in ("tokens", "places", "targets", "row"))
    return Batch(*tensors, lengths, inputs["index"], sum(lengths), len(lengths))


def _ids(row: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    try:
        return tuple(row["prompt_ids"]), tuple(row["response_ids"])
    except (KeyError, TypeError) as error:
        raise UserError(
            "train_dataset: found a row without prompt_ids and response_ids, allowed are rows of "
            "eakd.language.load_rows"
        ) from error
