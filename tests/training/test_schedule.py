"""Learning rates value by value, and recipes that name what is wrong with them."""

import pytest

from eakd.errors import UserError
from eakd.training import Recipe


def test_step_schedule_drops_after_each_milestone():
    recipe = Recipe(epochs=240, lr=0.05, milestones=(150, 180, 210))
    # The peers drop at the 151st, 181st and 211th epoch.
    for elapsed, lr in ((0, 0.05), (149.99, 0.05), (150, 0.005), (180, 5e-4), (239.9, 5e-5)):
        assert recipe.learning_rate(elapsed) == pytest.approx(lr)


def test_milestones_below_one_are_fractions():
    whole = Recipe(epochs=240, milestones=(150, 180, 210))
    fractions = Recipe(epochs=240, milestones=(0.625, 0.75, 0.875))
    for epoch in range(240):
        assert fractions.learning_rate(epoch) == pytest.approx(whole.learning_rate(epoch))


def test_cosine_with_warmup():
    recipe = Recipe(epochs=11, lr=0.2, schedule="cosine", warmup_epochs=1)
    assert recipe.learning_rate(0) == 0
    assert recipe.learning_rate(0.5) == pytest.approx(0.1)
    assert recipe.learning_rate(1) == pytest.approx(0.2)
    assert recipe.learning_rate(6) == pytest.approx(0.1)
    assert recipe.learning_rate(11) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, "epochs: found 0, allowed is an integer >= 1"),
        ({"epochs": -3}, "epochs: found -3"),
        ({"epochs": 2.5}, "epochs: found 2.5"),
        ({"epochs": "ten"}, "epochs: found 'ten'"),
        ({"epochs": 1, "batch_size": 0}, "batch_size: found 0"),
        ({"epochs": 1, "lr": -0.1}, "lr: found -0.1"),
        ({"epochs": 1, "lr": float("nan")}, "lr: found nan"),
        ({"epochs": 1, "schedule": "poly"}, "schedule: found 'poly', allowed is one of step"),
        ({"epochs": 1, "optimizer": "adam"}, "optimizer: found 'adam', allowed is one of sgd"),
        ({"epochs": 1, "betas": 0.9}, "betas: found 0.9, allowed is a list of 2 numbers"),
        ({"epochs": 1, "betas": (0.9, 2)}, "betas: found 2"),
        ({"epochs": 1, "clip_norm": 0}, "clip_norm: found 0, allowed is a number > 0"),
        ({"epochs": 1, "accumulate": 0}, "accumulate: found 0, allowed is an integer >= 1"),
        ({"epochs": 1, "steps_per_epoch": 1.5}, "steps_per_epoch: found 1.5"),
        ({"epochs": 1, "min_lr": 1.0}, "min_lr: found 1.0, allowed is a number >= 0 and <= 0.05"),
        ({"epochs": 1, "evaluate_every": -1}, "evaluate_every: found -1"),
        ({"epochs": 1, "momentum": 0, "nesterov": True}, "nesterov: found true with momentum 0"),
        ({"epochs": 1, "milestones": (-1,)}, "milestones: found -1"),
    ],
)
def test_wrong_values_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        Recipe(**arguments)


def test_linear_ends_at_its_lowest_rate():
    recipe = Recipe(epochs=11, lr=0.2, schedule="linear", warmup_epochs=1, min_lr=0.1)
    assert recipe.learning_rate(0.5) == pytest.approx(0.1)
    for elapsed, lr in ((1, 0.2), (6, 0.15), (11, 0.1)):
        assert recipe.learning_rate(elapsed) == pytest.approx(lr)
    cosine = Recipe(epochs=10, lr=0.2, schedule="cosine", min_lr=0.1)
    for elapsed, lr in ((0, 0.2), (5, 0.15), (10, 0.1)):
        assert cosine.learning_rate(elapsed) == pytest.approx(lr)


def test_the_last_epoch_is_always_evaluated():
    def evaluated(**settings):
        recipe = Recipe(epochs=7, **settings)
        return [epoch for epoch in range(1, 8) if recipe.evaluates(epoch)]

    assert evaluated() == [1, 2, 3, 4, 5, 6, 7]
    assert evaluated(evaluate_every=3) == [3, 6, 7]
    assert evaluated(evaluate_every=0) == evaluated(evaluate_every=9) == [7]
