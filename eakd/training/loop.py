"""The training loop: one for every method and every task, for teachers and for baselines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eakd.distillers.base import Distiller, Progress
from eakd.training import signals
from eakd.training.device import Compute
from eakd.training.meters import Meters
from eakd.training.optimizer import make_optimizer
from eakd.training.reading import LAST
from eakd.training.record import RunRecord
from eakd.training.recording import Recorder, Recording
from eakd.training.schedule import Recipe
from eakd.training.state import State
from eakd.training.task import Data, Task, check_agreement, load_task, samples
from eakd.training.tracking import NoTracking

log = logging.getLogger(__name__)

# Steps between two looks at the device's meters. A look waits for all steps in the device's queue,
# so it must be rare; a NaN is noticed that late, so it must not be too rare.
READ_EVERY = 25


def train_epoch(
    task: Task,
    distiller: Distiller,
    data: Data,
    recipe: Recipe,
    compute: Compute,
    optimizer: torch.optim.Optimizer,
    meters: Meters,
    progress: Progress,
    show_bar: bool = False,
) -> Iterator[int]:
    """Train from ``progress`` to the end of its epoch; yields the number of steps done."""
    steps, first = data.steps_per_epoch, next(iter(task.metrics))
    # In the optimiser's order, which is the same in all processes: gradients are summed as one row.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    bar = tqdm(
        data.epoch(progress.epoch, progress.step),
        total=steps,
        initial=progress.step,
        desc=f"epoch {progress.epoch}/{recipe.epochs}",
        leave=False,
        disable=not show_bar,
    )
    for step, batches in enumerate(bar, progress.step):
        # Set before every step: a schedule within the epoch, and nothing to restore on resuming.
        lr = recipe.learning_rate(progress.epoch - 1 + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        size = data.step_size(step)
        for batch in batches if isinstance(batches, list) else [batches]:
            # The losses too, not the backward pass: that one repeats the types of the forward.
            with compute.autocast():
                now = progress._replace(step=step)
                terms = distiller(batch, now)
                total = distiller.total(terms, now)
            # The mean over a part counts by the part's size; a term with a count of its own has
            # been divided by the whole step's. Scaled before differentiation, because synchronised
            # batch norms exchange gradients.
            share = 1.0 if terms.count is not None else len(batch.index) / size
            (total.loss if share == 1 else share * total.loss).backward()
            meters.update(step, batch.index, terms, total, task.measure(batch, terms), size)
        compute.processes.sum_gradients(parameters)
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        # None rather than zero: one kernel less, and a parameter that a step leaves out is skipped
        # by the optimiser instead of being decayed.
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % READ_EVERY == 0 and show_bar:
            means = meters.read()  # of this process's part
            shown = {name: f"{means[name]:.3f}" for name in ("loss", first) if name in means}
            bar.set_postfix(shown)
        yield step + 1


def fit(
    distiller: Distiller,
    data: Data,
    recipe: Recipe,
    compute: Compute,
    record: RunRecord,
    *,
    task: Task | None = None,
    seed: int | None = None,
    tracker: NoTracking | None = None,
    progress: bool | None = None,
    recording: Recording | None = None,
    teacher_entropy: Tensor | None = None,
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train ``distiller.student`` and leave metrics, checkpoints and weights in the run directory.

    Continues from the directory's checkpoint if there is one, and returns the summary of a run that
    is finished. On a CPU, stopping anywhere and continuing gives bit for bit the weights of an
    uninterrupted run.

    Args:
        distiller: already on the device.
        data: this process's part.
        record: open, inside ``with record:``.
        task: classification by default.
        seed: of what a method draws; the data's by default.
        progress: show progress bars; by default where the output is a terminal.
        recording: what is left for figures.
        teacher_entropy: see `eakd.training.task.Built`.
        inputs: name → digest of what else the run is made from; a run that was interrupted with
            others is not continued. The data is always among them.

    Returns:
        For each metric of the task ``<name>_last`` and ``<name>_best`` on the test split, for the
        first also ``<name>_best_epoch``; ``selection`` (the split that chose the best epoch),
        ``train_seconds``, ``samples_per_second``. With several processes, the same in all.

    Raises:
        UserError: data and recipe that disagree, or a record that is not open.
        Diverged: a non-finite loss. Interrupted: a signal, after saving; see `signals.collected`.
    """
    seed = getattr(data, "seed", 0) if seed is None else seed
    check_agreement(data, recipe, seed)
    processes = compute.processes
    # Asked of the first process, which writes: the others might look before or after a write.
    finished = processes.from_first(lambda: record.check_open().summary)
    if finished is not None:
        return finished
    task, tracker = task or load_task(), tracker or NoTracking()
    # For layers like dropout, which must draw other numbers in each process. Data and methods take
    # theirs from (seed, epoch, step), so that they need no state.
    torch.manual_seed(seed + 1_000_003 * processes.rank)
    optimizer = make_optimizer(distiller, recipe, compute)
    inputs = {"data_fingerprint": data.fingerprint, **(inputs or {})}
    state = State(seed, distiller, optimizer, data, compute, record, inputs)
    ranking = None if teacher_entropy is None else teacher_entropy.cpu().numpy()
    recorder = Recorder(task, state, recipe, recording or Recording(), ranking)
    state.restore()
    distiller.train()
    show_bar = processes.first and (sys.stderr.isatty() if progress is None else progress)
    with signals.collected() as inbox:
        for epoch in range(state.epoch + 1, recipe.epochs + 1):
            line = run_epoch(epoch, task, state, recipe, recorder, inbox, show_bar)
            tracker.log(line | recorder.tracked)
            stopping = inbox.first(processes)
            # After the last epoch there is nothing left to interrupt: finish, and be finished.
            if stopping and epoch < recipe.epochs:
                inbox.obey(stopping, str(record.directory / LAST))
    result = recorder.result()
    record.finish(result)
    return result


def run_epoch(
    epoch: int,
    task: Task,
    state: State,
    recipe: Recipe,
    recorder: Recorder,
    inbox: signals.Inbox,
    show_bar: bool = False,
) -> dict[str, Any]:
    """Train, evaluate and record one epoch, then save; returns its line of metrics.

    Raises:
        Diverged, Interrupted: see `fit`.
    """
    data, compute, meters = state.data, state.compute, state.meters
    processes, last_good = compute.processes, state.record.directory / LAST
    began, start = time.perf_counter(), state.step
    progress = Progress(state.seed, epoch, start)
    for step in train_epoch(
        task, state.distiller, data, recipe, compute, state.optimizer, meters, progress, show_bar
    ):
        reading = step % READ_EVERY == 0
        # One process alone stops at once, several where they meet anyway.
        asking = (reading or processes.size == 1) and step < data.steps_per_epoch
        stopping = inbox.first(processes) if asking else None
        # Checked before every save: a state that has met a NaN must not replace the last good one.
        if stopping or reading:
            meters.check_finite(epoch, last_good, processes)
        if stopping:
            state.step = step
            inbox.obey(stopping, state.save(spent=time.perf_counter() - began))
    meters.check_finite(epoch, last_good, processes)
    whole = meters.merged(processes)
    line = {"epoch": epoch, "lr": state.optimizer.param_groups[0]["lr"], **whole.summary()}
    # After the summary, which waits for the device, and before the evaluation: training's own time.
    spent = time.perf_counter() - began
    state.seconds += spent
    line |= {"train_seconds": spent, "samples_per_second": samples(data, start) / spent}
    if recipe.evaluates(epoch):
        model = state.distiller.inference_model
        # Batch norms of each process have seen its own parts only; the first one's are kept.
        processes.broadcast(model.buffers())
        for split in (split for split in ("val", "test") if split in data.splits):
            result = task.evaluate(model, data, split, compute)
            line |= {f"{split}_{name}": value for name, value in result.items()}
    line |= state.distiller.scalars()
    # Lines and weights first, then the checkpoint: what a kill in between leaves is written again.
    recorder.keep(epoch, line, whole)
    state.epoch = epoch
    state.begin_epoch()
    state.save()
    log.info("epoch %d/%d: %s", epoch, recipe.epochs, recorder.describe(line))
    return line
