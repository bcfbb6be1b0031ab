"""Methods on regions: published values, the same boxes for both networks, exact repetition."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from region_batches import CLASSES, Pictures, pictures, student, teacher

from eakd.composing import compose
from eakd.detection.detectors import frcnn_tiny
from eakd.detection.detectron2 import background_first
from eakd.detection.distillers import Detector, RoIDKD, RoIKD
from eakd.detection.regions import (
    Regions,
    RegionTerms,
    mean_of_images,
    on_foreground,
    region_losses,
    region_statistics,
)
from eakd.distillers.base import Progress
from eakd.errors import UserError
from eakd.weighting import Weighting, ea_weight

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection.npz")
START = Progress(seed=0, epoch=1, step=0)
TOLERANCES = {  # of values, of gradients
    torch.float64: ({"rtol": 1e-6, "atol": 1e-7}, {"rtol": 1e-5, "atol": 1e-8}),
    torch.float32: ({"rtol": 2e-3, "atol": 1e-6}, {"rtol": 2e-3, "atol": 2e-4}),
}


@pytest.fixture(scope="module")
def networks_of_80():
    return frcnn_tiny(80), frcnn_tiny(80)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("case", "method", "kind", "name"),
    [
        ("r24_kd_T1", RoIKD, "uniform", "kd"),
        ("r24_kd_T4", RoIKD, "uniform", "kd"),
        ("r24_kd_T1", RoIKD, "ea", "EA_kd"),
        ("r24_kd_T4", RoIKD, "ea", "EA_kd"),
        ("r24_dkd", RoIDKD, "uniform", "loss_dkd"),
    ],
)
def test_published_values(case, method, kind, name, dtype, networks_of_80):
    """The peers' functions on 24 regions of 80 classes, whose background is the last class."""
    hyper, bits = json.loads(str(GOLDEN[f"{case}/hyper"])), torch.finfo(dtype).bits
    values, gradients = TOLERANCES[dtype]

    def read(key):
        return torch.tensor(GOLDEN[f"in/r24/{key}"]).to(dtype)

    leaf = read("student_logits").requires_grad_()
    labels = (torch.tensor(GOLDEN["in/r24/gt_classes"]) + 1) % 81
    offsets = background_first(read("student_box"), boxes=True, dim=1)
    boxes = [torch.zeros(10, 4), torch.zeros(14, 4)]
    image = torch.tensor([0] * 10 + [1] * 14)
    regions = Regions(background_first(leaf, dim=1), offsets, labels, image, boxes)
    answers = (
        background_first(read("teacher_logits"), dim=1),
        background_first(read("teacher_box"), boxes=True, dim=1),
    )
    parameters = {"temperature": hyper["T"]}
    parameters |= {key: hyper[key] for key in ("alpha", "beta") if key in hyper}
    if method is RoIKD:
        parameters["box_weight"] = 1.0
    distiller = method(*networks_of_80, Weighting(kind), **parameters)
    terms = distiller.compare(regions, answers, {}, START)
    box = terms.pop("box", None)
    total = distiller.total(terms, START)
    total.loss.backward()
    expected = f"{case}/out{bits}/"
    torch.testing.assert_close(
        total.loss.detach(), torch.tensor(GOLDEN[expected + name]).to(dtype), **values
    )
    suffix = "" if method is RoIDKD else f"_{name}"
    gradient = torch.tensor(GOLDEN[f"{case}/grad{bits}/student_logits{suffix}"]).to(dtype)
    torch.testing.assert_close(leaf.grad, gradient, **gradients)
    if kind == "ea":
        weight = torch.tensor(GOLDEN[expected + "w"]).to(dtype)
        torch.testing.assert_close(total.weight, weight, **values)
    if box is not None:
        wanted = torch.tensor(GOLDEN[expected + "box_l2"]).to(dtype)
        torch.testing.assert_close(box.mean(), wanted, **values)


def counted(module, calls, name):
    module.register_forward_hook(
        lambda _, arguments, __: calls.setdefault(name, []).append(arguments)
    )


@pytest.mark.parametrize("method", [RoIKD, RoIDKD])
def test_both_networks_judge_the_same_boxes_once(method):
    networks, calls = {"student": student(), "teacher": teacher()}, {}
    for role, network in networks.items():
        counted(network.roi_heads.box_roi_pool, calls, f"{role} pool")
        counted(network.rpn, calls, f"{role} rpn")
        counted(network.backbone, calls, f"{role} backbone")
    distiller = method(**networks, weighting=Weighting("ea")).train()
    terms = distiller(pictures(), START)
    assert {name: len(found) for name, found in calls.items()} == {
        "student pool": 1, "student rpn": 1, "student backbone": 1,
        "teacher pool": 1, "teacher backbone": 1,
    }  # fmt: skip
    (_, own, _), (_, teachers, _) = calls["student pool"][0], calls["teacher pool"][0]
    for a, b, kept in zip(own, teachers, terms.boxes, strict=True):
        assert torch.equal(a, b) and torch.equal(a, kept) and len(a) > 8
    distiller.total(terms, START).loss.backward()
    assert all(p.grad is None for p in networks["teacher"].parameters())
    assert all(p.grad is not None for p in networks["student"].parameters())


def test_a_teachers_means_matter_while_it_teaches():
    batch, boxes = pictures(), [torch.tensor([[4.0, 4, 30, 30]])] * 2
    found = {
        means: RoIKD(student(), teacher(channel_means=means)).teacher_pass(batch, boxes)[0]
        for means in ("as_trained", "as_published")
    }
    expected = teacher()
    with torch.no_grad():
        maps = expected.maps(batch.images, batch.sizes)
        logits, _ = expected.regions(maps, boxes, batch.sizes)
    assert torch.equal(found["as_trained"], logits)
    assert (found["as_published"] - logits).abs().max() > 1e-3


def steps(distiller, optimizer, first, last):
    for step in range(first, last):
        now = START._replace(step=step)
        terms = distiller(pictures(seed=step), now)
        distiller.total(terms, now).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def distilled():
    distiller = RoIKD(student(), teacher(), Weighting("shuffled")).train()
    return distiller, torch.optim.SGD(distiller.trainable_parameters(), lr=0.01, momentum=0.9)


def test_resumed_bit_for_bit():
    """Wherever torch's own generator stands: what is sampled is a function of the step."""
    whole, optimizer = distilled()
    steps(whole, optimizer, 0, 4)
    first, before = distilled()
    steps(first, before, 0, 2)
    second, after = distilled()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    torch.manual_seed(12345)
    steps(second, after, 2, 4)
    expected, found = whole.state_dict(), second.state_dict()
    assert not any(key.startswith("teacher") for key in expected)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_steps_processes_and_micro_batches_sample_for_themselves(monkeypatch):
    method, batch = Detector(student(rois_per_image=16)).train(), pictures()

    def boxes(now, batch=batch):
        return torch.cat(method(batch, now).boxes)

    first = boxes(START)
    assert torch.equal(first, boxes(START))
    assert not torch.equal(first, boxes(START._replace(step=1)))
    assert not torch.equal(first, boxes(START, batch._replace(start=2)))
    monkeypatch.setattr("eakd.detection.distillers.rank", lambda: 1)
    assert not torch.equal(first, boxes(START))


@pytest.mark.parametrize("kind", ["uniform", "ea", "matched", "shuffled"])
@pytest.mark.parametrize("objects", [(0, 2), (0, 0)])
@pytest.mark.parametrize("rois", ["all", "foreground"])
def test_images_without_boxes(kind, objects, rois):
    distiller = RoIKD(student(), teacher(), Weighting(kind), rois=rois, box_weight=1.0).train()
    terms = distiller(pictures(objects=objects), START)
    total = distiller.total(terms, START)
    assert total.loss.isfinite()
    total.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())
    if rois == "foreground":
        assert terms.foreground.all() and len(terms.boxes[0]) == 0
        assert len(terms["kd"]) == sum(map(len, terms.boxes))
        if objects == (0, 0):
            assert terms.mean(terms["kd"]) == 0
    statistics = region_statistics(terms)
    assert all(x.shape == (2,) and x.isfinite().all() for x in statistics.values())


def test_no_region_at_all():
    logits, offsets = torch.zeros(0, CLASSES + 1, requires_grad=True), torch.zeros(0, 16)
    nothing = torch.zeros(0, dtype=torch.int64)
    regions = Regions(logits, offsets, nothing, nothing, [torch.zeros(0, 4)] * 2)
    classes, boxes = region_losses(regions, torch.zeros(0, 4), 0.0)
    assert classes == boxes == 0
    for method, sample in ((RoIKD, "roi"), (RoIDKD, "image")):
        distiller = method(student(), teacher(), Weighting("ea"), sample=sample)
        terms = distiller.compare(regions, (logits.detach(), offsets), {"roi": classes}, START)
        assert distiller.total(terms, START).loss == 0
        assert region_statistics(terms)["foreground_weight"].tolist() == [0, 0]


def answers(seed=0):
    """Seven regions of three images, the second of which has none."""
    draw = torch.Generator().manual_seed(seed)
    logits, teachers = (4 * torch.randn(7, CLASSES + 1, generator=draw) for _ in range(2))
    offsets, others = (torch.randn(7, 16, generator=draw) for _ in range(2))
    labels = torch.tensor([1, 0, 0, 3, 0, 2, 0])
    boxes = [torch.zeros(3, 4), torch.zeros(0, 4), torch.ones(4, 4)]
    image = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    return Regions(logits, offsets, labels, image, boxes), (teachers, others)


def weighed(kind="ea", **settings):
    regions, teachers = answers()
    distiller = RoIKD(student(), teacher(), Weighting(kind), **settings)
    terms = distiller.compare(regions, teachers, {}, START)
    return regions.logits, teachers[0], terms, distiller.total(terms, START)


def test_a_weight_for_each_image():
    own, teachers, terms, total = weighed(sample="image")
    weight = ea_weight(own, teachers)
    expected = torch.cat([weight[:3].mean().expand(3), weight[3:].mean().expand(4)])
    torch.testing.assert_close(total.weight, expected)
    torch.testing.assert_close(total.loss, (expected * terms["kd"]).mean())


def test_the_weight_without_background():
    own, teachers, terms, total = weighed(classes="foreground", box_weight=0.5)
    torch.testing.assert_close(total.weight, ea_weight(own[:, 1:], teachers[:, 1:]))
    assert total.entropies.bound == pytest.approx(math.log(CLASSES))
    regions, (_, others) = answers()
    distance = (regions.offsets - others)[:, 4:].square().mean(1)
    torch.testing.assert_close(terms["box"], 0.5 * distance)
    torch.testing.assert_close(total.loss, (total.weight * (terms["kd"] + terms["box"])).mean())


def test_a_rule_sees_the_regions_labels():
    regions, (teachers, _) = answers()
    weight = Weighting("focal")(regions.logits, teachers, regions.labels)
    torch.testing.assert_close(weighed("focal")[3].weight, weight)
    means = torch.cat([weight[:3].mean().expand(3), weight[3:].mean().expand(4)])
    shared = weighed("focal_rescaled", sample="image")[3].weight
    ea = ea_weight(regions.logits, teachers)
    torch.testing.assert_close(shared, means * ea.mean() / weight.mean())
    assert weighed("margin", classes="foreground")[3].weight.shape == (7,)
    with pytest.raises(UserError, match=r"^weighting\.kind=focal: found no labels"):
        weighed("focal", classes="foreground")  # which number the background too


def test_foreground_regions_alone():
    regions, teachers = answers()
    rows, (logits, offsets) = on_foreground(regions, teachers)
    assert rows.labels.tolist() == [1, 3, 2] and rows.image.tolist() == [0, 2, 2]
    assert [len(boxes) for boxes in rows.boxes] == [1, 0, 2]
    assert torch.equal(logits, teachers[0][[0, 3, 5]])
    assert torch.equal(offsets, teachers[1][[0, 3, 5]])


def test_statistics_of_weights():
    regions, (teachers, _) = answers()
    terms = RegionTerms({}, regions, teachers)
    assert set(region_statistics(terms)) == {"rois", "foreground_share"}
    terms.weight = torch.tensor([3.0, 1, 2, 1, 1, 1, 1])
    found = {name: values.tolist() for name, values in region_statistics(terms).items()}
    assert found["rois"] == [3, 0, 4]
    assert found["foreground_share"] == pytest.approx([1 / 3, 0, 0.5])
    assert found["foreground_weight"] == pytest.approx([0.5, 0, 0.5])
    rows = torch.tensor([1.0, 2, 3, 4, 5, 6, 9])
    assert mean_of_images(rows, regions.image, 3).tolist() == [2, 0, 6]


def trained(distiller, count):
    """Each step's losses, on the same two pictures with the same draw."""
    distiller.train()
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.02, momentum=0.9)
    batch, history = pictures(), []
    before = copy.deepcopy(batch.targets)
    for _ in range(count):
        terms = distiller(batch, START)
        distiller.total(terms, START).loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.trainable_parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        values = {name: terms.mean(x) if x.dim() else x for name, x in terms.items()}
        history.append({name: value.item() for name, value in values.items()})
    for wanted, found in zip(before, batch.targets, strict=True):  # torchvision got copies
        assert wanted.keys() == found.keys()
        assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    return history


def check_fell(history, **shares):
    for name, share in shares.items():
        late = sum(line[name] for line in history[-5:]) / 5
        assert late < share * history[0][name], (name, history[0][name], late)


def test_training_reduces_losses():
    """First a teacher on its own, then a student that learns from it."""
    first = student()
    history = trained(Detector(first), 60)
    assert set(history[0]) == {"rpn_class", "rpn_box", "roi_class", "roi_box"}
    check_fell(history, rpn_class=0.2, rpn_box=0.8, roi_class=0.4)
    (found, _) = first.eval().detect(*pictures()[:2])
    assert found["scores"].max() > 0.2
    history = trained(RoIKD(student(3), first, Weighting("ea")), 40)
    check_fell(history, rpn_class=0.2, rpn_box=0.8, roi_class=0.4, kd=0.4)


def test_logits_and_boxes_are_float32_under_autocast():
    distiller = RoIKD(student(), teacher(), Weighting("ea"), box_weight=1.0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(pictures(), START)
        total = distiller.total(terms, START)
    total.loss.backward()
    kinds = {terms.student_logits, terms.teacher_logits, *terms.boxes, *terms.values()}
    assert {x.dtype for x in kinds} == {torch.float32} and total.loss.isfinite()


def test_box_loss_is_of_both_stages_and_the_same_in_every_method():
    found = {}
    for box_loss in ("l1", "smooth_l1"):
        for method in (Detector, RoIKD, RoIDKD):
            network = student()
            distiller = method(network, teacher(), box_loss=box_loss).train()
            terms = distiller(pictures(), START)
            found[box_loss, method] = terms["rpn_box"].item(), terms["roi_box"].item()
        assert len({found[box_loss, method] for method in (Detector, RoIKD, RoIDKD)}) == 1
    assert all(
        a > b > 0 for a, b in zip(found["l1", RoIKD], found["smooth_l1", RoIKD], strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": "batch"}, "^sample: found 'batch', allowed is one of roi, image"),
        ({"rois": "background"}, "^rois: .*all, foreground"),
        ({"classes": "all"}, "^classes: .*with_background, foreground"),
        ({"box_loss": "l2"}, "^box_loss: .*l1, smooth_l1"),
        ({"box_weight": -1}, "^box_weight: found -1, allowed is a number >= 0"),
        ({"temperature": 0}, "^temperature: found 0, allowed is a number > 0"),
    ],
)
def test_wrong_values(settings, message):
    with pytest.raises(UserError, match=message):
        RoIKD(student(), teacher(), **settings)


def test_networks_of_other_classes_are_refused():
    with pytest.raises(UserError, match=r"^teacher: found 5 classes, .* the student's 3$"):
        RoIKD(student(), frcnn_tiny(5))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["student=frcnn_tiny"],
            "student: found frcnn_tiny, a network for eakd.detection.Detection, allowed with "
            "data=digits is ",
        ),
        (
            ["distiller=detection/ea_kd"],
            "distiller: found kd, a method for eakd.detection.Detection, allowed with data=digits "
            "is ctkd, dkd, ",
        ),
        (
            ["data.task=eakd.detection.Detection", "student=frcnn_tiny"],
            "distiller: found kd, a method for eakd.classification.Classification, allowed with "
            "data=digits is detection/dkd, detection/kd, detection/none",
        ),
        (
            ["data.task=eakd.detection.Detection", "distiller=detection/none"],
            "student: found resnet8, a network for eakd.classification.Classification, allowed "
            "with data=digits is frcnn_mobilenetv2, frcnn_r101, frcnn_r18, frcnn_r50, frcnn_tiny",
        ),
    ],
)
def test_domains_are_not_mixed(words, message, tmp_path, monkeypatch):
    from eakd.training.run import run

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        run(compose(words))
    assert str(refusal.value).startswith(message), refusal.value
    assert not list(tmp_path.iterdir())


def test_pictures_are_as_batches_are():
    """The stand-in has what the methods read of a batch, and the real one has it too."""
    batches = pytest.importorskip("eakd.detection.boxes")
    assert set(Pictures._fields) <= set(batches.BoxBatch._fields)
