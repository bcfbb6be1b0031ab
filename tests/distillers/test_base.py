"""How terms become a loss: shapes, denominators, and what the weight comes from."""

import math

import pytest
import torch

from eakd.distillers import Distiller, Progress, Terms
from eakd.errors import UserError
from eakd.factors import FACTORS, MATCHED, SHUFFLED
from eakd.weighting import Entropies, Weighting, ea_weight, entropy

N, C = 6, 10
STUDENT, TEACHER = torch.randn(2, N, C, generator=torch.Generator().manual_seed(0)) * 3


def method(weighting=None):
    return Distiller(torch.nn.Linear(1, 1), weighting=weighting)


def total(losses, weighting="ea", student=STUDENT, teacher=TEACHER, **more):
    kind = Weighting(weighting) if isinstance(weighting, str) else weighting
    return method(kind).total(Terms(losses, student, teacher, **more), Progress(0, 1, 0))


@pytest.mark.parametrize("shape", [(N, 1), (1, N), (N, C), (1,), (N + 1,), (N - 1,), (0,)])
@pytest.mark.parametrize("kind", ["uniform", "ea", "matched"])
def test_terms_that_would_broadcast_are_refused_by_name(shape, kind):
    with pytest.raises(UserError) as caught:
        total({"ce": torch.ones(()), "pull": torch.ones(shape)}, kind)
    message = str(caught.value)
    assert message.startswith(f"term 'pull': found shape {shape}") and f"({N},)" in message


def test_a_single_sample_is_a_row_of_its_own():
    found = total({"kd": torch.tensor([2.0])}, student=STUDENT[:1], teacher=TEACHER[:1])
    assert found.loss == pytest.approx((2 * ea_weight(STUDENT[:1], TEACHER[:1])).item())


def test_ea_is_the_weighted_mean_and_nothing_else():
    term = torch.arange(1.0, N + 1)
    found = total({"ce": torch.tensor(0.5), "kd": term})
    weight = ea_weight(STUDENT, TEACHER)
    assert found.loss == pytest.approx(0.5 + (weight * term).mean().item())
    torch.testing.assert_close(found.weight, weight)
    torch.testing.assert_close(found.distillation, weight * term)
    torch.testing.assert_close(found.unweighted, term)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 4.5])
def test_entropies_are_handed_on_at_the_weights_own_temperature(temperature):
    found = total({"kd": torch.ones(N)}, Weighting("uniform", temperature))
    torch.testing.assert_close(found.entropies.teacher, entropy(TEACHER, temperature))
    torch.testing.assert_close(found.entropies.student, entropy(STUDENT, temperature))
    assert found.entropies.bound == math.log(C)


def test_entropies_are_those_of_the_logits_that_the_weight_came_from():
    other = STUDENT.flip(0), TEACHER.flip(0)
    found = total({"kd": torch.ones(N)}, entropy_logits={"kd": other})
    torch.testing.assert_close(found.entropies.teacher, entropy(other[1]))
    torch.testing.assert_close(found.weight, ea_weight(*other))


@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED, *SHUFFLED, "teacher_rescaled"])
def test_known_entropies_give_the_weights_of_their_logits(kind):
    seen = Weighting(kind).entropies(STUDENT, TEACHER)
    term = torch.rand(N)
    plain = total({"kd": term}, kind)
    known = total({"kd": term}, kind, student=None, teacher=None, entropies=seen)
    assert torch.equal(plain.loss, known.loss) and torch.equal(plain.weight, known.weight)


def test_a_count_is_the_denominator_of_sums():
    sums = torch.tensor([2.0, 0.0, 3.0, 1.0, 5.0, 1.0])
    weight = ea_weight(STUDENT, TEACHER)
    found = total({"ce": torch.tensor(0.25), "kd": sums}, count=24)
    assert found.loss == pytest.approx(0.25 + (weight * sums).sum().item() / 24)
    halves = [
        total({"kd": sums[part]}, student=STUDENT[part], teacher=TEACHER[part], count=24).loss
        for part in (slice(0, 2), slice(2, N))
    ]
    assert sum(halves).item() == pytest.approx(found.loss.item() - 0.25)


@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED, *SHUFFLED, "focal", "focal_rescaled"])
def test_no_row_is_zero_and_not_nan(kind):
    empty = torch.zeros(0, requires_grad=True)
    nothing = STUDENT[:0]
    labels = torch.zeros(0, dtype=torch.int64)
    found = total({"kd": empty}, kind, student=nothing, teacher=nothing, targets=labels)
    found.loss.backward()
    assert found.loss == 0 and empty.grad.shape == (0,)


def test_rows_of_two_views_must_be_as_many():
    half = STUDENT[:3], TEACHER[:3]
    losses = {"first": torch.ones(N), "second": torch.ones(3)}
    with pytest.raises(UserError, match="term 'second': found shape"):
        total(losses, entropy_logits={"second": half})


# --- without a teacher ---


@pytest.mark.parametrize("kind", ["uniform", "student", "inverted_student"])
def test_a_method_without_a_teacher_may_return_rows(kind):
    term = torch.arange(1.0, N + 1, requires_grad=True)
    found = total({"ce": term}, kind, teacher=None)
    weight = {
        "uniform": torch.ones(N),
        "student": entropy(STUDENT),
        "inverted_student": math.log(C) - entropy(STUDENT),
    }[kind]
    assert found.loss.item() == pytest.approx((weight * term).mean().item())
    assert found.entropies.teacher is None


@pytest.mark.parametrize("kind", ["ea", "teacher", "interaction", "inverted_teacher", "matched"])
def test_without_a_teacher_its_entropy_cannot_weigh(kind):
    with pytest.raises(UserError, match=f"weighting.kind: found '{kind}' for a method without"):
        total({"ce": torch.ones(N)}, kind, teacher=None)


def test_without_logits_only_the_uniform_weight_is_known():
    assert total({"loss": torch.arange(4.0)}, "uniform", student=None, teacher=None).loss == 1.5
    with pytest.raises(UserError, match="terms tell no logits"):
        total({"loss": torch.arange(4.0)}, "ea", student=None, teacher=None)


def test_labels_alone_still_tell_the_students_entropy():
    found = total({"ce": torch.tensor(1.0)}, "uniform", teacher=None)
    assert found.weight is None and found.unweighted is None
    torch.testing.assert_close(found.entropies.student, entropy(STUDENT))


# --- weightings of one's own ---


def test_a_function_of_logits_is_a_weighting():
    found = total({"kd": torch.ones(N)}, lambda student, teacher: teacher.softmax(-1).amax(-1))
    torch.testing.assert_close(found.weight, TEACHER.softmax(-1).amax(-1))
    torch.testing.assert_close(found.entropies.teacher, entropy(TEACHER))


def test_a_subclass_may_combine_entropies_in_its_own_way():
    class Squared(Weighting):
        def combine(self, entropies: Entropies):
            return super().combine(entropies) ** 2

    found = total({"kd": torch.ones(N)}, Squared("teacher", entropy_temperature=2.0))
    torch.testing.assert_close(found.weight, entropy(TEACHER, 2.0) ** 2)


def test_a_weighting_with_the_wrong_shape_is_named():
    with pytest.raises(UserError, match=r"weighting: found \(6, 1\) weights"):
        total({"kd": torch.ones(N)}, lambda student, teacher: student[:, :1])


def test_a_method_without_passes_says_so():
    with pytest.raises(UserError, match="found Distiller, which has no `passes`"):
        method().passes(None, None)
