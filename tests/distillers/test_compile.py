"""`torch.compile` of everything that compares logits: whole graphs, and the numbers of eager mode.

The backends need no C++ compiler and still refuse what would break a graph.
"""

import pytest
import torch
from golden import batch, networks
from torch import nn

from eakd.distillers import CTKD, DKD, KD, MLD, Distiller, Progress, Terms, kd_loss, standardize
from eakd.distillers.dkd import non_target_class_loss, target_class_loss
from eakd.weighting import FACTORS, MATCHED, Weighting, ea_weight, entropy

pytestmark = pytest.mark.slow

static = pytest.param(None, id="static")
dynamic = pytest.mark.parametrize("dynamic", [static, pytest.param(True, id="dynamic")])
SHAPES = [(6, 10), (5, 7), (3, 2)]


def compiled(function, dynamic=None, backend="eager"):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)


def logits(shape, seed=0, masked=0):
    """Student's and teacher's; the last ``masked`` classes are no classes."""
    pair = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)) * 4
    if masked:
        pair[..., -masked:] = -torch.inf
    return pair[0].requires_grad_(), pair[1]


def assert_same(function, found, calls):
    """Values, and gradients of the first argument, of a function and its compiled form."""
    for arguments in calls:
        results = []
        for each in (function, found):
            value = each(*arguments)
            results.append([value])
            if value.requires_grad:
                results[-1] += torch.autograd.grad(value.sum(), arguments[0])
        torch.testing.assert_close(*results)


@dynamic
@pytest.mark.parametrize("kind", [*FACTORS, *MATCHED, "power_sum", "focal_rescaled"])
def test_weightings(kind, dynamic):
    calls = [(*logits(shape), torch.arange(shape[0]) % 2) for shape in SHAPES]
    assert_same(Weighting(kind), compiled(Weighting(kind), dynamic), calls)


@dynamic
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_functions(dynamic, backend):
    pairs = [logits(shape, masked=masked) for shape, masked in zip(SHAPES, (1, 0, 0), strict=True)]
    for function in (ea_weight, kd_loss):
        calls = [*pairs, logits((2, 3, 11))]
        assert_same(function, compiled(function, dynamic, backend), calls)
    for function in (entropy, standardize):
        calls = [pair[:1] for pair in pairs]
        assert_same(function, compiled(function, dynamic, backend), calls)
    for function in (target_class_loss, non_target_class_loss):
        calls = [(*pair, torch.arange(len(pair[0])) % 2) for pair in pairs]
        assert_same(function, compiled(function, dynamic, backend), calls)


@dynamic
def test_more_temperatures_than_a_compiler_keeps_versions(dynamic):
    pair = logits((6, 10))
    for function in (kd_loss, ea_weight):
        calls = [(*pair, temperature) for temperature in (1, 1.5, *(2.25 + i for i in range(12)))]
        assert_same(function, compiled(function, dynamic), calls)
    tensors = [torch.tensor(3.0), torch.tensor(2), torch.rand(4, 1, 1) + 1]
    assert_same(kd_loss, compiled(kd_loss, dynamic), [(*pair, tau) for tau in tensors])


def two_views(count, classes=10, masked=0):
    (first, teacher), (second, strong) = (
        logits((count, classes), seed, masked) for seed in (count, count + 1)
    )
    targets = torch.arange(count) % (classes - masked)
    return batch(first, teacher, targets, (second.detach(), strong)), first


@dynamic
@pytest.mark.parametrize("method", [KD, CTKD, DKD, MLD])
@pytest.mark.parametrize(("standard", "kind"), [(False, "ea"), (True, "ea"), (False, "uniform")])
def test_methods_whole_in_every_epoch(method, standard, kind, dynamic):
    """Networks, terms and total in one graph, for batches of several sizes in many epochs."""
    distiller = method(*networks(), Weighting(kind), standardize=standard)

    def loss(data, at):
        return distiller.total(distiller(data, at)).loss

    found = compiled(loss, dynamic)
    for step, (count, masked) in enumerate([(6, 0), (5, 2), *[(6, 0)] * 8]):
        at = Progress(0, 1 + 3 * step, step)
        data, student = two_views(count, masked=masked)
        expected = loss(data, at)
        torch.testing.assert_close(found(data, at), expected)
        (expected,) = torch.autograd.grad(expected, student)
        (gradient,) = torch.autograd.grad(found(data, at), student)
        torch.testing.assert_close(gradient, expected)


@dynamic
def test_total_with_and_without_a_teacher(dynamic):
    for kind in ("ea", "student"):
        distiller = Distiller(nn.Identity(), weighting=Weighting(kind))

        def total(term, student, teacher, distiller=distiller):
            teacher = None if distiller.weighting.kind == "student" else teacher
            return distiller.total(Terms({"a": term, "b": term.mean()}, student, teacher)).loss

        calls = [(torch.rand(n).requires_grad_(), *logits((n, c))) for n, c in SHAPES]
        assert_same(total, compiled(total, dynamic), calls)


def test_a_small_bound_does_not_break_the_graph():
    pair = logits((6, 10))
    weighting = Weighting("ea", max_entropy=0.5)
    with pytest.warns(UserWarning, match="max_entropy"):
        expected = weighting(*pair)
    torch.testing.assert_close(compiled(Weighting("ea", max_entropy=0.5))(*pair), expected)
