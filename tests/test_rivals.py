"""Rules for which samples count, beside EA's: formulas, scale, labels, and their place in a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eakd import Weighting, ea_weight
from eakd.analysis.answers import Answers, sample_weights
from eakd.composing import compose
from eakd.config import method_label
from eakd.distillers import Distiller, Progress, Terms
from eakd.errors import UserError
from eakd.factors import FACTORS, RESCALED, RULES, SHUFFLED
from eakd.training.run import run

LABELLED = ("true_class", "focal")  # the rules that look at labels
RANGES = {**dict.fromkeys(RULES, (0.0, 1.0)), "power_sum": (1.0, 10**0.75)}  # of ten classes


def batch(count=12, classes=10, seed=0, scale=4.0):
    """Logits of both networks, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, count, classes, generator=generator) * scale
    return student, teacher, torch.randint(classes, (count,), generator=generator)


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


# --- formulas ---


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("confidence", 0.6),
        ("inverted_confidence", 0.4),
        ("true_class", 0.3),  # the label is the second class
        ("margin", 0.3),
        ("inverted_margin", 0.7),
        ("focal", (1 - 0.5) ** 2),
        ("power_sum", 0.6**0.25 + 0.3**0.25 + 0.1**0.25),
    ],
)
def test_by_hand(kind, weight):
    student, teacher = logits_of(0.2, 0.5, 0.3), logits_of(0.6, 0.3, 0.1)
    found = Weighting(kind)(student + 7, teacher - 5, torch.tensor([1]))
    assert found.shape == (1,) and found.item() == pytest.approx(weight, rel=1e-12)


def test_exponent_and_temperature_by_hand():
    student, teacher, label = logits_of(0.2, 0.5, 0.3), logits_of(0.6, 0.3, 0.1), torch.tensor([0])
    focal = Weighting("focal", gamma=0.5)(student, teacher, label)
    assert focal.item() == pytest.approx(0.8**0.5, rel=1e-12)
    power = Weighting("power_sum", gamma=2)(student, teacher)
    assert power.item() == pytest.approx(0.36 + 0.09 + 0.01, rel=1e-12)
    roots = [p**0.5 for p in (0.6, 0.3, 0.1)]
    soft = Weighting("confidence", temperature=2)(student, teacher)
    assert soft.item() == pytest.approx(roots[0] / sum(roots), rel=1e-12)
    # τ′ is the entropies' alone.
    hot = Weighting("confidence", entropy_temperature=9)(student, teacher)
    assert hot.item() == pytest.approx(0.6, rel=1e-12)


def test_power_sum_is_wttms_and_tells_the_renyi_entropy():
    """Σ p^γ = exp((1 - γ) H_γ): 1 for a teacher that is sure, C^(1 - γ) for one that is not."""
    _, teacher, _ = batch()
    p = torch.softmax(teacher.double(), -1)
    renyi = (p**0.25).sum(-1).log() / (1 - 0.25)
    found = Weighting("power_sum")(teacher.double(), teacher.double())
    torch.testing.assert_close(found, (0.75 * renyi).exp())
    flat = Weighting("power_sum")(torch.zeros(1, 10), torch.zeros(1, 10))
    assert flat.item() == pytest.approx(10**0.75, rel=1e-6)


# --- what always holds ---


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*RULES, *RESCALED]), st.integers(0, 2**31), st.floats(0.1, 30))
def test_shifts_change_nothing_and_rows_stand_for_themselves(kind, seed, scale):
    student, teacher, labels = (x.double() for x in batch(seed=seed, scale=scale))
    labels = labels.long()
    weight = Weighting(kind)(student, teacher, labels)
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randn(2, len(student), 1, generator=generator, dtype=torch.float64) * 9
    moved = Weighting(kind)(student + shifts[0], teacher + shifts[1], labels)
    torch.testing.assert_close(moved, weight)
    order = torch.randperm(len(student), generator=generator)
    mixed = Weighting(kind)(student[order], teacher[order], labels[order])
    torch.testing.assert_close(mixed, weight[order])
    classes = torch.randperm(10, generator=generator)
    places = classes.argsort()[labels]
    renamed = Weighting(kind)(student[:, classes], teacher[:, classes], places)
    torch.testing.assert_close(renamed, weight)


@pytest.mark.parametrize("kind", RESCALED)
def test_rescaled_is_the_same_selection_with_the_mean_of_ea(kind):
    given = batch(count=64)
    own, found = Weighting(RESCALED[kind])(*given), Weighting(kind)(*given)
    matched = Weighting("matched")(*given)
    assert found.mean().item() == pytest.approx(matched[0].item(), rel=1e-6)
    torch.testing.assert_close(found / found.mean(), own / own.mean())
    # EA's mean at this weighting's own τ′ and bound.
    other = Weighting(kind, entropy_temperature=2, max_entropy=100)(*given)
    expected = ea_weight(*given[:2], entropy_temperature=2, max_entropy=100).mean()
    assert other.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_rescaled_by_the_means_of_all_processes():
    """As `matched`: what `batch_mean` says of a tensor, which may be more than this part."""
    student, teacher, labels = batch(count=16)
    whole = Weighting("focal_rescaled")(student, teacher, labels)
    ea, own = ea_weight(student, teacher), Weighting("focal")(student, teacher, labels)
    parts = []
    for part in (slice(0, 5), slice(5, 16)):
        means = iter([own.mean(), ea.mean()])
        weighting = Weighting("focal_rescaled", batch_mean=lambda _, means=means: next(means))
        parts.append(weighting(student[part], teacher[part], labels[part]))
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", RULES)
def test_extremes_are_finite(kind, dtype):
    largest = torch.finfo(dtype).max
    rows = torch.tensor([[largest, -largest, 0], [0, 0, 0], [largest] * 3, [-largest, 0, 1]])
    rows = torch.cat([rows, torch.tensor([[-torch.inf, 1, 2], [-torch.inf, -torch.inf, 0]])])
    rows = rows.to(dtype)
    labels = torch.tensor([1, 0, 2, 0, 0, 1])  # two of them masked
    for name in (kind, f"{kind}_rescaled"):
        weight = Weighting(name)(rows.flip(0), rows, labels)
        assert weight.dtype == torch.float32 and weight.isfinite().all() and (weight >= 0).all()
    low, high = RANGES[kind]
    own = Weighting(kind)(rows.flip(0), rows, labels)
    assert (own >= low - 1e-6).all() and (own <= high + 1e-6).all()


@pytest.mark.parametrize("kind", RULES)
def test_masked_classes_are_no_classes(kind):
    student, teacher, labels = (x.double() for x in batch())
    pad = torch.full((12, 3), -torch.inf, dtype=torch.float64)
    wide = [torch.cat([x, pad], dim=1) for x in (student, teacher)]
    plain = Weighting(kind)(student, teacher, labels.long())
    torch.testing.assert_close(Weighting(kind)(*wide, labels.long()), plain)


def test_a_rule_that_finds_nothing_in_a_batch_leaves_eas_mean():
    sure = torch.tensor([[200.0, 0, 0], [0, 200, 0]])
    student = torch.randn(2, 3)
    assert not Weighting("inverted_confidence")(student, sure).any()
    found = Weighting("inverted_confidence_rescaled")(student, sure)
    torch.testing.assert_close(found, Weighting("matched")(student, sure))


@pytest.mark.parametrize("kind", LABELLED)
def test_rows_without_a_label_get_no_weight(kind):
    student, teacher, labels = batch()
    expected = Weighting(kind)(student, teacher, labels)
    labels[3] = -100
    found = Weighting(kind)(student, teacher, labels)
    assert found[3] == 0 and torch.equal(found[:3], expected[:3])
    assert torch.equal(found[4:], expected[4:])


@pytest.mark.parametrize("kind", [*RULES, *RESCALED])
def test_tokens_are_rows(kind):
    student, teacher, labels = batch(count=20)
    flat = Weighting(kind)(student, teacher, labels)
    tokens = Weighting(kind)(student.view(4, 5, 10), teacher.view(4, 5, 10), labels.view(4, 5))
    torch.testing.assert_close(tokens.flatten(), flat)


# --- in a method ---


def total(weighting, losses, *logits, **more):
    method = Distiller(torch.nn.Identity(), weighting=weighting)
    return method.total(Terms(losses, *logits, **more), Progress(0, 1, 0))


@pytest.mark.parametrize("kind", [*RULES, *RESCALED])
def test_a_method_weighs_its_rows_and_hands_on_the_entropies(kind):
    student, teacher, labels = batch()
    term = torch.rand(12, requires_grad=True)
    found = total(Weighting(kind), {"kd": term}, student, teacher, targets=labels)
    weight = Weighting(kind)(student, teacher, labels)
    torch.testing.assert_close(found.loss, (weight * term).mean())
    seen = Weighting("ea").entropies(student, teacher)
    assert torch.equal(found.entropies.teacher, seen.teacher)
    assert torch.equal(found.entropies.student, seen.student)


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_that_are_missing_are_one_line(kind):
    student, teacher, labels = batch()
    losses = {"kd": torch.ones(12)}
    for more in ({}, {"targets": labels[:5]}):
        with pytest.raises(UserError) as caught:
            total(Weighting(kind), losses, student, teacher, **more)
        message = str(caught.value)
        assert message.startswith(f"weighting.kind={kind}: found ") and "\n" not in message
        assert "(12,): Terms(…, targets=…)" in message
    # Labels of ten classes say nothing of logits of nine.
    nine = {"kd": (student[:, 1:], teacher[:, 1:])}
    with pytest.raises(UserError, match="found no labels"):
        total(Weighting(kind), losses, student, teacher, nine, targets=labels)


def test_what_is_missing_else_is_one_line():
    student, teacher, labels = batch()
    losses = {"kd": torch.ones(12)}
    with pytest.raises(UserError, match=r"^weighting.kind=margin: found no teacher"):
        total(Weighting("margin"), losses, student, targets=labels)
    with pytest.raises(UserError, match="found 'focal_rescaled' for a method without a teacher"):
        total(Weighting("focal_rescaled"), losses, student, targets=labels)
    alone = total(Weighting("focal"), losses, student, targets=labels)
    torch.testing.assert_close(alone.weight, Weighting("focal")(student, teacher, labels))
    known = Weighting("ea").entropies(student, teacher)
    with pytest.raises(UserError, match="found 'margin' for a method that tells no logits"):
        total(Weighting("margin"), losses, entropies=known)


def test_a_callable_is_given_labels_if_it_takes_them():
    student, teacher, labels = batch()
    losses = {"kd": torch.ones(12)}

    def right(student_logits, teacher_logits, targets):
        return (teacher_logits.argmax(-1) == targets).float()

    found = total(right, losses, student, teacher, targets=labels)
    assert torch.equal(found.weight, right(student, teacher, labels))
    assert total(lambda s, t: s[:, 0], losses, student, teacher).weight.shape == (12,)


@pytest.mark.parametrize("kind", [*SHUFFLED, "focal_rescaled"])
def test_a_part_of_a_step_is_weighed_by_itself(kind):
    """As for the controls: the rows weighed together are a micro-batch's."""
    student, teacher, labels = batch()
    part = slice(0, 5)
    given = student[part], teacher[part]
    found = total(Weighting(kind), {"kd": torch.ones(5)}, *given, targets=labels[part]).weight
    assert found.mean().item() == pytest.approx(ea_weight(*given).mean().item(), rel=1e-6)


# --- arguments and names ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "focal", "gamma": 0}, "gamma: found 0"),
        ({"kind": "focal", "gamma": math.inf}, "gamma: found inf"),
        ({"kind": "ea", "gamma": 2}, "gamma: found 2 for ea, allowed is an exponent of focal, pow"),
        ({"kind": "margin", "temperature": -1}, "temperature: found -1"),
        (
            {"kind": "renyi"},
            "found 'renyi', allowed is one of .*confidence.*focal.*margin_rescaled",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        Weighting(**arguments)


def directory(*words):
    return compose(["distiller=kd", *words]).run_dir


def test_names_and_directories():
    assert method_label(compose(["distiller=kd", "weighting=margin"])) == "kd+margin"
    focal = compose(["distiller=kd", "weighting=focal_rescaled"])
    assert method_label(focal) == "kd+focal_rescaled"
    assert (focal.weighting.gamma, focal.weighting.temperature) == (2, 1)
    assert compose(["weighting=power_sum"]).weighting.gamma == 0.25
    assert "gamma" not in compose(["weighting=teacher_rescaled"]).weighting
    # The same computation, the same directory; another one, another.
    assert directory("weighting=focal") == directory("weighting.kind=focal")
    assert directory("weighting=focal") == directory("weighting=focal", "weighting.gamma=2.0")
    names = [f"weighting={kind}" for kind in (*FACTORS, *RULES, *RESCALED)]
    different = [directory(name) for name in names]
    different += [directory("weighting=focal", "weighting.gamma=1")]
    different += [directory("weighting=margin", "weighting.temperature=3")]
    assert len(set(different)) == len(different)
    with pytest.raises(UserError, match="gamma"):
        compose(["weighting=ea", "weighting.gamma=2"])


def test_texts_refuse_what_their_chunks_cannot_tell():
    from eakd.language.distillers import check_weighting

    for kind in ("margin", "teacher_rescaled"):
        with pytest.raises(UserError, match=f"^weighting.kind: found '{kind}', allowed for texts"):
            check_weighting(Weighting(kind))
    check_weighting(Weighting("matched"))
    check_weighting(None)


def test_a_run_trains_and_records_with_labels(tiny_with_teacher, tmp_path):
    words = [*tiny_with_teacher, "distiller=kd", "device=cpu", "threads=1"]
    summary = run(compose([*words, "weighting=focal_rescaled", f"run_dir={tmp_path / 'run'}"]))
    assert summary["method"] == "kd+focal_rescaled" and summary["weighting"] == "focal_rescaled"
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"weight_mean"' in line
    assert '"teacher_entropy"' in (tmp_path / "run" / "dynamics.jsonl").read_text()


def test_figures_weigh_as_the_run_does():
    settings = {"kind": "focal", "gamma": 3.0, "temperature": 2.0}
    a_run = SimpleNamespace(entropy_temperature=3.0, config={"weighting": settings})
    student, teacher, labels = batch()
    rest = torch.zeros(12, 2).numpy(), labels.numpy(), torch.arange(12).numpy()
    answers = [Answers(x.numpy(), *rest, classes=rest[0], key="") for x in (student, teacher)]
    expected = Weighting("focal", gamma=3, temperature=2)(student, teacher, labels)
    torch.testing.assert_close(torch.from_numpy(sample_weights(a_run, *answers)), expected)
