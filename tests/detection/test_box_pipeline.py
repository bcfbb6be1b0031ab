"""Batches of boxes: order, exact resume, parts, and what happens to pixels and boxes."""

import itertools

import numpy as np
import pytest
import torch
from coco_sets import write_set
from PIL import Image

from eakd.detection import BoxData, Boxes, BoxPipeline, coco, scenes
from eakd.detection.boxes import fingerprint
from eakd.detection.pipeline import assemble, resized
from eakd.errors import UserError

SMALL = {"short_sides": [32, 40, 48], "long_side": 96, "test_short_side": 40}


def made(sizes, boxes=None, seed=0):
    """A set of noise in memory; ``boxes`` is a list of ``(image, corners, crowd)``."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    if boxes is None:
        boxes = [(i, [1, 1, w - 1, h - 1], False) for i, (h, w) in enumerate(sizes)]
    counts = np.bincount([i for i, _, _ in boxes], minlength=len(sizes))
    corners = np.array([corner for _, corner, _ in boxes], np.float64)
    found = Boxes(
        ids=np.arange(len(sizes)) + 100,
        sizes=np.array(sizes, np.int64),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        boxes=corners,
        labels=np.ones(len(boxes), np.int64),
        crowd=np.array([crowd for _, _, crowd in boxes], bool),
        areas=(corners[:, 2:] - corners[:, :2]).prod(axis=1),
    )
    splits = {"train": found, "test": found}
    return BoxData("made", ("thing",), (1,), splits, lambda _, i: images[i], "x")


MIXED = [(24, 40), (40, 24), (30, 50), (24, 24), (64, 32), (20, 60), (33, 47), (50, 30), (40, 41)]


def equal(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.index, b.index)
        and a.sizes == b.sizes
        and a.original_sizes == b.original_sizes
        and all(
            torch.equal(one[key], other[key])
            for one, other in zip(a.targets, b.targets, strict=True)
            for key in ("boxes", "labels")
        )
    )


def test_batches_are_as_promised():
    data = BoxPipeline(made(MIXED), batch_size=3, seed=1, **SMALL)
    assert data.train_size == 9 and data.steps_per_epoch == 3 and data.step_size(0) == 3
    for batch in itertools.chain(data.epoch(1), data.epoch(2)):
        n, channels, height, width = batch.images.shape
        assert (n, channels, height % 32, width % 32) == (3, 3, 0, 0)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for i, (h, w) in enumerate(batch.sizes):
            assert batch.original_sizes[i] == MIXED[batch.index[i]]
            assert min(h, w) in (32, 40, 48) or max(h, w) == 96
            assert batch.images[i, :, h:].sum() == 0 and batch.images[i, :, :, w:].sum() == 0
            assert batch.images[i].min() >= 0 and 0.9 < batch.images[i].max() <= 1
            boxes = batch.targets[i]["boxes"]
            assert boxes.dtype == torch.float32 and batch.targets[i]["labels"].tolist() == [1]
            assert (boxes >= 0).all() and (boxes <= torch.tensor([w, h, w, h])).all()


def test_wide_and_tall_images_are_apart_and_every_pass_has_all():
    data = BoxPipeline(made(MIXED), batch_size=2, steps_per_epoch=9, seed=3, **SMALL)
    seen = []
    for epoch in range(1, 7):
        for batch in data.epoch(epoch):
            assert len({w > h for h, w in batch.original_sizes}) == 1
            seen += batch.index.tolist()
    # 108 images of the endless row: 12 passes over nine, of which few still wait.
    counts = np.bincount(seen, minlength=9)
    assert counts.sum() == 108 and counts.min() >= 11 and counts.max() <= 13


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        data = BoxPipeline(made(MIXED), batch_size=3, seed=seed, **SMALL)
        return [(b.index.tolist(), b.sizes) for b in data.epoch(epoch)]

    assert order(0, 1) == order(0, 1) and order(0, 2) == order(0, 2)
    assert order(0, 1) != order(0, 2) and order(0, 1) != order(1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_entered_at_any_step(workers, tmp_path):
    root = write_set(tmp_path / "set")
    settings = {"batch_size": 2, "steps_per_epoch": 5, "seed": 4, **SMALL}
    whole = list(BoxPipeline(coco(root, cache_dir=tmp_path), workers=0, **settings).epoch(2))
    data = BoxPipeline(coco(root, cache_dir=tmp_path), workers=workers, **settings)
    for start in range(6):
        rest = list(data.epoch(2, start))
        assert len(rest) == 5 - start
        assert all(map(equal, whole[start:], rest))


def test_an_epoch_that_is_left_leaves_no_threads(tmp_path):
    import threading

    before = threading.active_count()
    data = BoxPipeline(made(MIXED), batch_size=2, steps_per_epoch=50, workers=3, **SMALL)
    batches = data.epoch(1)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_and_micro_batches_make_up_the_batch(accumulate):
    settings = {"batch_size": 5, "steps_per_epoch": 4, "seed": 2, **SMALL}
    whole = BoxPipeline(made(MIXED), **settings)
    parts = [
        BoxPipeline(made(MIXED), accumulate=accumulate, part=(rank, 2), **settings)
        for rank in range(2)
    ]
    for expected, *found in zip(whole.epoch(3), *(p.epoch(3) for p in parts), strict=True):
        pieces = [b for each in found for b in (each if accumulate > 1 else [each])]
        assert len(pieces) == 2 * accumulate
        # Of the 3 and 2 images of each part.
        assert [p.start for p in pieces] == ([0, 0] if accumulate == 1 else [0, 2, 0, 1])
        assert torch.cat([p.index for p in pieces]).tolist() == expected.index.tolist()
        images = [
            (image, size) for p in pieces for image, size in zip(p.images, p.sizes, strict=True)
        ]
        for (image, (h, w)), other in zip(images, expected.images, strict=True):
            assert torch.equal(image[:, :h, :w], other[:, :h, :w])  # padding may differ
        targets = [target for p in pieces for target in p.targets]
        for one, other in zip(targets, expected.targets, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_evaluation_has_every_image_once_whatever_the_parts():
    data = BoxPipeline(made(MIXED), batch_size=2, eval_batch_size=2, **SMALL)
    whole = [i for batch in data.evaluation("test") for i in batch.index.tolist()]
    assert whole == list(range(9))
    parts = [b for rank in range(4) for b in data.evaluation("test", (rank, 4))]
    assert [i for b in parts for i in b.index.tolist()] == whole
    for batch in parts:
        for size, original in zip(batch.sizes, batch.original_sizes, strict=True):
            assert size == resized(*original, 40, 96)
    with pytest.raises(UserError, match="split: found 'val'"):
        next(data.evaluation("val"))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # published: 800/1333
        (640, 480, (1067, 800)),
        (300, 1000, (400, 1333)),
        (1, 3000, (1, 1333)),
        (800, 800, (800, 800)),
    ],
)
def test_sizes_are_the_published_ones(height, width, expected):
    assert resized(height, width, 800, 1333) == expected


@pytest.mark.parametrize("size", [(213, 320), (160, 301), (400, 650), (800, 1199), (427, 640)])
def test_pixels_are_pillows_within_a_grey_level(size):
    from sklearn.datasets import load_sample_images

    for image in load_sample_images().images:
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR), int)
        found = assemble([image], [size], [False], torch.device("cpu"))
        found = (255 * found[0, :, : size[0], : size[1]]).round().permute(1, 2, 0).numpy()
        difference = np.abs(found - expected)
        assert difference.max() <= 1 and difference.mean() < 0.2


def test_boxes_follow_their_pixels():
    """A white box on black is where its box says, resized and mirrored."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[12:36, 20:50] = 255
    data = made([(60, 100)], [(0, [20, 12, 50, 36], False)])
    data = BoxData(**{**vars(data), "read": lambda *_: image})
    pipeline = BoxPipeline(data, batch_size=1, steps_per_epoch=40, **SMALL)
    mirrored = 0
    for batch in pipeline.epoch(1):
        h, w = batch.sizes[0]
        x, y, right, bottom = batch.targets[0]["boxes"][0].tolist()
        bright = (batch.images[0, 0] > 0.5).nonzero()
        top, left = bright.min(dim=0).values.tolist()
        end = (bright.max(dim=0).values + 1).tolist()
        assert (left, top, end[1], end[0]) == pytest.approx((x, y, right, bottom), abs=0.51)
        expected = (50 * w / 100, 80 * w / 100) if x > 0.4 * w else (20 * w / 100, 50 * w / 100)
        assert (x, right) == pytest.approx(expected, rel=1e-5)
        assert (y, bottom) == pytest.approx((12 * h / 60, 36 * h / 60), rel=1e-5)
        mirrored += x > 0.4 * w
    assert 8 <= mirrored <= 32
    pipeline = BoxPipeline(data, batch_size=1, steps_per_epoch=8, flip=False, **SMALL)
    assert all(b.targets[0]["boxes"][0, 0] < 0.3 * b.sizes[0][1] for b in pipeline.epoch(1))


def test_odd_images_survive():
    """1x3000 and 3000x1 pixels, boxes of one pixel, an image of crowd alone and an empty one."""
    sizes = [(1, 3000), (3000, 1), (40, 40), (50, 40), (40, 50)]
    boxes = [(0, [5, 0, 900, 1], False), (1, [0, 2999, 1, 3000], False)]
    boxes += [(2, [7, 8, 8, 9], False), (2, [39, 39, 40, 40], False), (3, [0, 0, 40, 50], True)]
    data = made(sizes, boxes)
    pipeline = BoxPipeline(data, batch_size=2, steps_per_epoch=6, **SMALL)
    assert pipeline.members.tolist() == [0, 1, 2]
    for batch in pipeline.epoch(1):
        for target in batch.targets:
            sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
            assert len(sides) >= 1 and (sides > 0).all()
    pipeline = BoxPipeline(data, batch_size=2, steps_per_epoch=12, keep_empty=True, **SMALL)
    assert pipeline.train_size == 5
    found = [t for b in pipeline.epoch(1) for t in b.targets]
    assert {tuple(t["boxes"].shape) for t in found} == {(0, 4), (1, 4), (2, 4)}
    tested = list(pipeline.evaluation("test"))
    assert len(tested) == 5 and tested[0].sizes == [(1, 96)]


def test_a_damaged_image_is_named_when_it_is_needed(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "train" / "a.jpg").write_bytes(b"\xff\xd8nothing")
    for workers in (0, 2):
        data = BoxPipeline(coco(root, cache_dir=tmp_path), batch_size=2, workers=workers, **SMALL)
        with pytest.raises(UserError, match=r"^data.root: found .*a.jpg damaged \(.*fetch the set"):
            list(data.epoch(1))


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(
        UserError, match="batch_size: found 2, allowed with 4 processes is at least"
    ):
        BoxPipeline(made(MIXED), batch_size=2, part=(0, 4), **SMALL)


def test_scenes_need_no_resizing():
    data = scenes(8, 2)
    pipeline = BoxPipeline(
        data, batch_size=4, short_sides=[128], long_side=128, test_short_side=128, flip=False
    )
    for batch in pipeline.epoch(1):
        for image, i in zip(batch.images, batch.index.tolist(), strict=True):
            expected = torch.from_numpy(data.read("train", i)).permute(2, 0, 1)
            assert torch.equal((255 * image).round().byte(), expected)


def test_fingerprints_differ_with_any_array():
    boxes = made(MIXED).splits
    mark = fingerprint(("a",), boxes)
    assert fingerprint(("b",), boxes) != mark and fingerprint(("a",), boxes, [1]) != mark


def test_coco_through_the_pipeline(coco_mini, tmp_path):
    data = coco(coco_mini, train="train2017", test="val2017", cache_dir=tmp_path)
    pipeline = BoxPipeline(data, batch_size=4, steps_per_epoch=2, workers=2)
    assert pipeline.train_size == 128  # one image has no boxes
    for batch in pipeline.epoch(1):
        assert max(batch.images.shape[2:]) <= 1344
        assert all(len(target["boxes"]) for target in batch.targets)
