"""What an epoch's steps add up to, kept on the device so that no step waits for a number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eakd.distillers.base import Terms, Total
from eakd.errors import Diverged, UserError
from eakd.training.parallel import ALONE, Processes

# What is kept of each sample, besides what the task measures.
ROWS = ("teacher_entropy", "student_entropy", "loss", "weighted_loss", "weight")


class Meters:
    """Sums over one epoch, and some values of every sample.

    Args:
        device: where the terms are.
        capacity: samples of an epoch at most.

    Attributes:
        names: of ``sums``.
        seen, weighted: samples and weighted rows so far.
        rows: names of the rows of ``samples``.
        samples: ``(len(rows), capacity)`` float32, the first ``seen`` columns filled in the order
            of the steps; NaN where a method has no such value.
        index: ``(capacity,)`` int64, the position of each column's sample in the training set.
    """

    def __init__(self, device: torch.device, capacity: int):
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.seen, self.weighted = 0, 0
        self.first_bad = torch.full((), -1, device=device)
        self.rows: list[str] = []
        self.samples = torch.empty(0, capacity, device=device)
        self.index = torch.zeros(capacity, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(
        self,
        step: int,
        index: Tensor,
        terms: Terms,
        total: Total,
        measured: dict[str, Tensor],
        step_size: int,
    ) -> None:
        """Add a micro-batch.

        Args:
            step: that it belongs to.
            index: ``(n,)`` positions of its samples in the training set.
            measured: name → ``(n,)``.
            step_size: samples of the whole step.
        """
        count, shares = len(index), terms.count is not None
        scalars = {"loss": total.loss}
        scalars |= {f"loss_{name}": term for name, term in terms.items() if not term.dim()}
        rows = {f"loss_{name}": term for name, term in terms.items() if term.dim()}
        # Means over the samples, or shares of the step's loss: what either adds to the epoch's sum.
        sums = [torch.stack([*scalars.values()]).to(self._wide) * (step_size if shares else count)]
        if rows:
            found = self._sums(rows.values())
            if shares:
                found = found * (step_size / terms.count)
            elif (per_sample := len(next(iter(rows.values())))) != count:
                found = found * (count / max(per_sample, 1))
            sums.append(found)
        values = dict(measured)
        if total.weight is not None:
            # Weights of texts hardly differ: in float32, their spread would be lost in the squares.
            square = total.weight.to(self._wide).square()
            values |= {"weight": total.weight, "weight_square": square}
            self.weighted += total.weight.numel()
        if values:
            sums.append(self._sums(values.values()))
        added = torch.cat(sums)
        bad = (self.first_bad < 0) & ~added.isfinite().all()
        self.first_bad = torch.where(bad, step, self.first_bad)
        self._name_sums([*scalars, *rows, *values])
        self.sums = self.sums + added
        self._keep_samples(index, terms, total, measured)
        self.seen += count

    @property
    def _wide(self) -> torch.dtype:
        """Of sums: float64, which Apple's GPUs do not have."""
        return torch.float32 if self.index.device.type == "mps" else torch.float64

    def _sums(self, rows: Iterable[Tensor]) -> Tensor:
        """The sum of each row; of rows that are alike in one go, because calls are what costs."""
        rows = list(rows)
        if len({row.shape for row in rows}) == 1:
            return torch.stack(rows).sum(dim=1, dtype=self._wide)
        return torch.stack([row.sum(dtype=self._wide) for row in rows])

    def _name_sums(self, names: list[str]) -> None:
        if self.sums is None:
            zeros = torch.zeros(len(names), dtype=self._wide, device=self.index.device)
            self.names, self.sums = names, zeros
        elif self.names != names:  # the epoch began with a version that measured less
            before = dict(zip(self.names, self.sums, strict=True))
            unknown = self.sums.new_tensor(torch.nan)
            self.names, self.sums = names, torch.stack([before.get(n, unknown) for n in names])

    def _keep_samples(
        self, index: Tensor, terms: Terms, total: Total, measured: dict[str, Tensor]
    ) -> None:
        count, entropies = len(index), total.entropies
        found = {
            "teacher_entropy": None if entropies is None else entropies.teacher,
            "student_entropy": None if entropies is None else entropies.student,
            "loss": total.unweighted,
            "weighted_loss": total.distillation,
            "weight": total.weight,
        }
        rows = [*ROWS, *measured]
        if self.rows != rows:  # the first step, or the first after one of version 0.1
            samples = self.samples.new_full((len(rows), len(self.index)), torch.nan)
            samples[: len(self.rows)] = self.samples
            self.rows, self.samples = rows, samples
        nothing = None
        if any(value is None for value in found.values()):
            nothing = torch.full_like(index, torch.nan, dtype=torch.float32)
        columns = [
            nothing if value is None else _per_sample(value, terms.sample, count)
            for value in found.values()
        ]
        columns += [value.float() for value in measured.values()]
        # A slice that Python knows, not a scatter by index: one write, and no wait.
        self.samples[:, self.seen : self.seen + count] = torch.stack(columns)
        self.index[self.seen : self.seen + count] = index

    def read(self) -> dict[str, float]:
        """Means so far; waits for the device."""
        means = dict(zip(self.names, (self.sums / self.seen).tolist(), strict=True))
        for name in ("weight", "weight_square"):
            if name in means and self.weighted != self.seen:
                means[name] *= self.seen / max(self.weighted, 1)
        return means

    def merged(self, processes: Processes) -> Meters:
        """What all processes have seen together; these meters themselves if there is one."""
        if processes.size == 1:
            return self
        mine = self.state_dict()
        mine = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in mine.items()}
        every = processes.gather(mine)
        bad = [int(each["first_bad"]) for each in every if each["first_bad"] >= 0]
        merged = Meters(self.samples.device, self.samples.shape[1])
        merged.load_state_dict(
            {
                "names": self.names,
                "sums": torch.stack([each["sums"] for each in every]).sum(dim=0),
                "seen": sum(each["seen"] for each in every),
                "weighted": sum(each["weighted"] for each in every),
                "first_bad": torch.tensor(min(bad, default=-1)),
                "rows": self.rows,
                "samples": torch.cat([each["samples"] for each in every], dim=1),
                "index": torch.cat([each["index"] for each in every]),
            }
        )
        return merged

    def check_finite(self, epoch: int, last_good: Path, processes: Processes = ALONE) -> None:
        """Raise `Diverged` if any process has met a value that is not finite."""
        bad = [step for step in processes.gather(int(self.first_bad)) if step >= 0]
        if not bad:
            return
        step, means = min(bad), self.merged(processes).read()
        terms = [n[5:] for n in means if n.startswith("loss_") and not math.isfinite(means[n])]
        where = last_good if last_good.exists() else "none yet"
        raise Diverged(
            f"loss: found a non-finite value in epoch {epoch}, batch {step} "
            f"(term {', '.join(terms) or 'total'}); last good checkpoint: {where}"
        )

    def summary(self) -> dict[str, float]:
        """The epoch's line: losses, what the task measures, and how the weight was spread.

        ``share_low_entropy`` and ``share_high_entropy`` are the fractions of the distillation
        loss that fell on the tenth of the samples with the lowest and the highest teacher entropy.
        """
        means = self.read()
        line = {
            f"train_{name}": value
            for name, value in means.items()
            if not name.startswith("weight") and math.isfinite(value)
        }
        if "weight" in means:
            variance = max(means["weight_square"] - means["weight"] ** 2, 0.0)
            line |= {"weight_mean": means["weight"], "weight_std": variance**0.5}
            entropy, losses = (
                self.column(name)[self.index[: self.seen].argsort()]
                for name in ("teacher_entropy", "weighted_loss")
            )
            known = ~entropy.isnan()
            losses = losses[known][entropy[known].argsort()]
            if len(losses):
                tenth, whole = max(len(losses) // 10, 1), losses.sum()
                shares = torch.stack([losses[:tenth].sum(), losses[-tenth:].sum()]) / whole
                low, high = shares.tolist()
                line |= {"share_low_entropy": low, "share_high_entropy": high}
        return line

    def column(self, name: str) -> Tensor:
        """A value of each sample seen, ``(seen,)``, in the order of ``index``."""
        return self.samples[self.rows.index(name), : self.seen]

    def state_dict(self) -> dict[str, Any]:
        filled = {"samples": self.samples[:, : self.seen], "index": self.index[: self.seen]}
        # Copies: a slice would be saved with all of the memory behind it.
        return {**vars(self), **{name: value.clone() for name, value in filled.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, or from that of version 0.1."""
        state = dict(state)
        if "index" not in state:
            state |= _from_version_0_1(state["samples"])
        device, capacity = self.index.device, len(self.index)
        samples, index = state.pop("samples"), state.pop("index")
        if state["sums"] is not None:
            state["sums"] = state["sums"].to(self._wide)
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, Tensor) else value)
        self.samples = torch.empty(len(samples), capacity, device=device)
        self.samples[:, : self.seen] = samples.to(device)
        self.index[: self.seen] = index.to(device)


def _per_sample(rows: Tensor, sample: Tensor | None, count: int) -> Tensor:
    """Mean of the rows of each sample, ``(U,) -> (count,)``; NaN for a sample without rows."""
    rows = rows.float()
    if sample is not None:
        sums = rows.new_zeros(count).index_add_(0, sample, rows)
        return sums / rows.new_zeros(count).index_add_(0, sample, torch.ones_like(rows))
    if rows.shape != (count,):
        raise UserError(
            f"terms: found {tuple(rows.shape)} rows for {count} samples, allowed is a row for each "
            "sample, or to say with `sample` which one each row belongs to"
        )
    return rows


def _from_version_0_1(samples: Tensor) -> dict[str, Any]:
    """Its buffers ``(2, N)`` by index, teacher entropy and weighted loss, NaN for "not seen"."""
    index = (~samples[0].isnan()).nonzero()[:, 0]
    rows = torch.full((len(ROWS), len(index)), torch.nan)
    rows[ROWS.index("teacher_entropy")] = samples[0, index]
    rows[ROWS.index("weighted_loss")] = samples[1, index]
    return {"rows": list(ROWS), "samples": rows, "index": index, "weighted": len(index)}
