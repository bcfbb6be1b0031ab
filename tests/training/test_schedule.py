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
        ({"epochs": 1, "schedule": "linear"}, "schedule: found 'linear', allowed is one of step"),
        ({"epochs": 1, "momentum": 0, "nesterov": True}, "nesterov: found true with momentum 0"),
        ({"epochs": 1, "milestones": (-1,)}, "milestones: found -1"),
    ],
)
def test_wrong_values_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        Recipe(**arguments)
