"""Entropy and the reweighting factors against golden values, and what they must always hold."""

import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from processes import Command
from safetensors.torch import load_file

from eakd import Weighting, ea_weight, entropy
from eakd.composing import compose
from eakd.config import method_label
from eakd.distillers import Distiller, Progress, Terms
from eakd.errors import UserError
from eakd.training.run import run
from eakd.weighting import KINDS

GOLDEN = np.load(Path(__file__).parent / "golden" / "weights.npz")
CASES = [str(case) for case in GOLDEN["cases"]]

# Our kind -> the golden array's name.
GOLDEN_NAMES = {
    "ea": "w",
    "teacher": "w_base",
    "interaction": "w_inter",
    "inverted_teacher": "w_inv_T",
    "inverted_student": "w_inv_S",
    "student": "H_S",
}


def golden_inputs(case, dtype):
    hyper = json.loads(str(GOLDEN[f"{case}/hyper"]))
    student, teacher = (
        torch.tensor(GOLDEN[f"in/{hyper['batch']}/{role}_logits"]).to(dtype)
        for role in ("student", "teacher")
    )
    return hyper, student, teacher


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", GOLDEN_NAMES)
def test_golden(case, kind):
    hyper, student, teacher = golden_inputs(case, torch.float64)
    weight = Weighting(kind, hyper["tau_prime"], hyper["H_ub"])(student, teacher)
    # The released code adds 1e-10 inside the logarithm or clamps there; ours is exact.
    for variant in ("add", "clamp"):
        expected = GOLDEN[f"{case}/out64/{variant}/{GOLDEN_NAMES[kind]}"]
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_golden_exact_entropy(case):
    hyper, student, teacher = golden_inputs(case, torch.float64)
    tau = hyper["tau_prime"]
    for logits, name in ((student, "H_S"), (teacher, "H_T")):
        expected = GOLDEN[f"{case}/out64/exact/{name}"]
        np.testing.assert_allclose(entropy(logits, tau).numpy(), expected, rtol=1e-6, atol=1e-12)
    weight = ea_weight(student, teacher, tau, hyper["H_ub"])
    np.testing.assert_allclose(
        weight.numpy(), GOLDEN[f"{case}/out64/exact/w"], rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize("case", [c for c in CASES if c.endswith("tau3_hublogC")])
def test_defaults_follow_the_paper(case):
    _, student, teacher = golden_inputs(case, torch.float32)
    expected = GOLDEN[f"{case}/out64/exact/w"]
    np.testing.assert_allclose(ea_weight(student, teacher), expected, rtol=1e-4, atol=1e-5)


def finite_logits(bits):
    return hnp.arrays(
        getattr(np, f"float{bits}"),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=bits),
    )


@settings(max_examples=200, deadline=None)
@given(st.one_of(finite_logits(16), finite_logits(32), finite_logits(64)), st.floats(0.5, 8))
def test_bounds_hold_for_any_finite_logits(array, temperature):
    logits = torch.tensor(array)
    bound = math.log(logits.shape[-1])
    h = entropy(logits, temperature)
    assert h.shape == logits.shape[:-1]
    assert h.isfinite().all() and (h >= 0).all() and (h <= bound + 1e-6).all()
    w = ea_weight(logits.flip(0), logits, temperature)
    assert w.isfinite().all() and (w >= 0).all() and (w <= bound + 1e-6).all()


def test_extremes():
    classes = 100
    uniform = torch.zeros(1, classes)
    one_hot = torch.zeros(1, classes)
    one_hot[0, 3] = 1e4
    assert entropy(uniform).item() == pytest.approx(math.log(classes), rel=1e-6)
    assert entropy(one_hot).item() == 0
    # Eqs. 13a-13c: both unsure, student confident, teacher confident.
    assert ea_weight(uniform, uniform).item() == pytest.approx(math.log(classes), rel=1e-6)
    assert ea_weight(one_hot, uniform).item() == pytest.approx(math.log(classes) / 2, rel=1e-6)
    assert ea_weight(uniform, one_hot).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype)
    h = entropy(logits)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, entropy(logits.float()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_and_shape(kind):
    student = torch.randn(4, 6, 10, requires_grad=True)
    teacher = torch.randn(4, 6, 10, requires_grad=True)
    weight = Weighting(kind)(student, teacher, torch.randint(10, (4, 6)))
    assert weight.shape == (4, 6)
    assert not weight.requires_grad


def test_matched_has_the_scale_of_ea_and_selects_nothing():
    student, teacher = torch.randn(2, 32, 10)
    ea, matched = (Weighting(kind)(student, teacher) for kind in ("ea", "matched"))
    assert matched.unique().numel() == 1
    assert matched[0].item() == pytest.approx(ea.mean().item(), rel=1e-6)


# --- the same weights, dealt at random ---


def dealt(progress, count=32, kind="shuffled"):
    """Weights of a step of one term, and EA's."""
    student, teacher = torch.randn(2, count, 10, generator=torch.Generator().manual_seed(5)) * 4
    terms = Terms({"kd": torch.ones(count)}, student, teacher)
    found = Distiller(torch.nn.Identity(), weighting=Weighting(kind)).total(terms, progress)
    return found.weight, ea_weight(student, teacher)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 500), st.integers(0, 10**5), st.integers(8, 70))
def test_shuffled_deals_eas_weights_to_others(seed, epoch, step, count):
    at = Progress(seed, epoch, step)
    found, ea = dealt(at, count)
    assert torch.equal(found.sort().values, ea.sort().values)
    assert not torch.equal(found, ea)
    torch.rand(3)  # what else is drawn meanwhile
    assert torch.equal(found, dealt(at, count)[0])


def test_shuffled_changes_with_every_part_of_the_progress():
    places = [Progress(0, 1, 0), Progress(1, 1, 0), Progress(0, 2, 0), Progress(0, 1, 1)]
    weights = [dealt(at)[0].tolist() for at in places]
    assert all(a != b for i, a in enumerate(weights) for b in weights[:i])


def test_shuffled_gives_every_sample_every_weight_equally_often():
    count, draws = 4, 4000
    ea = dealt(Progress(0, 1, 0), count)[1]
    got = torch.stack([dealt(Progress(3, 1, step), count)[0] for step in range(draws)])
    shares = (got[:, :, None] == ea).float().mean(0)
    torch.testing.assert_close(shares, torch.full((count, count), 1 / count), atol=0.04, rtol=0)


def test_shuffled_without_a_place_draws_from_torchs_generator():
    student, teacher = torch.randn(2, 3, 5, 10)
    torch.manual_seed(1)
    first = Weighting("shuffled")(student, teacher)
    torch.manual_seed(1)
    assert torch.equal(first, Weighting("shuffled")(student, teacher))
    ea = ea_weight(student, teacher)
    assert torch.equal(first.flatten().sort().values, ea.flatten().sort().values)


def test_a_subclass_is_dealt_what_it_combines():
    class Squared(Weighting):
        def combine(self, entropies):
            return super().combine(entropies) ** 2

    student, teacher = torch.randn(2, 16, 10)
    squares = ea_weight(student, teacher) ** 2
    assert torch.equal(Squared("shuffled")(student, teacher).sort().values, squares.sort().values)
    matched = Squared("matched")(student, teacher)
    torch.testing.assert_close(matched, squares.mean().expand(16))


def test_shuffled_is_on_the_command_line_and_has_its_label():
    config = compose(["distiller=kd", "weighting=shuffled"])
    assert method_label(config) == "kd+shuffled"


def test_a_killed_run_with_shuffled_weights_continues_bit_for_bit(tiny_with_teacher, tmp_path):
    job = [*tiny_with_teacher, "distiller=kd", "weighting=shuffled", "recipe.epochs=8"]
    job += ["device=cpu", "precision=float32", "threads=1"]
    run(compose([*job, f"run_dir={tmp_path / 'whole'}"]))

    stopped = tmp_path / "stopped"
    process = Command(["scripts/train.py", *job, f"run_dir={stopped}"], merged=True)
    lines = stopped / "metrics.jsonl"
    while not (lines.exists() and len(lines.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    summary = run(compose([*job, f"run_dir={stopped}"]))
    assert summary["method"] == "kd+shuffled"
    expected, found = (
        load_file(tmp_path / name / "last.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(expected[key], found[key]) for key in expected)


# --- bounds, one class, masked classes, precision ---


def test_a_bound_below_the_entropies_is_warned_of_once():
    student, teacher = torch.randn(2, 4, 10)
    weighting = Weighting("ea", max_entropy=2.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            weighting(student, teacher)
    (warning,) = caught
    assert str(warning.message).startswith("max_entropy: found 2, allowed is log C = 2.30259")


@pytest.mark.parametrize("bound", [None, math.log(10), float(np.float32(math.log(10))), 100])
def test_a_bound_above_the_entropies_is_not_warned_of(bound):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ea_weight(*torch.randn(2, 4, 10), max_entropy=bound)


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_one_class_has_no_entropy_and_no_weight(kind, bound):
    student, teacher = torch.randn(2, 5, 1)
    labels = torch.zeros(5, dtype=torch.int64)
    weight = Weighting(kind, max_entropy=bound)(student, teacher, labels)
    assert torch.equal(weight, torch.full((5,), float(kind == "uniform")))
    assert torch.equal(entropy(student), torch.zeros(5))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.floats(0.3, 9), st.integers(0, 2**31))
def test_masked_classes_are_no_classes(kept, masked, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, kept, dtype=torch.float64, generator=generator) * 5
    pad = torch.full((4, masked), -torch.inf, dtype=torch.float64)
    order = torch.randperm(kept + masked, generator=generator)
    wide = [torch.cat([x, pad], dim=-1)[:, order] for x in (student, teacher)]
    for plain, padded in zip((student, teacher), wide, strict=True):
        torch.testing.assert_close(entropy(padded, temperature), entropy(plain, temperature))
    # The bound counts all columns.
    bound = math.log(kept + masked) if kept + masked > 1 else None
    with warnings.catch_warnings(record=True):
        found, expected = (ea_weight(*x, temperature, bound) for x in (wide, (student, teacher)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ea_weight(*wide, temperature), found)


@pytest.mark.parametrize("kind", KINDS)
def test_double_precision_stays(kind):
    student, teacher = torch.randn(2, 4, 10, dtype=torch.float64)
    labels = torch.arange(4)
    assert Weighting(kind)(student, teacher, labels).dtype == torch.float64
    assert Weighting(kind)(student.half(), teacher.half(), labels).dtype == torch.float32


@pytest.mark.parametrize("number", [np.float32(2), np.int64(2), torch.tensor(2.0), torch.tensor(2)])
def test_numbers_of_numpy_and_torch_are_kept_as_pythons(number):
    student, teacher = torch.randn(2, 4, 10)
    weighting = Weighting("ea", number, max_entropy=number * 2)
    assert (weighting.entropy_temperature, weighting.max_entropy) == (2, 4)
    assert {type(weighting.entropy_temperature), type(weighting.max_entropy)} <= {int, float}
    assert torch.equal(
        ea_weight(student, teacher, number, 100), ea_weight(student, teacher, 2, 100)
    )
    assert torch.equal(entropy(student, number), entropy(student, 2.0))


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, True, "3", None, np.ones(1)])
def test_entropy_names_a_wrong_temperature(wrong):
    with pytest.raises(UserError, match=r"^temperature: found [^\n]*, allowed is a number > 0$"):
        entropy(torch.randn(2, 3), wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "entropy"}, "kind: found 'entropy', allowed is one of uniform, teacher"),
        ({"entropy_temperature": 0}, "entropy_temperature: found 0"),
        ({"entropy_temperature": -1.0}, "entropy_temperature: found -1.0"),
        ({"max_entropy": -3}, "max_entropy: found -3"),
        ({"max_entropy": math.nan}, "max_entropy: found nan"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        Weighting(**arguments)


def test_different_shapes_are_named():
    with pytest.raises(UserError, match=r"\(4, 10\) and \(4, 100\)"):
        ea_weight(torch.randn(4, 10), torch.randn(4, 100))
