"""Converted weights give detectron2's own numbers, and files that are none are refused."""

from __future__ import annotations

import codecs
import json
import os
import pickle
import zlib
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from eakd.detection.detectors import frcnn_r50, frcnn_r101
from eakd.detection.detectron2 import background_first, convert
from eakd.detection.parts import BETAS
from eakd.detection.regions import Regions, region_losses
from eakd.errors import UserError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detectron2.npz")
SIZES = [(128, 192)]
SCALED = {
    "conv3.norm.weight": 0.2,
    "objectness_logits.weight": 0.1,
    "anchor_deltas.weight": 0.1,
    "bbox_pred.weight": 0.1,
    "cls_score.weight": 0.3,
    "stem.conv1.weight": 0.02,
}


def filled(name: str, shape: list[int]) -> np.ndarray:
    """The weights that detectron2 ran with, from each tensor's name."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) >= 2:
        values = rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        values = 0.5 + rng.rand(*shape)
    elif name.endswith("running_mean"):
        values = 0.1 * rng.randn(*shape)
    elif name.endswith("weight"):
        values = 0.8 + 0.4 * rng.rand(*shape)
    else:
        values = 0.1 * rng.randn(*shape)
    scale = next((scale for end, scale in SCALED.items() if name.endswith(end)), 1.0)
    return (scale * values).astype(np.float32)


def keys(depth: str) -> list[tuple[str, list[int]]]:
    return json.loads(str(GOLDEN[f"{depth}/keys"]))


@pytest.fixture(scope="module", params=["r50", "r101"])
def converted(request, tmp_path_factory):
    """Depth, and the network with converted weights, from a file as the zoo's."""
    depth = request.param
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    model = {name: filled(name, shape) for name, shape in keys(depth)}
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2"}, protocol=2))
    build = {"r50": frcnn_r50, "r101": frcnn_r101}[depth]
    network = build(80, stride_in_1x1=True).eval()
    network.load_state_dict(convert(path, 80))  # strictly: no name left over on either side
    path.unlink()
    return depth, network


def image(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(GOLDEN["in/image_rgb"]).permute(2, 0, 1)[None].to(dtype) / 255


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@torch.no_grad()
def test_maps_logits_and_losses(converted, dtype, rtol):
    depth, network = converted
    network.to(dtype)
    expected = f"{depth}/out{torch.finfo(dtype).bits}/"

    def check(found, name):
        wanted = torch.tensor(GOLDEN[expected + name]).to(dtype)
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * scale)

    def check_map(found, name):
        check(found.flatten()[:64], f"{name}_first64")
        check(torch.stack([found.mean(), found.square().mean()]), f"{name}_mean_meansq")

    maps, boxes = network.maps(image(dtype), SIZES), torch.tensor(GOLDEN["in/boxes"]).to(dtype)
    for name, found in zip(("p2", "p3", "p4", "p5", "p6"), maps.values(), strict=True):
        check_map(found, name)
    check_map(network.roi_heads.box_roi_pool(maps, [boxes], SIZES), "pooled")
    logits, offsets = network.regions(maps, [boxes], SIZES)
    check(logits.roll(-1, dims=1), "cls_logits")  # theirs have the background last
    check(offsets[:, 4:], "box_deltas")

    labels = (torch.tensor(GOLDEN["in/gt_classes_d2"]) + 1) % 81
    goals = network.roi_heads.box_coder.encode([torch.tensor(GOLDEN["in/gt_boxes"])], [boxes])[0]
    regions = Regions(logits, offsets, labels, torch.zeros_like(labels), [boxes])
    classes, distances = region_losses(regions, goals.to(dtype), BETAS["l1"])
    check(classes, "loss_cls")
    check(distances, "loss_box_reg")


@torch.no_grad()
def test_proposals_and_detections(converted):
    depth, network = converted
    network.float()
    x = image(torch.float32)
    proposals, _ = network.rpn(ImageList(x, SIZES), network.maps(x, SIZES))
    wanted = torch.tensor(GOLDEN[f"{depth}/out32/proposals"])
    torch.testing.assert_close(proposals[0][:100], wanted, rtol=0, atol=1e-3)

    (found,) = network.detect(x, SIZES)
    boxes, scores, labels = (
        torch.tensor(GOLDEN[f"{depth}/out32/det_{name}"])
        for name in ("boxes", "scores", "classes_d2")
    )
    assert torch.equal(found["labels"].bincount(), (labels + 1).bincount())
    torch.testing.assert_close(found["scores"], scores, rtol=0, atol=1e-5)
    # Scores that are equal to rounding may stand in another order.
    apart = (found["boxes"][:, None] - boxes).abs().amax(-1)
    assert (apart.amin(0) < 1e-3).all() and (apart.amin(1) < 1e-3).all()


def small_zoo_file(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """All names of R-50 with small arrays, 80 classes."""
    model = {name: np.ones(1, np.float32) for name, _ in keys("r50")}
    predictor = "roi_heads.box_predictor."
    model["backbone.bottom_up.stem.conv1.weight"] = np.ones((2, 3, 7, 7), np.float32)
    for name, rows in (("cls_score", 81), ("bbox_pred", 320)):
        values = np.arange(rows, dtype=np.float32)
        model[f"{predictor}{name}.weight"] = np.repeat(values[:, None], 2, axis=1)
        model[f"{predictor}{name}.bias"] = values
    model["pixel_mean"] = np.ones((3, 1, 1), np.float32)
    return model | changes


@cache
def names_of_r50() -> frozenset[str]:
    return frozenset(frcnn_r50(80).state_dict())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_every_protocol(protocol, container, tmp_path):
    path = tmp_path / "zoo.pkl"
    content = {"model": container(small_zoo_file()), "iteration": np.float64(3), "note": b"\xff"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    state = convert(path)
    assert state.keys() == names_of_r50()
    predictor = "roi_heads.box_predictor."
    assert state[f"{predictor}cls_score.bias"][:3].tolist() == [80, 0, 1]
    assert state[f"{predictor}bbox_pred.bias"][:6].tolist() == [0, 0, 0, 0, 0, 1]
    # RGB, of unit deviation: blue's weights, which were the first, are the last.
    deviations = state["backbone.body.conv1.weight"][0, :, 0, 0] / 255
    torch.testing.assert_close(deviations, torch.tensor([0.229, 0.224, 0.225]))


def test_background_first():
    logits = torch.tensor([[1.0, 2.0, 9.0]])  # two classes and the background
    assert background_first(logits, dim=1).tolist() == [[9.0, 1.0, 2.0]]
    offsets = torch.arange(1.0, 9)
    assert background_first(offsets, boxes=True).tolist() == [0, 0, 0, 0, *range(1, 9)]


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch owned",), f"{os.system.__module__}.system"),
        (eval, ("open('owned', 'w')",), "eval"),
        (np.load, ("owned",), "numpy.load"),
        (codecs.encode, ("owned", "rot13"), "encoding 'rot13'"),
    ],
)
def test_code_is_refused(function, arguments, named, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("zoo.pkl")
    model = {**small_zoo_file(), "pixel_std": Calls(function, *arguments)}
    path.write_bytes(pickle.dumps({"model": model}, protocol=protocol))
    with pytest.raises(UserError) as refusal:
        convert(path)
    assert str(refusal.value).startswith("checkpoint: found zoo.pkl with ")
    assert named in str(refusal.value) and "allowed are arrays only" in str(refusal.value)
    assert [each.name for each in tmp_path.iterdir()] == ["zoo.pkl"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {f"roi_heads.mask_head.{k}.weight": np.ones(1) for k in range(12)},
            "found 12 tensors of roi_heads.mask_head…",
        ),
        (
            {f"head.cls_subnet.{k}.weight": np.ones(1) for k in range(4)},
            "found 4 tensors of head.cls_subnet…",
        ),
        (
            {f"roi_heads.res5.{k}.conv1.weight": np.ones(1) for k in range(3)},
            "found 3 tensors of roi_heads.res5…",
        ),
        ({"roi_heads.box_predictor.bbox_pred.weight": np.ones((4, 2))}, "found 4 box offsets"),
        ({"fpn": "none"}, "found no arrays by name"),
    ],
)
def test_other_networks_are_refused(changes, message, tmp_path):
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": small_zoo_file(**changes)}))
    with pytest.raises(UserError, match=f"^checkpoint: {message}.*, allowed "):
        convert(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "zoo.pkl"
    with pytest.raises(UserError, match="No such file"):
        convert(path)
    whole = pickle.dumps({"model": small_zoo_file()})
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"found 80 classes in .*, allowed are 3"):
        convert(path, num_classes=3)
    for content in (whole[:-100], b"", b"not a pickle"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no pickle or a damaged one"):
            convert(path)
    for content in ([1, 2], {"model": {}}, {"model": {"a": 1}}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="found no arrays by name"):
            convert(path)
    path.write_bytes(pickle.dumps({"model": {"pixel_mean": np.ones(3)}}))
    with pytest.raises(UserError, match=r"found no backbone\.body\.conv1\.weight"):
        convert(path)
