"""What counts as a number where one is asked for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eakd.distillers import Progress
from eakd.errors import UserError, check_number
from eakd.training import Recipe


@given(st.floats(-(2.0**99), 2.0**99, width=32))
def test_every_spelling_of_a_number_is_the_same_one(x):
    for value in (x, np.float32(x), np.float64(x), torch.tensor(x), torch.tensor(x).double()):
        found = check_number("x", value)
        assert type(found) is float and found == x


@given(st.integers(-(2**31), 2**31 - 1))
def test_integers_stay_integers(x):
    for value in (x, np.int32(x), np.int64(x), torch.tensor(x)):
        found = check_number("x", value, integer=True)
        assert type(found) is int and found == x


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, torch.tensor(True), "4", b"4", None, 1j, np.complex64(1), [4.0]),
        *(np.array(4.0), np.array([4.0]), torch.tensor([4.0]), torch.zeros(3, 40)),
        *(math.nan, np.float32("nan"), torch.tensor(math.inf), np.float64("-inf"), 10**400),
    ],
    ids=repr,
)
def test_nothing_else_is_a_number(value):
    with pytest.raises(UserError, match=r"^x: found ") as caught:
        check_number("x", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [4.0, np.float32(4), torch.tensor(4.0)])
def test_a_float_is_no_integer(value):
    with pytest.raises(UserError, match="allowed is an integer >= 1"):
        check_number("x", value, integer=True, at_least=1)


@pytest.mark.parametrize("make", [np.float32, np.float64, torch.tensor])
def test_bounds_hold_for_all(make):
    for value, bounds in ((0.0, {"above": 0}), (-1.0, {"at_least": 0}), (2.0, {"at_most": 1})):
        with pytest.raises(UserError, match=r"^x: found .*, allowed is a number [<>]"):
            check_number("x", make(value), **bounds)


def test_what_is_kept_is_pythons_own():
    recipe = Recipe(epochs=np.int64(2), batch_size=torch.tensor(8), lr=np.float32(0.5))
    assert recipe == Recipe(epochs=2, batch_size=8, lr=0.5)
    assert [type(x) for x in (recipe.epochs, recipe.batch_size, recipe.lr)] == [int, int, float]
    draws = [
        torch.rand(3, generator=Progress(make(2**40), 1, 0).generator()) for make in (int, np.int64)
    ]
    assert torch.equal(*draws)
