"""Figs. 3 and 5: entropy and divergence of easy and hard samples, epoch by epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eakd.analysis.comparing import differences, told
from eakd.analysis.marks import display
from eakd.analysis.recordings import (
    about,
    at_epochs,
    divergence_of,
    epochs_of,
    loss_weight,
    ranking_of,
    recorded,
    sizes,
)
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Runs
from eakd.analysis.seeds import BANDS, corrected, mean_of, over_seeds
from eakd.errors import check_choice, check_number
from eakd.training.reading import SEGMENTS


def student_entropy(
    runs: Runs, *, output_root: str = "outputs", segment: int = SEGMENTS, by: str = "clean"
) -> Result:
    """Fig. 3: how the student's entropy spreads over the samples that the teacher finds hardest.

    Args:
        segment: 1 to 10, by the teacher's entropy; 10 is the highest.
        by: see `ranking_of`.
    """
    check_number("segment", segment, at_least=1, at_most=SEGMENTS, integer=True)
    used, notes = ranking_of(runs, by)
    column, panels, spreads, slopes = segment - 1, {}, {}, {}
    numbers: dict[str, float] = {}
    series = []
    for name in runs.names:
        of = runs.of(name)
        epochs = epochs_of(of)

        def over(value: str, statistic: str, of=of, epochs=epochs) -> dict[int, np.ndarray]:
            found = {r.seed: recorded(r, used, value, statistic)[:, column] for r in of}
            return {r.seed: at_epochs(r, found[r.seed], epochs) for r in of}

        q05, q25, q50, q75, q95 = (
            mean_of(np.stack(list(over("student_entropy", f"q{q:02d}").values()))).mean
            for q in (5, 25, 50, 75, 95)
        )
        teacher, spread = (
            mean_of(np.stack(list(over("teacher_entropy", each).values()))).mean
            for each in ("mean", "std")
        )
        panels[f"bands {name}"] = Panel(
            title=display(name),
            x="epoch",
            y="student entropy, nats",
            series=(
                Series(
                    "teacher",
                    epochs,
                    teacher,
                    teacher - spread,
                    teacher + spread,
                    "teacher",
                    "reference",
                ),
                Series(name, epochs, q50, q05, q95, low2=q25, high2=q75),
            ),
        )
        by_seed = over("student_entropy", "std")
        series.append(over_seeds(name, epochs, by_seed))
        # In nats over the whole run, so that runs of other lengths compare.
        slopes[name] = {
            seed: float(np.polyfit(epochs, values, 1)[0] * len(epochs)) if len(epochs) > 1 else 0.0
            for seed, values in by_seed.items()
        }
        spreads[name] = {seed: float(values[-1]) for seed, values in by_seed.items()}
        numbers[f"spread.first.{name}"] = float(np.mean([v[0] for v in by_seed.values()]))
        numbers[f"spread.last.{name}"] = float(np.mean(list(spreads[name].values())))
        numbers[f"slope.{name}"] = float(np.mean(list(slopes[name].values())))
    panels = _same_limits(panels)
    panels["spread"] = Panel(
        "spread over the samples", "epoch", "standard deviation, nats", tuple(series)
    )
    tests = differences(slopes, "slope") | differences(spreads, "spread.last")
    p = corrected(tests)
    which = {1: "lowest", SEGMENTS: "highest"}.get(segment, f"{segment}th")
    parts = [
        f"{display(name)} from {numbers[f'spread.first.{name}']:.3f} to "
        f"{numbers[f'spread.last.{name}']:.3f} nats"
        for name in runs.names
    ]
    notes += (
        "Student: median, 25 to 75 % and 5 to 95 % of the samples, means over seeds; grey: the "
        f"teacher's mean ± one standard deviation. In the last panel {BANDS}.",
        *told(tests, p, " nats"),
    )
    return Result(
        panels,
        columns=2 if len(panels) in (2, 4) else min(3, len(panels)),
        numbers=numbers,
        tests=p,
        shows=f"Standard deviation of the student's entropy over the tenth of training samples "
        f"with the {which} teacher entropy, first epoch to last: {'; '.join(parts)}.",
        not_shows="It is the spread over samples in each epoch. It does not show whether one "
        "sample's entropy moves from epoch to epoch, which the paper's words allow too.",
        notes=notes,
        about=about(runs),
    )


def alignment(
    runs: Runs, *, output_root: str = "outputs", by: str = "clean", logarithmic: bool = True
) -> Result:
    """Fig. 5: how far the student is from the teacher, on easy samples, on hard ones, and on all.

    The divergence is what the method compares by, without the sample's weight and without
    ``kd_weight``: for KD of images, KL at the loss temperature τ times τ². Accuracy is what the
    run's best epoch was chosen by, and left out where that is not recorded sample by sample.

    Args:
        by: see `ranking_of`.
        logarithmic: draw divergences on a logarithmic axis.
    """
    check_choice("logarithmic", logarithmic, (True, False))
    used, notes = ranking_of(runs, by)
    label, words = divergence_of(runs)
    curves: dict[str, list[Series]] = {"kld_low": [], "kld_high": [], "kld": []}
    if not any(np.isnan(recorded(run, used, run.metric)).all() for run in runs):
        curves["accuracy"] = []  # ROUGE-L and AP are of no single sample
    values: dict[str, dict[str, dict[int, float]]] = {key: {} for key in curves}
    for name in runs.names:
        of = runs.of(name)
        epochs = epochs_of(of)
        found: dict[str, dict[int, np.ndarray]] = {key: {} for key in curves}
        for run in of:
            loss = recorded(run, used, "loss") / loss_weight(run)
            count = sizes(run, used)
            whole = (loss * count).sum(axis=1) / count.sum(axis=1)
            of_run = {"kld_low": loss[:, 0], "kld_high": loss[:, -1], "kld": whole}
            if "accuracy" in curves:
                accuracy = recorded(run, used, run.metric)
                of_run["accuracy"] = (accuracy * count).sum(axis=1) / count.sum(axis=1)
            for key, each in of_run.items():
                found[key][run.seed] = at_epochs(run, each, epochs)
        for key, by_seed in found.items():
            curves[key].append(over_seeds(name, epochs, by_seed))
            values[key][name] = {seed: float(each[-1]) for seed, each in by_seed.items()}
    numbers = {
        f"{key}.{name}": float(np.mean(list(by_seed.values())))
        for key, by_name in values.items()
        for name, by_seed in by_name.items()
    }
    tests = {}
    for key, by_name in values.items():
        tests |= differences(by_name, key)
    p = corrected(tests)
    titles = {
        "kld_low": "lowest tenth of teacher entropy",
        "kld_high": "highest tenth of teacher entropy",
        "kld": "all samples",
        "accuracy": "training accuracy",
    }
    log = "y" if logarithmic else ""
    panels = {
        key: Panel(
            titles[key],
            "epoch",
            "accuracy, %" if key == "accuracy" else label,
            tuple(series),
            log="" if key == "accuracy" else log,
        )
        for key, series in curves.items()
    }
    parts = [
        f"{display(name)} {numbers[f'kld_low.{name}']:.3g}, {numbers[f'kld_high.{name}']:.3g} and "
        f"{numbers[f'kld.{name}']:.3g}"
        for name in runs.names
    ]
    return Result(
        panels,
        columns=2 if len(panels) == 4 else 3,
        numbers=numbers,
        tests=p,
        shows="Raw divergence from the teacher in the last epoch, on the tenths of lowest and of "
        f"highest teacher entropy and on all samples: {'; '.join(parts)}.",
        not_shows="All of it is measured on training samples as the epoch saw them, while the "
        "weights change within the epoch; it says nothing about unseen samples.",
        notes=(
            *notes,
            f"{words}, without weights; {BANDS}.",
            *([] if "accuracy" in curves else [_unmeasured(runs)]),
            *told(tests, p),
        ),
        about=about(runs),
    )


def _unmeasured(runs: Runs) -> str:
    return f"There is no training accuracy: {runs[0].metric} is not recorded sample by sample."


def _same_limits(panels: dict[str, Panel]) -> dict[str, Panel]:
    """All panels on one scale: they are there to be compared."""
    ends = [v for p in panels.values() for s in p.series for v in (s.low, s.high) if v is not None]
    low, high = (float(f([f(each[np.isfinite(each)]) for each in ends])) for f in (np.min, np.max))
    margin = 0.04 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    return {key: replace(panel, y_limits=limits) for key, panel in panels.items()}
