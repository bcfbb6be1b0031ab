"""Logit standardisation, and what every logit method promises, with and without it."""

import pytest
import torch
from golden import HalfOfTheImage, TinyNet, batch, networks, progress, untouched
from hypothesis import given, settings
from hypothesis import strategies as st

from eakd.data.base import Batch
from eakd.distillers.base import Terms
from eakd.distillers.ctkd import CTKD
from eakd.distillers.dkd import DKD
from eakd.distillers.kd import KD
from eakd.distillers.mld import MLD
from eakd.distillers.standardization import standardize
from eakd.errors import UserError
from eakd.factors import FACTORS, MATCHED, SHUFFLED
from eakd.weighting import Weighting

METHODS = (KD, CTKD, DKD, MLD)
each_method = pytest.mark.parametrize("method", METHODS)
with_and_without = pytest.mark.parametrize("standard", [False, True], ids=["raw", "ls"])


def random_batch(n=6, c=10, seed=0, scale=4.0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    z = [
        (torch.randn(n, c, generator=generator, dtype=torch.float64) * scale).requires_grad_(
            requires_grad
        )
        for _ in range(4)
    ]
    targets = torch.randint(c, (n,), generator=generator)
    return batch(z[0], z[1], targets, (z[2], z[3])), z


# --- the z-score ---


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 50),
    st.floats(0.1, 100),
    st.floats(-50, 50),
    st.integers(0, 2**31),
)
def test_standardize_removes_range_and_offset(c, scale, offset, seed):
    z = torch.randn(4, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found = standardize(z)
    torch.testing.assert_close(found.mean(-1), torch.zeros(4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.std(-1), torch.ones(4).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardize(scale * z + offset), found, atol=1e-3, rtol=1e-3)


def test_constant_logits_have_zero_gradient():
    z = torch.full((2, 10), 3.0, requires_grad=True)
    out = standardize(z)
    (gradient,) = torch.autograd.grad(out.square().sum(), z)
    assert torch.equal(out, torch.zeros(2, 10)) and torch.equal(gradient, torch.zeros(2, 10))


def test_standardize_computes_half_precision_in_float32():
    z = torch.randn(3, 10).bfloat16()
    assert torch.equal(standardize(z), standardize(z.float()))


@each_method
@pytest.mark.parametrize("entropy_logits", ["raw", "standardized"])
def test_which_logits_give_the_weight(method, entropy_logits):
    data, (student, teacher, *_) = random_batch()
    distiller = method(
        *networks(), Weighting("ea"), standardize=True, entropy_logits=entropy_logits
    ).double()
    total = distiller.total(distiller(data, progress()))
    pair = student, teacher
    if entropy_logits == "standardized":
        pair = standardize(student), standardize(teacher)
    torch.testing.assert_close(total.weight, Weighting("ea")(*pair))


@pytest.mark.parametrize(
    ("method", "released"), [(KD, "raw"), (CTKD, "raw"), (DKD, "standardized"), (MLD, "raw")]
)
def test_default_entropy_logits(method, released):
    assert method(*networks()).entropy_logits == released


# --- every logit method ---


@each_method
@with_and_without
def test_standardize_only_touches_the_divergence(method, standard):
    """Scaling the student's logits changes the cross-entropy, not the standardised divergence."""
    data, (student, teacher, s2, t2) = random_batch()
    distiller = method(*networks(), standardize=standard).double()
    scaled = batch(3 * student, teacher, data.targets, (3 * s2, t2))
    first, second = distiller(data, progress()), distiller(scaled, progress())
    for name in first:
        if first[name].dim():
            same = torch.allclose(first[name], second[name], rtol=1e-4)
            assert same == standard, name
    assert not torch.allclose(first["ce"], second["ce"])


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.booleans(),
    st.integers(2, 12),
    st.integers(3, 12),
    st.data(),
)
def test_per_sample_terms_do_not_depend_on_the_rest_of_the_batch(method, standard, n, c, draw):
    cut = draw.draw(st.integers(1, n - 1))
    data, _ = random_batch(n, c, seed=n * c)
    options = {"variant": "published"} if method is MLD else {}
    distiller = method(*networks(), Weighting("ea"), standardize=standard, **options).double()
    whole = distiller(data, progress())
    parts = [
        distiller(Batch(*(x[s] for x in data[:4])), progress())
        for s in (slice(None, cut), slice(cut, None))
    ]
    for name, term in whole.items():
        # MLD's weak instance term has the batch's share of masked samples as its factor.
        if term.dim() and name != "instance_weak":
            torch.testing.assert_close(torch.cat([p[name] for p in parts]), term)


@each_method
@with_and_without
def test_uniform_weighting_is_the_plain_method(method, standard):
    data, _ = random_batch()
    distiller = method(*networks(), Weighting("uniform"), standardize=standard).double()
    terms = distiller(data, progress())
    plain = sum(term.mean() for term in terms.values())
    assert torch.equal(distiller.total(terms).loss, plain)


@each_method
@with_and_without
@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED, *SHUFFLED, "focal", "margin_rescaled"])
def test_gradients_reach_neither_teacher_nor_weight(method, standard, kind):
    data, z = random_batch(requires_grad=True)
    distiller = method(
        *networks(), Weighting(kind), standardize=standard, entropy_logits="standardized"
    ).double()
    terms = distiller(data, progress())
    total = distiller.total(terms, progress())
    assert not total.weight.requires_grad
    expected = torch.autograd.grad(
        sum(
            term.mean() if term.dim() == 0 else (_weight(distiller, terms, name) * term).mean()
            for name, term in terms.items()
        ),
        z[0],
        retain_graph=True,
    )[0]
    total.loss.backward()
    torch.testing.assert_close(z[0].grad, expected)
    assert untouched(z[1], z[3])


def _weight(distiller, terms: Terms, name: str) -> torch.Tensor:
    """The weight as a constant, recomputed outside of the graph."""
    pair = [x.detach().clone() for x in terms.entropy_logits[name]]
    weighting = distiller.weighting
    seen = weighting.entropies(*pair)._replace(judged=weighting.judge(*pair, terms.targets))
    return weighting.deal(weighting.combine(seen), progress().generator)


@each_method
@with_and_without
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_one_training_step(method, standard, precision):
    torch.manual_seed(0)
    student, teacher = TinyNet(), TinyNet()
    distiller = method(student, teacher, Weighting("ea"), standardize=standard)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1, weight_decay=5e-4)
    images, strong = torch.randn(2, 16, 3, 8, 8)
    data = Batch(images, torch.arange(16) % 10, torch.arange(16), strong)
    frozen = [p.clone() for p in teacher.parameters()]
    losses = []
    for step in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = distiller.total(distiller(data, progress(1 + step))).loss
        assert loss.dtype == torch.float32 and loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if method is not DKD:  # whose coefficient grows during the warm-up
        assert losses[-1] < losses[0]
    assert all(map(torch.equal, frozen, teacher.parameters()))
    assert not any(k.startswith("teacher") for k in distiller.state_dict())
    assert set(distiller.inference_model.state_dict()) == set(TinyNet().state_dict())


@each_method
def test_bad_values(method):
    for name, value in (("standardize", "yes"), ("entropy_logits", "softmax")):
        with pytest.raises(UserError, match=f"^{name}: found"):
            method(*networks(), **{name: value})
    with pytest.raises(UserError, match=r"^teacher: found 9 classes, allowed is 10"):
        mismatched = method(HalfOfTheImage(0), _Narrow(), Weighting("ea"))
        mismatched.total(mismatched(random_batch()[0], progress()))


class _Narrow(HalfOfTheImage):
    """A teacher with one class less than the student."""

    def __init__(self):
        super().__init__(1)

    def forward(self, images, features=True):
        output = super().forward(images, features)
        return output._replace(logits=output.logits[:, :-1])
