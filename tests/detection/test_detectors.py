"""Detectors: torchvision's where they say so, detectron2's parts where they say that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from region_batches import pictures, student
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d

from eakd.detection.detectors import frcnn_mobilenetv2, frcnn_r18, frcnn_r50, frcnn_tiny
from eakd.detection.faster_rcnn import MEAN, STD, faster_rcnn, frozen_teacher
from eakd.detection.parts import AlignedPool, UnroundedAnchors
from eakd.errors import UserError
from eakd.targets import build

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("frcnn_*.yaml"))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that do something, and logits far enough apart that detections have an order."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.8, 1.2)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.3)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.02)
    return model.eval()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_what_they_say(path):
    text = path.read_text()
    node = OmegaConf.create(text)
    if "backbone_weights" in node:
        node.backbone_weights = None  # nothing is downloaded here
    millions, classes = text.split(":")[1].split(" M parameters, ")
    model = build(node, "model", nn.Module, num_classes=int(classes.split(" ")[0]))
    weights = {k: x for k, x in model.state_dict().items() if "running" not in k}  # frozen norms'
    count = sum(x.numel() for k, x in weights.items() if not k.endswith("tracked")) / 1e6
    assert float(millions) == pytest.approx(count, abs=0.051 if count > 10 else 0.005)
    assert (node.name, model.num_classes) == (path.stem, int(classes.split(" ")[0]))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert bool(frozen) == ("frozen_stages" in node)
    assert all(name.startswith(("backbone.body.conv1", "backbone.body.layer1")) for name in frozen)


@pytest.fixture(scope="module")
def plain_pair():
    """A network with torchvision's parts, and torchvision's own with the same weights."""
    ours = randomized(frcnn_r18(3, parts="torchvision"))
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    theirs = FasterRCNN(body, num_classes=4, min_size=96, max_size=400).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def padded(images):
    height, width = (max(x.shape[k] for x in images) for k in (1, 2))
    batch = torch.full((len(images), 3, -(-height // 32) * 32, -(-width // 32) * 32), 7.0)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, [tuple(x.shape[1:]) for x in images]


def test_the_student_is_a_torchvision_network(plain_pair):
    """Its weights in torchvision's own class detect the same; what lies in the padding is no part.

    The images have the size that torchvision would resize them to.
    """
    ours, theirs = plain_pair
    images = [torch.rand(3, 96, 130), torch.rand(3, 120, 96)]
    with torch.no_grad():
        expected = theirs(images)
    for found, wanted in zip(ours.detect(*padded(images)), expected, strict=True):
        assert len(wanted["boxes"]) > 10
        for key in ("boxes", "scores", "labels"):
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-4)


def test_means_as_published():
    """A student is taught with red and blue 20.1 of 255 grey levels to either side."""
    images, sizes = torch.rand(1, 3, 32, 32), [(32, 32)]
    model = frcnn_tiny(2, channel_means="as_published")
    trained, published = (model.normalized(images, sizes, teaching) for teaching in (False, True))
    apart = ((published - trained) * torch.tensor(STD)[:, None, None] * 255).mean((0, 2, 3))
    torch.testing.assert_close(apart, torch.tensor([20.145, 0.0, -20.145]), atol=1e-3, rtol=0)
    expected = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(trained, expected)
    usual = frcnn_tiny(2, channel_means="as_trained")
    assert torch.equal(usual.normalized(images, sizes, teaching=True), trained)


def test_anchors_are_detectron2s():
    anchors = UnroundedAnchors((32, 512), (0.5, 1.0, 2.0), (4, 64))
    # A side of 480 has 8 columns of stride 64; torchvision would make that stride 60.
    image, maps = torch.zeros(1, 3, 32, 480), [torch.zeros(1, 8, 8, 120), torch.zeros(1, 8, 1, 8)]
    (found,) = anchors(ImageList(image, [(32, 480)]), maps)
    assert found.shape == (3 * (8 * 120 + 8), 4)
    half = 16 * 2**0.5
    wide = torch.tensor([-half, -half / 2, half, half / 2])
    torch.testing.assert_close(found[0], wide)  # 45.25 by 22.63, not 46 by 22
    torch.testing.assert_close(found[-2], torch.tensor([-256.0, -256, 256, 256]) + 7 * 64 * WIDE)
    half_precision = anchors(ImageList(image, [(32, 480)]), [x.bfloat16() for x in maps])
    assert torch.equal(half_precision[0], found)


WIDE = torch.tensor([1.0, 0.0, 1.0, 0.0])


def test_levels_of_boxes():
    pool = AlignedPool(["0", "1", "2", "3"], 7, (4, 8, 16, 32))
    sides = torch.tensor([0.0, 10, 111.9, 112, 223, 224, 447, 448, 5000])
    boxes = torch.stack([torch.zeros(9), torch.zeros(9), sides, sides], dim=1)
    assert pool.levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_pooling_is_aligned():
    """A map that counts its columns: a cell's value is the column at the cell's middle."""
    pool = AlignedPool(["0"], 7, (4,))
    columns = torch.arange(32.0).expand(1, 1, 32, 32)
    x1, x2 = 17.3, 90.1
    (found,) = pool({"0": columns}, [torch.tensor([[x1, 20.0, x2, 100.0]])], [(128, 128)])
    middles = (x1 + (torch.arange(7) + 0.5) * (x2 - x1) / 7) / 4 - 0.5  # pixel centres
    torch.testing.assert_close(found[0], middles.expand(7, 7))


def test_losses_of_the_first_stage_are_torchvisions():
    """With its β. Anchors between the thresholds have the label -1."""
    rpn, draw = student().rpn, torch.Generator().manual_seed(0)
    labels = [torch.randint(-1, 2, (300,), generator=draw).float() for _ in range(2)]
    objectness, deltas, goals = (torch.randn(600, k, generator=draw) for k in (1, 4, 4))
    found = []
    for network in (type(rpn), RegionProposalNetwork):
        torch.manual_seed(5)
        found.append(network.compute_loss(rpn, objectness, deltas, labels, goals.split(300)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("objects", [(0, 2), (0, 0)])
def test_images_without_boxes(objects):
    model, batch = student(), pictures(objects=objects)
    x = model.normalized(batch.images, batch.sizes)
    images = ImageList(x, batch.sizes)
    _, losses = model.rpn(images, model.backbone(x), batch.targets)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("parts", ["detectron2", "torchvision"])
def test_boxes_and_logits_stay_float32_under_autocast(parts):
    model, batch = randomized(student(parts=parts)), pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        maps = model.maps(batch.images, batch.sizes)
        assert maps["0"].dtype == torch.bfloat16
        proposals, _ = model.rpn(ImageList(batch.images, batch.sizes), maps)
        logits, offsets = model.regions(maps, proposals, batch.sizes)
        (found, _) = model.detect(batch.images, batch.sizes)
    kinds = {proposals[0], logits, offsets, found["boxes"], found["scores"]}
    assert {x.dtype for x in kinds} == {torch.float32}
    # And not just kept in it: they are finer than bfloat16.
    assert (proposals[0].bfloat16().float() != proposals[0]).float().mean() > 0.5


def test_a_teachers_frozen_norms_are_folded():
    model, batch = randomized(frcnn_r18(3)), pictures()
    sizes, boxes = batch.sizes, [target["boxes"] for target in batch.targets]
    with torch.no_grad():
        expected, _ = model.regions(model.maps(batch.images, sizes), boxes, sizes)
        folded = frozen_teacher(model)
        found, _ = folded.regions(folded.maps(batch.images, sizes), boxes, sizes)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_strides():
    first = [block.conv1.stride for block in frcnn_r50(2, stride_in_1x1=True).backbone.body.layer2]
    second = [block.conv2.stride for block in frcnn_r50(2).backbone.body.layer2]
    assert first == second == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert frcnn_mobilenetv2(2).rpn.anchor_generator.strides == (4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"parts": "mmdetection"},
            "^model.parts: found 'mmdetection', allowed is one of detectron2",
        ),
        ({"anchor_sizes": [16, 32]}, "^model.anchor_sizes: found 2 sizes, .* each of 4 maps$"),
        ({"depth": 3}, "^model.depth: found a key that .* does not take, allowed is one of"),
        ({"mean": [0.5]}, "^model.mean: found .*, allowed is a list of 3 numbers$"),
        ({"width": 0}, "^model.width: found 0, allowed is an integer >= 1$"),
    ],
)
def test_wrong_values_name_their_key(change, message):
    node = OmegaConf.create({"_target_": "eakd.detection.detectors.frcnn_tiny", **change})
    with pytest.raises(UserError, match=message):
        build(node, "model", nn.Module, num_classes=2)


def test_maps_that_are_no_pyramid_are_refused():
    class Flat(nn.Module):
        out_channels = 4

        def forward(self, x):
            return {"0": x[..., ::4, ::4], "1": x[..., ::4, ::4]}

    with pytest.raises(UserError, match=r"^backbone: found maps of \[16, 16\] pixels"):
        faster_rcnn(Flat(), 2, anchor_sizes=(32, 64))
