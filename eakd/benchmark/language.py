"""The loops that are timed with language models: fresh networks on the rows of a set of texts.

All of them see the same rows of a step: what is compared is what happens to them. So that networks
of any size can be timed without their weights, answers end by chance, see `ending`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from eakd.benchmark.loops import (
    EA,
    FLOAT32,
    LIMIT,
    OURS,
    PLAIN,
    STUDENT,
    TABLE,
    Block,
    Loop,
    passes_alone,
)
from eakd.benchmark.timing import peak_memory
from eakd.composing import compose
from eakd.config import needs_teacher
from eakd.distillers.base import Distiller, Progress
from eakd.language.batches import TextData
from eakd.language.build import build_data, check_role, load_data_rows, load_run_tokenizer
from eakd.language.cache import HiddenStates, hidden_states
from eakd.language.generate import Request, Sampling, generate, left_padded
from eakd.language.task import Language
from eakd.language.text import Row, Rows
from eakd.targets import build
from eakd.training.device import Compute
from eakd.training.loop import train_epoch
from eakd.training.meters import Meters
from eakd.training.optimizer import make_optimizer
from eakd.training.schedule import Recipe
from eakd.training.task import samples
from eakd.weighting import Weighting

LEAST_STEPS = 2  # which take seconds each
LACKS = ("methods",)

# Of the published scripts: rows of a backward pass, prompts that are answered together, and the
# length of runs of tokens that may not come twice.
PLAIN_ROWS, PLAIN_PROMPTS, PLAIN_NGRAM = 4, 32, 6
PROMPTS = 96  # that are answered for a measurement


def load_data(config: DictConfig) -> tuple[dict[str, Rows], Any]:
    """The rows of each split, and the tokenizer.

    Raises:
        UserError: a network that is no language model, or what `load_data_rows` refuses.
    """
    for role in ("student", *(["teacher"] if needs_teacher(config) else [])):
        check_role(config, role)
    source = build(config.data.load, "data", object)
    tokenizer = load_run_tokenizer(config, source)
    return load_data_rows(config, source, tokenizer), tokenizer


def build_loops(config: DictConfig, data: Any, compute: Compute) -> dict[str, Loop]:
    """Our loop, in float32 too, its EA form and the limit.

    Args:
        data: of `load_data`.
    """
    loops = {OURS: our_loop(config, data, compute, Weighting("uniform"))}
    if compute.precision != "float32":
        exact = replace(compute, precision="float32")
        loops[FLOAT32] = our_loop(config, data, exact, Weighting("uniform"))
    loops[EA] = our_loop(config, data, compute, Weighting("ea"))
    loops[LIMIT] = limit_loop(config, data, compute)
    return loops


def build_table_loops(config: DictConfig, data: Any, compute: Compute) -> dict[str, Loop]:
    """Our loop with the teacher's hidden states known, our loop, and a student alone."""
    alone = config.copy()
    alone.distiller = compose(["distiller=language/sft"], "benchmark").distiller
    return {
        TABLE: our_loop(config, data, compute, Weighting("uniform"), table=True),
        OURS: our_loop(config, data, compute, Weighting("uniform")),
        STUDENT: limit_loop(alone, data, compute),
    }


def make_recipe(config: DictConfig) -> Recipe:
    """DSKD's optimiser; an epoch of ``config.steps`` steps, at a rate that moves little."""
    sizes = {"epochs": 1, "batch_size": config.batch_size, "steps_per_epoch": config.steps}
    return Recipe(**sizes, lr=1e-5, optimizer="adamw", weight_decay=0.01, clip_norm=1.0)


def build_networks(
    config: DictConfig, tokenizer: Any, compute: Compute
) -> tuple[nn.Module | None, nn.Module]:
    """Teacher, if the method has one, and student, as their files build a student."""
    torch.manual_seed(config.seed)
    student = build(config.student, "student", nn.Module, tokenizer=tokenizer)
    teacher = None
    if needs_teacher(config):
        teacher = build(config.teacher, "teacher", nn.Module, tokenizer=tokenizer)
        # In the precision of the run, as a run loads it.
        teacher = teacher.to(compute.device, compute.dtype).eval().requires_grad_(False)
    return teacher, student.to(compute.device)


def build_method(
    config: DictConfig, data: Any, compute: Compute, weighting: Weighting
) -> tuple[Distiller, TextData, Recipe, torch.optim.Optimizer]:
    """The method around fresh networks, its batches, a recipe and its optimiser."""
    rows, tokenizer = data
    recipe = make_recipe(config)
    teacher, student = build_networks(config, tokenizer, compute)
    parts = {"student": student, "teacher": teacher, "weighting": weighting}
    parts["vocabulary"] = len(tokenizer)
    distiller = build(config.distiller, "distiller", Distiller, **parts)
    distiller.train()
    batches = build_data(config, rows, recipe, compute)
    return distiller, batches, recipe, make_optimizer(distiller, recipe, compute)


def our_loop(
    config: DictConfig, data: Any, compute: Compute, weighting: Weighting, table: bool = False
) -> Loop:
    """`train_epoch` exactly as `fit` calls it.

    Args:
        table: the teacher's hidden states are known, as from a table of them.
    """
    task = Language()
    distiller, batches, recipe, optimizer = build_method(config, data, compute, weighting)
    if table:
        batches.hidden = _ask(distiller, batches, compute)
    while True:
        meters = Meters(compute.device, samples(batches))
        # The first epoch again and again: a table of few rows is made quickly.
        progress = Progress(config.seed, 1, step=0)
        for _ in train_epoch(
            task, distiller, batches, recipe, compute, optimizer, meters, progress
        ):
            yield


def _ask(distiller: Distiller, data: TextData, compute: Compute) -> HiddenStates:
    """Hidden states of the rows of an epoch; those of others are not there."""
    lengths = [len(row.response_ids) for row in data.train]
    starts = list(itertools.accumulate(lengths, initial=0))
    states: Tensor | None = None
    with torch.no_grad(), compute.autocast():
        for batch in itertools.chain.from_iterable(data.epoch(1)):
            found = hidden_states(distiller.teacher, batch)
            if states is None:  # never written where no step reads: it takes no memory there
                states = found.new_empty(starts[-1], found.shape[1])
            for row, part in zip(
                batch.index.tolist(), found.split(list(batch.lengths)), strict=True
            ):
                states[starts[row] : starts[row + 1]] = part
    return HiddenStates(states, starts)


def limit_loop(config: DictConfig, data: Any, compute: Compute) -> Loop:
    """The method's network passes alone, on the batches of one step; see `loops.limit_loop`."""
    distiller, batches, _, optimizer = build_method(config, data, compute, Weighting("uniform"))
    yield from passes_alone(distiller, optimizer, next(batches.epoch(1)), compute, config)


def plain_loop(config: DictConfig, compute: Compute) -> Block:
    """Blocks of `plain_steps`."""
    steps = plain_steps(config, load_data(config), compute)

    def block() -> float:
        began = time.perf_counter()
        for _ in range(config.steps):
            next(steps)
        return time.perf_counter() - began

    return block


def plain_steps(config: DictConfig, data: Any, compute: Compute) -> Loop:
    """KD in float32, put together as the published language code is.

    Four rows at a time, padded to ``data.max_length``; logits of all positions from both networks;
    softmax, logarithms, product and masks one by one; numbers are read at every step.
    """
    rows, tokenizer = data
    compute = replace(compute, precision="float32")
    recipe = make_recipe(config)
    teacher, student = build_networks(config, tokenizer, compute)
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, weight_decay=0.01)
    train = build_data(config, rows, recipe, compute)
    while True:
        for chosen in train.step_rows(epoch=1):  # the rows of our loop
            step = [train.train[i] for i in chosen]
            count = sum(len(row.response_ids) for row in step)
            for start in range(0, len(step), PLAIN_ROWS):
                few = step[start : start + PLAIN_ROWS]
                tokens, labels = padded(few, config.data.max_length, tokenizer.eos_token_id)
                tokens, labels = tokens.to(compute.device), labels.to(compute.device)
                loss = plain_loss(student, teacher, tokens, labels) / count
                loss.backward()
                loss.item()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield


def padded(rows: list[Row], length: int, filler: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels ``(N, length - 1)``; −100 where there is no loss."""
    tokens = torch.full((len(rows), length - 1), filler)
    labels = torch.full((len(rows), length - 1), -100)
    for i, row in enumerate(rows):
        ids = torch.tensor([*row.prompt_ids, *row.response_ids])
        first = len(row.prompt_ids) - 1
        tokens[i, : len(ids) - 1] = ids[:-1]
        labels[i, first : len(ids) - 1] = ids[first + 1 :]
    return tokens, labels


def plain_loss(
    student: nn.Module, teacher: nn.Module | None, tokens: Tensor, labels: Tensor
) -> Tensor:
    """Half cross-entropy, half forward KL at τ = 2, summed over the labels."""
    logits = student(input_ids=tokens, use_cache=False).logits
    ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    if teacher is None:
        return ce
    with torch.no_grad():
        others = teacher(input_ids=tokens, use_cache=False).logits
    p = (others / 2).softmax(-1)
    difference = (others / 2).log_softmax(-1) - (logits / 2).log_softmax(-1)
    divergence = (p * difference).sum(-1)
    return 0.5 * ce + 0.5 * divergence.masked_fill(labels == -100, 0.0).sum()


def memory(config: DictConfig, data: Any, compute: Compute) -> dict[str, int]:
    """Bytes of tensors at the worst moment of one step, without the two networks' weights."""
    teacher, student = build_networks(config, data[1], compute)
    weights = {
        precision: sum(
            p.numel() * (p.element_size() if precision == compute.precision else 4)
            for model in (teacher, student)
            if model is not None
            for p in model.parameters()
        )
        for precision in (compute.precision, "float32")
    }
    del teacher, student
    loops = {
        OURS: (our_loop(config, data, compute, Weighting("uniform")), weights[compute.precision]),
        PLAIN: (plain_steps(config, data, compute), weights["float32"]),
    }
    return {
        name: peak_memory(loop, compute, steps=1) - known for name, (loop, known) in loops.items()
    }


def ending(model: nn.Module, end: int, mean: float) -> nn.Module:
    """Let answers end by chance, after ``mean`` tokens on average, whatever the weights are."""

    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        others = output.logits.float()
        others[..., end] = -torch.inf
        odds = 1 / max(mean - 1, 1e-9)
        output.logits = others
        output.logits[..., end] = others.logsumexp(-1) + torch.tensor(odds).log()
        return output

    model.register_forward_hook(hook)
    return model.eval()


def generation(config: DictConfig, data: Any, compute: Compute) -> Mapping[str, float]:
    """Answers per second to the same prompts, as we sample them and as published code does.

    Theirs is transformers' `generate`: prompts padded on the left to ``data.max_prompt_length``,
    32 at a time, all of them until the last one has ended, scores kept, and a ban on repeated runs
    of six tokens. Ours has the same ban. The student in float32, its answers as long as the set's
    on average.
    """
    rows, tokenizer = data
    compute = replace(compute, precision="float32")
    _, student = build_networks(config, tokenizer, compute)
    chosen, end = list(rows["test"])[:PROMPTS], tokenizer.eos_token_id
    mean = statistics.fmean(len(tokenizer(row.references[0]).input_ids) + 1 for row in chosen)
    student = ending(student, end, mean)
    width = config.data.max_prompt_length
    room = config.data.max_length - width
    sampling = Sampling(no_repeat_ngram_size=PLAIN_NGRAM, max_new_tokens=room)
    requests = [Request(row.line, config.seed, row.prompt_ids) for row in chosen]
    began = time.perf_counter()
    for _ in generate(student, requests, sampling, end={end}):
        pass
    ours = time.perf_counter() - began
    torch.manual_seed(config.seed)
    began = time.perf_counter()
    for start in range(0, len(chosen), PLAIN_PROMPTS):
        few = [row.prompt_ids for row in chosen[start : start + PLAIN_PROMPTS]]
        tokens, mask = left_padded(few, compute.device)
        left = width - tokens.shape[1], 0
        student.generate(
            input_ids=F.pad(tokens, left, value=end),
            attention_mask=F.pad(mask, left),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=room,
            no_repeat_ngram_size=PLAIN_NGRAM,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_scores=True,
        )
    return {OURS: len(chosen) / ours, PLAIN: len(chosen) / (time.perf_counter() - began)}


def measure_more(
    config: DictConfig, data: Any, compute: Compute
) -> tuple[dict[str, Any], list[str]]:
    """Memory of a step and answers per second, ours and the plain loop's."""
    needed, speeds = memory(config, data, compute), generation(config, data, compute)
    numbers = {"memory_above_weights_bytes": needed, "answers_per_second": speeds}
    return numbers, [
        f"memory of a step above the networks, MB: ours {needed[OURS] / 1e6:.0f}, plain "
        f"{needed[PLAIN] / 1e6:.0f}, plain / ours {needed[PLAIN] / needed[OURS]:.1f}",
        f"answers per second, float32: ours {speeds[OURS]:.2f}, plain {speeds[PLAIN]:.2f}, "
        f"ours / plain {speeds[OURS] / speeds[PLAIN]:.2f}",
    ]
