"""The fused loss is the plain formula, however a step is cut, ordered, padded and chunked."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.factors import FACTORS, MATCHED
from eakd.language.batches import collate
from eakd.language.distillers import LEVELS, SFT, SequenceKD
from eakd.language.loss import DIVERGENCES
from eakd.language.models import split
from eakd.weighting import Weighting, ea_weight, entropy
from language.networks import VOCABULARY, gpt2, llama, text_data

NOW = Progress(0, 1, 0)


def step(method, batches):
    """Loss and gradients of a whole step."""
    method.student.zero_grad()
    loss = 0.0
    for batch in batches:
        total = method.total(method(batch, NOW), NOW)
        total.loss.backward()
        loss += total.loss.item()
    return loss, [p.grad.clone() for p in method.trainable_parameters() if p.grad is not None]


def assert_same(found, expected, rtol=1e-9):
    assert found[0] == pytest.approx(expected[0], rel=rtol)
    assert len(found[1]) == len(expected[1])
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-3 * rtol)


def method_of(level="sequence", kind="ea", divergence="forward_kl", dtype=torch.float64, **more):
    networks = gpt2().to(dtype), llama().to(dtype)
    settings = {"level": level, "divergence": divergence, "weighting": Weighting(kind)} | more
    return SequenceKD(*networks, **settings)


def whole_batch(data):
    """The first step's rows in one batch, in the order of the draw."""
    rows = next(data.step_rows(1))
    return collate([data.train[i] for i in rows], rows)


def plain_formula(method, batch):
    """All logits of all positions, and autograd, sequence by sequence."""
    student, teacher = method.student, method.teacher
    with torch.no_grad():
        taught = teacher(input_ids=batch.tokens).logits
    said = student(input_ids=batch.tokens).logits
    loss, tau = 0.0, method.temperature
    for i in range(len(batch.tokens)):
        at = batch.places[batch.row == i] - i * batch.tokens.shape[1]
        z, t, y = said[i, at], taught[i, at], batch.targets[batch.row == i]
        q, p = (z / tau).log_softmax(-1), (t / tau).log_softmax(-1)
        if method.divergence == "forward_kl":
            d = F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        elif method.divergence == "reverse_kl":
            d = F.kl_div(p, q, log_target=True, reduction="none").sum(-1)
        else:
            m = (q.exp() + p.exp()) / 2 + 1e-9
            a, b = q.exp(), p.exp()
            d = (
                a * ((a + 1e-9).log() - m.log()) + b * ((b + 1e-9).log() - m.log())
            ).sum(-1) / 2  # fmt: skip
        tokens = ea_weight(z, t)
        h_t, h_s = entropy(t).mean(), entropy(z).mean()
        w = (h_t + h_t * h_s / torch.tensor(VOCABULARY).double().log()) / 2
        kd = {
            "sequence": w * d.sum() / batch.count,
            "token_mean": tokens.mean() * d.sum() / batch.count,
            "sequence_mean": w * d.mean() / batch.rows,
            "token": (tokens * d).sum() / batch.count,
        }[method.level]
        loss = loss + 0.5 * kd + 0.5 * F.cross_entropy(z, y, reduction="sum") / batch.count
    student.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in student.parameters()]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("level", LEVELS)
def test_it_is_the_plain_formula(level, divergence):
    batch = whole_batch(text_data())
    method = method_of(level, "ea", divergence, chunk_size=16)
    expected = plain_formula(method, batch)
    assert_same(step(method, [batch]), expected, rtol=1e-8)
    single = method_of(level, "ea", divergence, torch.float32)
    loss, gradients = step(single, [batch])
    assert loss == pytest.approx(expected[0], rel=1e-5)
    for found, wanted in zip(gradients, expected[1], strict=True):
        assert (found - wanted).norm() <= 2e-5 * wanted.norm()


@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED])
@pytest.mark.parametrize("level", LEVELS)
def test_no_cut_of_a_step_changes_it(level, kind):
    method = method_of(level, kind)
    whole = [whole_batch(text_data())]
    expected = step(method, [batch._replace(step=tuple(whole)) for batch in whole])
    for settings in (
        {"tokens_per_batch": 1},  # each row its own batch, without padding
        {"tokens_per_batch": 100},
        {"tokens_per_batch": 10_000, "accumulate": 3},
    ):
        batches = next(text_data(**settings).epoch(1))
        assert_same(step(method, batches), expected)
    assert len(batches) == 3
    method.chunk_size = 7
    assert_same(step(method, batches), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_the_parts_of_two_processes_add_up(level):
    method = method_of(level)
    expected = step(method, [whole_batch(text_data())])
    losses, gradients = zip(
        *(step(method, next(text_data(part=(rank, 2)).epoch(1))) for rank in (0, 1)), strict=True
    )
    assert_same((sum(losses), [a + b for a, b in zip(*gradients, strict=True)]), expected)


@pytest.mark.parametrize("kind", ["ea", "matched"])
@pytest.mark.parametrize("level", LEVELS)
def test_gradients_taken_ahead_are_those_of_backpropagation(level, kind):
    class Own(Weighting):
        """Not known to the fused loss, which waits for backpropagation then."""

    data = text_data(tokens_per_batch=200)
    ahead, after = method_of(level, kind), method_of(level, weighting=Own("ea"))
    if kind == "matched":
        after.weighting = Own("matched")
        after._foresee = lambda batch: None
    batches = next(data.epoch(1))
    assert_same(step(ahead, batches), step(after, batches))


def test_a_scaled_loss_has_scaled_gradients_and_an_unforeseen_one_none():
    batch = whole_batch(text_data())
    method = method_of()
    _, expected = step(method, [batch])
    method.student.zero_grad()
    (method.total(method(batch, NOW)).loss / 4).backward()
    for parameter, whole in zip(method.student.parameters(), expected, strict=True):
        torch.testing.assert_close(4 * parameter.grad, whole)
    method.student.zero_grad()
    terms = method(batch, NOW)  # another mixture than the one that gradients were taken for
    (terms["ce"] + 3 * terms["kd"].sum()).backward()
    assert all(p.grad.isnan().any() for p in method.student.parameters())


def test_a_head_that_is_no_linear_map_takes_the_models_own_logits():
    class Capped(nn.Linear):
        def forward(self, hidden):
            return 5 * torch.tanh(super().forward(hidden) / 5)

    batch = whole_batch(text_data())
    method = method_of()
    for model in (method.student, method.teacher):
        head = Capped(32, VOCABULARY, bias=False).double()
        head.weight = model.get_output_embeddings().weight
        model.lm_head = head
    assert split(method.student) is None is split(method.teacher)
    assert_same(step(method, [batch]), plain_formula(method, batch), rtol=1e-8)


def test_a_scaled_head_is_noticed():
    class Scaled(type(gpt2())):
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 0.5
            return found

    plain = gpt2()
    scaled = Scaled(plain.config)
    scaled.load_state_dict(plain.state_dict())
    assert split(plain) is not None and split(scaled) is None


@pytest.mark.parametrize("padded", ["student", "teacher"])
def test_logits_beyond_the_tokenizers_size_count_for_nothing(padded):
    batch = whole_batch(text_data())
    sizes = {"student": VOCABULARY, "teacher": VOCABULARY}
    networks = {"student": gpt2().double(), "teacher": llama().double()}
    expected = step(SequenceKD(**networks, weighting=Weighting("ea")), [batch])
    sizes[padded] += 31
    wider = {
        "student": gpt2(vocabulary=sizes["student"]).double(),
        "teacher": llama(vocabulary=sizes["teacher"]).double(),
    }
    for role, model in wider.items():
        state = {
            name: torch.cat([value, torch.full_like(model.state_dict()[name], 9.0)[len(value) :]])
            if value.dim() and len(value) == VOCABULARY
            else value
            for name, value in networks[role].state_dict().items()
        }
        model.load_state_dict(state)
    method = SequenceKD(**wider, weighting=Weighting("ea"), vocabulary=VOCABULARY)
    loss, gradients = step(method, [batch])
    assert_same(
        (loss, [g[: len(e)] for g, e in zip(gradients, expected[1], strict=True)]), expected
    )
    with pytest.raises(UserError, match="allowed is the tokenizer's size"):
        SequenceKD(**wider)


def test_matched_is_the_mean_of_what_the_step_would_have_weighed():
    """With dropout, whose random numbers the pass ahead must draw again."""
    batches = next(text_data(tokens_per_batch=80).epoch(1))
    assert len(batches) > 2
    method = method_of()
    method.student = gpt2(dropout=0.2).double().train()
    torch.manual_seed(5)
    known = [(method.total(method(batch, NOW)).weight, batch.lengths) for batch in batches]
    weighted = sum((w * torch.tensor(n)).sum() for w, n in known)
    expected = weighted / sum(sum(n) for _, n in known)
    method.weighting = Weighting("matched")
    torch.manual_seed(5)
    for batch in batches:
        weight = method.total(method(batch, NOW)).weight
        assert torch.allclose(weight, expected, rtol=1e-12, atol=0)


def test_fine_tuning_is_the_cross_entropy_of_the_answers():
    batches = next(text_data(tokens_per_batch=200).epoch(1))
    method = SFT(gpt2().double())
    found = step(method, batches)
    whole = whole_batch(text_data())
    logits = method.student(input_ids=whole.tokens).logits.flatten(0, 1)[whole.places]
    method.student.zero_grad()
    loss = F.cross_entropy(logits, whole.targets)
    loss.backward()
    assert_same(found, (loss.item(), [p.grad.clone() for p in method.student.parameters()]))


def test_logits_of_all_tokens_never_exist_at_once():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for each in found if isinstance(found, tuple | list) else [found]:
                if isinstance(each, torch.Tensor):
                    self.numel = max(self.numel, each.numel())
            return found

    vocabulary = 4001
    data = text_data()
    batch = whole_batch(data)
    student, teacher = gpt2(width=8, vocabulary=vocabulary), gpt2(3, 8, vocabulary=vocabulary)
    for weighting in (Weighting("ea"), Weighting("shuffled")):
        method = SequenceKD(student, teacher, weighting, chunk_size=20)
        split(student), split(teacher)
        with Largest() as largest:
            method.total(method(batch, NOW), NOW).loss.backward()
        assert vocabulary * 8 <= largest.numel <= vocabulary * 20 < vocabulary * len(batch.targets)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": "word"}, "level: found 'word', allowed is one of sequence, token_mean"),
        ({"temperature": 0}, "temperature: found 0"),
        ({"ce_weight": -1}, "ce_weight: found -1"),
        ({"divergence": "kl"}, "divergence: found 'kl', allowed is one of forward_kl"),
        ({"chunk_size": 0}, "chunk_size: found 0"),
        ({"scale_by_temperature": 1}, "scale_by_temperature: found 1"),
    ],
)
def test_wrong_values_are_named(settings, words):
    with pytest.raises(UserError) as caught:
        SequenceKD(gpt2(), llama(), **settings)
    assert words in str(caught.value)


def test_a_factor_of_temperature_squared_is_a_choice():
    batch = whole_batch(text_data())
    plain = method_of(kd_weight=0.5)
    scaled = method_of(kd_weight=0.125, scale_by_temperature=True)
    assert_same(step(scaled, [batch]), step(plain, [batch]))
