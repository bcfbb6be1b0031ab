"""Fig. 4: which samples make the loss, and the weight that changes it."""

from __future__ import annotations

import numpy as np

from eakd.analysis.comparing import differences, told
from eakd.analysis.marks import display
from eakd.analysis.recordings import about, entropy_bound, ranking_of, recorded, sizes
from eakd.analysis.result import Panel, Result, Series
from eakd.analysis.runs import Runs
from eakd.analysis.seeds import corrected, over_seeds
from eakd.errors import check_number
from eakd.factors import FACTORS
from eakd.training.reading import SEGMENTS


def loss_shares(
    runs: Runs,
    *,
    output_root: str = "outputs",
    first: float = 1 / 24,
    by: str = "clean",
    points: int = 101,
) -> Result:
    """Fig. 4: which samples make the distillation loss early on, and the weight's surface.

    The surface is left out where the record does not tell what its axes end at.

    Args:
        first: the epochs that count as early: a fraction of the run below 1, or a number of them.
        by: see `ranking_of`.
        points: of each axis of the surface.
    """
    check_number("first", first, above=0)
    check_number("points", points, at_least=3, at_most=1001, integer=True)
    used, notes = ranking_of(runs, by)
    x = np.arange(1, SEGMENTS + 1)
    series, numbers = [], {}
    low: dict[str, dict[int, float]] = {}
    high: dict[str, dict[int, float]] = {}
    early = 1
    for name in runs.names:
        shares = {}
        for run in runs.of(name):
            early = max(1, round(first * run.epochs)) if first < 1 else int(first)
            sums = recorded(run, used, "weighted_loss") * sizes(run, used)
            chosen = sums[[line["epoch"] <= early for line in run.dynamics]].sum(axis=0)
            shares[run.seed] = 100 * chosen / chosen.sum()
        series.append(over_seeds(name, x, shares, style="bars"))
        low[name] = {seed: float(each[0]) for seed, each in shares.items()}
        high[name] = {seed: float(each[-1]) for seed, each in shares.items()}
        numbers[f"share_low.{name}"] = float(np.mean(list(low[name].values())))
        numbers[f"share_high.{name}"] = float(np.mean(list(high[name].values())))
    equal = Series("equal", np.array([0.4, SEGMENTS + 0.6]), np.array([10.0, 10.0]), label="equal",
                   style="reference")  # fmt: skip
    when = "epoch 1" if early == 1 else f"epochs 1 to {early}"
    tests = differences(low, "share_low") | differences(high, "share_high")
    p = corrected(tests)
    parts = [
        f"{display(name)} {numbers[f'share_low.{name}']:.1f} and "
        f"{numbers[f'share_high.{name}']:.1f} %"
        for name in runs.names
    ]
    panels = {
        "shares": Panel(
            f"share of the distillation loss, {when}",
            "tenth by teacher entropy, lowest first",
            "share, %",
            (equal, *series),
            x_ticks={float(each): str(each) for each in x},
        )
    }
    surface, said = _surface(runs, used, points), "Shares of the loss with its weight; bars"
    if surface is not None:
        panels["weight"], said = surface, "Left: shares of the loss with its weight, bars"
    said += " are 95 % intervals of the mean over seeds."
    if surface is not None:
        said += (
            " Right: w of Eq. 12, with the means of the ten parts in a run's first and last "
            "epoch: the part of the surface that training visits."
        )
    return Result(
        panels,
        columns=2,
        numbers=numbers,
        tests=p,
        shows="Share of the distillation loss that the tenths of lowest and of highest teacher "
        f"entropy carry in {when}: {'; '.join(parts)}.",
        not_shows="A share of the loss is not a share of the gradient, and not what is learnt.",
        notes=(
            *notes,
            said,
            *told(tests, p, " points"),
        ),
        about=about(runs),
    )


def _surface(runs: Runs, by: str, points: int) -> Panel | None:
    """w(H_T, H_S) up to the bound of both, and where the deciles of one run lie on it."""
    name = "ea_kd" if "ea_kd" in runs.names else runs.names[-1]
    run = runs.of(name)[0]
    bound = entropy_bound(run)
    if bound is None:
        return None
    axis = np.linspace(0, bound, points)
    teacher, student = np.meshgrid(axis, axis)
    visited = []
    for place in dict.fromkeys((0, len(run.dynamics) - 1)):
        x, y = (recorded(run, by, f"{each}_entropy")[place] for each in ("teacher", "student"))
        text = f"tenths, {display(name)}, epoch {run.dynamics[place]['epoch']}"
        visited.append(Series(text, x, y))
    return Panel(
        title="weight w, Eq. 12",
        x="teacher entropy, nats",
        y="student entropy, nats",
        series=tuple(visited),
        surface=(axis, axis, FACTORS["ea"](teacher, student, bound)),
        # Eq. 13: the bound where both are high, half of it where the student is sure, 0 without
        # the teacher's entropy.
        levels=tuple(bound * each for each in (0.1, 0.25, 0.5, 0.75, 0.9)),
        equal=True,
        x_limits=(0.0, bound),
        y_limits=(0.0, bound),
    )
