"""The training loop: one for every method, for teachers and for baselines."""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eakd.data import Pipeline
from eakd.data.base import Batch
from eakd.distillers.base import Distiller, Progress, Terms, Total
from eakd.errors import Diverged, Interrupted
from eakd.models.zoo import save_weights
from eakd.training.checkpoint import load_checkpoint, save_checkpoint
from eakd.training.device import Compute
from eakd.training.evaluation import correct, evaluate
from eakd.training.parallel import ALONE, Processes
from eakd.training.record import LAST, PREVIOUS, RunRecord
from eakd.training.schedule import Recipe
from eakd.training.tracking import NoTracking
from eakd.weighting import entropy

log = logging.getLogger(__name__)

READ_EVERY = 25  # steps between two looks at the device's meters


class Meters:
    """Sums over one epoch, kept on the device so that no step waits for a number.

    Args:
        device: where the terms are.
        samples: size of the data set's training part, for the per-sample buffers.
    """

    def __init__(self, device: torch.device, samples: int):
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.seen = 0
        self.first_bad = torch.full((), -1, device=device)
        # Teacher entropy and weighted distillation loss of each sample; NaN marks "not seen".
        self.samples = torch.full((2, samples), torch.nan, device=device)

    @torch.no_grad()
    def update(self, step: int, batch: Batch, terms: Terms, total: Total) -> None:
        values = {"loss": total.loss} | {f"loss_{k}": v.mean() for k, v in terms.items()}
        values["top1"] = 100 * correct(terms.student_logits, batch.targets, 1) / len(batch.targets)
        if total.weight is not None:
            values["weight"] = total.weight.mean()
            values["weight_square"] = total.weight.square().mean()
            self.samples[0, batch.index] = entropy(terms.teacher_logits).float()
            self.samples[1, batch.index] = total.distillation.float()
        self.names = list(values)
        stacked = torch.stack([value.detach().float() for value in values.values()])
        bad = (self.first_bad < 0) & ~stacked.isfinite().all()
        self.first_bad = torch.where(bad, step, self.first_bad)
        scaled = len(batch.targets) * stacked
        self.sums = scaled if self.sums is None else self.sums + scaled
        self.seen += len(batch.targets)

    def read(self) -> dict[str, float]:
        """Means so far; waits for the device."""
        return dict(zip(self.names, (self.sums / self.seen).tolist(), strict=True))

    def merged(self, processes: Processes) -> Meters:
        """What all processes have seen together; these meters themselves if there is one."""
        if processes.size == 1:
            return self
        mine = self.sums.cpu(), self.seen, self.first_bad.cpu(), self.samples.cpu()
        sums, seen, bad, samples = zip(*processes.gather(mine), strict=True)
        merged = Meters(self.samples.device, self.samples.shape[1])
        merged.load_state_dict(
            {
                "names": self.names,
                "sums": torch.stack(sums).sum(dim=0),
                "seen": sum(seen),
                "first_bad": min((step for step in bad if step >= 0), default=bad[0]),
                # Every sample is seen by one process, so this is its value, or NaN for no process.
                "samples": torch.stack(samples).nanmean(dim=0),
            }
        )
        return merged

    def check_finite(self, epoch: int, record: RunRecord, processes: Processes = ALONE) -> None:
        bad = [step for step in processes.gather(int(self.first_bad)) if step >= 0]
        if not bad:
            return
        step, means = min(bad), self.merged(processes).read()
        terms = [n[5:] for n in means if n.startswith("loss_") and not math.isfinite(means[n])]
        good = record.directory / LAST
        where = good if good.exists() else "none yet"
        raise Diverged(
            f"loss: found a non-finite value in epoch {epoch}, batch {step} "
            f"(term {', '.join(terms) or 'total'}); last good checkpoint: {where}"
        )

    def summary(self) -> dict[str, float]:
        """The epoch's line: losses, accuracy, and how the weight was spread.

        ``share_low_entropy`` and ``share_high_entropy`` are the fractions of the distillation
        loss that fell on the tenth of the samples with the lowest and the highest teacher entropy.
        """
        means = self.read()
        line = {f"train_{k}": v for k, v in means.items() if not k.startswith("weight")}
        if "weight" in means:
            variance = max(means["weight_square"] - means["weight"] ** 2, 0.0)
            line |= {"weight_mean": means["weight"], "weight_std": variance**0.5}
            seen = self.samples[:, ~self.samples[0].isnan()]
            losses = seen[1, seen[0].argsort()]
            tenth, whole = max(len(losses) // 10, 1), losses.sum()
            shares = torch.stack([losses[:tenth].sum(), losses[-tenth:].sum()]) / whole
            low, high = shares.tolist()
            line |= {"share_low_entropy": low, "share_high_entropy": high}
        return line

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.samples.device
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)


def make_optimizer(distiller: Distiller, recipe: Recipe, compute: Compute) -> torch.optim.SGD:
    """SGD over everything the method trains, fused where the device has such a kernel."""
    optimizer = torch.optim.SGD(
        distiller.trainable_parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=compute.device.type in ("cuda", "cpu"),
    )
    # The fused kernel wants either no momentum at all or one for each parameter, but a method may
    # leave parameters out of its first steps (FCFD samples its bridges). Zero is what SGD assumes.
    if recipe.momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def train_epoch(
    distiller: Distiller,
    data: Pipeline,
    recipe: Recipe,
    compute: Compute,
    optimizer: torch.optim.SGD,
    meters: Meters,
    progress: Progress,
    show_bar: bool = False,
    processes: Processes = ALONE,
) -> Iterator[int]:
    """Train from ``progress`` to the end of its epoch; yields the number of steps done."""
    steps = data.steps_per_epoch
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    bar = tqdm(
        data.epoch(progress.epoch, progress.step),
        total=steps,
        initial=progress.step,
        desc=f"epoch {progress.epoch}/{recipe.epochs}",
        leave=False,
        disable=not show_bar,
    )
    for step, batch in enumerate(bar, progress.step):
        lr = recipe.learning_rate(progress.epoch - 1 + step / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with compute.autocast():
            terms = distiller(batch, progress._replace(step=step))
            total = distiller.total(terms)
        share = len(batch.targets) / data.step_size(step)
        processes.backward(total.loss, share, parameters)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meters.update(step, batch, terms, total)
        if (step + 1) % READ_EVERY == 0 and show_bar:
            means = meters.read()  # of this process's part
            bar.set_postfix(loss=f"{means['loss']:.3f}", top1=f"{means['top1']:.1f}")
        yield step + 1


def fit(
    distiller: Distiller,
    data: Pipeline,
    recipe: Recipe,
    compute: Compute,
    record: RunRecord,
    *,
    seed: int = 0,
    tracker: NoTracking | None = None,
    progress: bool | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Train ``distiller.student`` and leave metrics, checkpoints and weights in the run directory.

    Continues from the directory's checkpoint if there is one. On a CPU, stopping anywhere and
    continuing gives bit for bit the weights of an uninterrupted run.

    Args:
        distiller: already on the device.
        data: with ``processes.part``.
        record: with ``writes=processes.first``.
        progress: show progress bars; by default where the output is a terminal.
        processes: those that train together. All call this function and get the same result; the
            first one writes.

    Returns:
        Accuracies in percent: ``top1_last``, ``top1_best``, ``top1_best_epoch``, ``top5_last``,
        ``top5_best`` on the test split, ``selection`` (the split that chose the best epoch),
        and ``train_seconds``, ``samples_per_second``.

    Raises:
        Diverged: a non-finite loss. Interrupted: a signal, after saving; see `_signals`.
    """
    tracker = tracker or NoTracking()
    # RNG state of layers like dropout; data and methods derive theirs from (seed, epoch, step).
    torch.manual_seed(seed + 1_000_003 * processes.rank)
    optimizer = make_optimizer(distiller, recipe, compute)
    meters = Meters(compute.device, len(data.data.train_labels))
    done, start, best, seconds = 0, 0, None, 0.0  # epochs done, steps done in the next one

    state = processes.from_first(lambda: load_checkpoint(record.directory))
    if state is not None:
        distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
        done, start, best, seconds = (state[k] for k in ("epoch", "step", "best", "seconds"))
        if start and processes.first:  # what all have seen is counted once
            meters.load_state_dict(state["meters"])
        randoms = [state["random"], *state.get("random_of_others", [])]
        if processes.rank < len(randoms):
            _set_random_state(randoms[processes.rank])
        log.info("continuing after epoch %d, step %d", done, start)
    record.keep_metrics(done)
    processes.broadcast([*distiller.parameters(), *distiller.buffers()])

    def save(epoch: int, step: int, spent: float = 0.0) -> str:
        record.lock.check()
        random, *others = processes.gather(_random_state())
        state = {
            "distiller": distiller.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch,
            "step": step,
            "best": best,
            "seconds": seconds + spent,
            "meters": meters.merged(processes).state_dict() if step else None,
            "random": random,
            "random_of_others": others,
        }
        if processes.first:
            save_checkpoint(record.directory, state)
        return str(record.directory / LAST)

    def stop_signal() -> int | None:
        """The signal that stops all processes, whichever received it."""
        return max(processes.gather(received[0] if received else 0)) or None

    distiller.train()
    show_bar = processes.first and (sys.stderr.isatty() if progress is None else progress)
    selection = "val" if data.has_split("val") else "test"
    with _signals() as (received, claimed):
        for epoch in range(done + 1, recipe.epochs + 1):
            began = time.perf_counter()
            steps = train_epoch(
                *(distiller, data, recipe, compute, optimizer, meters),
                *(Progress(seed, epoch, start), show_bar, processes),
            )
            for step in steps:
                reading = step % READ_EVERY == 0
                # One process alone stops at once, several where they meet anyway.
                asking = (reading or processes.size == 1) and step < data.steps_per_epoch
                stopping = stop_signal() if asking else None
                if stopping or reading:
                    meters.check_finite(epoch, record, processes)
                if stopping:
                    checkpoint = save(epoch - 1, step, spent=time.perf_counter() - began)
                    _obey(stopping, received, claimed, checkpoint)
            meters.check_finite(epoch, record, processes)
            summary = meters.merged(processes).summary()
            line = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], **summary}
            train_seconds = time.perf_counter() - began
            seconds += train_seconds
            line["train_seconds"] = train_seconds
            line["samples_per_second"] = (data.train_size - start * data.batch_size) / train_seconds
            model = distiller.inference_model
            processes.broadcast(model.buffers())  # the first one's running statistics are kept
            for split in ("val", "test"):
                if data.has_split(split):
                    batches = data.evaluation(split, processes.part)
                    result = evaluate(model, batches, compute, processes)
                    line |= {f"{split}_{name}": value for name, value in result.items()}
            line |= distiller.scalars()
            if best is None or line[f"{selection}_top1"] > best[f"{selection}_top1"]:
                best = {k: line[k] for k in line if k == "epoch" or k.startswith(("val_", "test_"))}
                _export(distiller, record, "best", best)
            record.append_metrics(line)
            tracker.log(line)
            log.info(
                "epoch %d/%d: loss %.4f, train %.2f %%, test %.2f %%, %.0f samples/s",
                *(epoch, recipe.epochs, line["train_loss"], line["train_top1"]),
                *(line["test_top1"], line["samples_per_second"]),
            )
            start, meters = 0, Meters(compute.device, len(data.data.train_labels))
            checkpoint = save(epoch, 0)
            stopping = stop_signal()
            if stopping and epoch < recipe.epochs:
                _obey(stopping, received, claimed, checkpoint)

    last = processes.from_first(lambda: record.metrics()[-1])
    _export(distiller, record, "last", last)
    if processes.first:
        (record.directory / PREVIOUS).unlink(missing_ok=True)
    return {
        "selection": selection,
        "top1_last": last["test_top1"],
        "top1_best": best["test_top1"],
        "top1_best_epoch": best["epoch"],
        "top5_last": last["test_top5"],
        "top5_best": best["test_top5"],
        **({"val_top1_best": best["val_top1"]} if selection == "val" else {}),
        "train_seconds": seconds,
        "samples_per_second": recipe.epochs * data.train_size / seconds,
    }


def _export(distiller: Distiller, record: RunRecord, name: str, line: dict[str, Any]) -> None:
    """The plain student as safetensors, with the accuracy it was measured at."""
    if not record.writes:
        return
    metadata = {k: str(v) for k, v in line.items() if k == "epoch" or k.endswith(("top1", "top5"))}
    path = record.directory / f"{name}.safetensors"
    save_weights(distiller.inference_model, path, metadata)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


Handlers = dict[int, Any]


@contextmanager
def _signals() -> Iterator[tuple[list[int], Handlers]]:
    """Collect the signals that ask a run to stop, instead of dying; a second SIGINT stops at once.

    SIGUSR1 and SIGUSR2 are taken only where a handler waits for them: tools of schedulers announce
    the end of a job's time by one of them, and requeue the job. Also yields the earlier handlers.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received, {}
        return

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("%s: saving after this step", signal.Signals(number).name)

    announcing = (getattr(signal, name, None) for name in ("SIGUSR1", "SIGUSR2"))
    awaited = [n for n in announcing if n is not None and callable(signal.getsignal(n))]
    numbers = (signal.SIGTERM, signal.SIGINT, *awaited)
    before = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield received, before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _obey(stopping: int, received: list[int], claimed: Handlers, checkpoint: str) -> None:
    """Stop the run, whose state is saved: this process or another one received ``stopping``.

    But where another handler had claimed SIGTERM, that one decides. Under submitit it lets SIGTERM
    pass: the scheduler either requeues the job itself or sends the signal that asks for it, and a
    job that ended by itself before would be a finished one.

    Raises:
        Interrupted: unless the signals may pass.
    """
    if stopping not in received:
        raise Interrupted(stopping, checkpoint)
    while received:
        number = received.pop(0)
        if number != signal.SIGTERM or not callable(claimed[number]):
            raise Interrupted(number, checkpoint)
        log.warning("SIGTERM: state saved to %s", checkpoint)
        claimed[number](number, None)
