"""``eakd-convert``: a published file becomes the weights that a teacher is loaded from."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from eakd.composing import compose
from eakd.config import ROOT
from eakd.detection.convert import COCO_ROWS, convert_checkpoint, of_torchvision
from eakd.detection.detectors import frcnn_r50
from eakd.errors import UserError
from eakd.models.weights import load_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "detectron2.npz"
SMALL = "+model.head_features=8"  # of the second stage, which has most of the weights


@pytest.fixture(scope="module")
def weights():
    """Of ResNet-50 by the zoo's names, with a narrow second stage."""
    draw = np.random.default_rng(0)
    model = {}
    for name, shape in json.loads(str(np.load(GOLDEN)["r50/keys"])):
        if name.startswith("roi_heads."):
            shape = [8 if size == 1024 else size for size in shape]
        model[name] = draw.random(shape, np.float32)
    return model


@pytest.fixture(scope="module")
def zoo(weights, tmp_path_factory):
    """A file of them in the zoo's layout."""
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2"}))
    return path


def converted(path, *words):
    return convert_checkpoint(compose([f"checkpoint={path}", "model=frcnn_r50", *words], "convert"))


def test_a_zoo_file(zoo, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(zoo.read_bytes()).hexdigest()
    path = converted(zoo, SMALL, f"sha256={digest}")
    assert path == Path("checkpoints/coco/frcnn_r50.safetensors")  # where teachers are looked for
    model = frcnn_r50(80, stride_in_1x1=True, head_features=8)
    load_weights(model, path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    categories = json.loads(header.pop("categories"))  # as COCO's annotations call them
    assert len(categories) == 80 and categories[::79] == [[1, "person"], [90, "toothbrush"]]
    assert header == {"source": "model_final.pkl", "sha256": digest, "num_classes": "80"}
    score = torch.from_numpy(weights["roi_heads.box_predictor.cls_score.bias"])
    found = model.roi_heads.box_predictor.cls_score.bias
    assert torch.equal(found[1:], score[:-1]) and found[0] == score[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SMALL, "sha256=00"], "^sha256: found [0-9a-f]{64} of .*, allowed is 00$"),
        ([SMALL, "num_classes=3"], "^checkpoint: found 80 classes in .*, allowed are 3"),
        ([], "^checkpoint: found another shape of roi_heads.* the weights of frcnn_r50$"),
        (
            [SMALL, "model=frcnn_r101"],
            "^checkpoint: found no backbone.body.layer3.6.*of frcnn_r101$",
        ),
        ([SMALL, "checkpoint=none.pkl"], "^checkpoint: found none.pkl .No such file or directory"),
        (["+model.depth=8"], "^model.depth: found a key that .* does not take"),
    ],
)
def test_refusals_leave_nothing(words, message, zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        converted(zoo, *words)
    assert not list(tmp_path.iterdir())


def test_infinite_weights_are_refused(weights, tmp_path):
    broken = weights["roi_heads.box_head.fc2.bias"].copy()
    broken[3] = np.nan
    content = {"model": weights | {"roi_heads.box_head.fc2.bias": broken}}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(
        UserError, match=r"^checkpoint: found NaN or infinity in roi_heads.box_head"
    ):
        converted(path, SMALL, f"into={tmp_path / 'out.safetensors'}")
    assert [each.name for each in tmp_path.iterdir()] == ["zoo.pkl"]


def test_torchvisions_rows(tmp_path):
    """Of its 91 outputs, the background's and those of COCO's 80 classes."""
    assert len(COCO_ROWS) == 81 and COCO_ROWS[:3] == [0, 1, 2]
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(COCO_ROWS)  # the gaps in its ids
    path, names = tmp_path / "coco.pth", "roi_heads.box_predictor"
    state = {f"{names}.cls_score.bias": torch.arange(91.0)}
    state[f"{names}.cls_score.weight"] = torch.arange(91.0)[:, None].expand(91, 2).clone()
    state[f"{names}.bbox_pred.bias"] = torch.arange(364.0)
    state[f"{names}.bbox_pred.weight"] = torch.arange(364.0)[:, None].expand(364, 2).clone()
    torch.save(state, path)
    found = of_torchvision(path, 80)
    assert found[f"{names}.cls_score.bias"].tolist() == COCO_ROWS
    assert found[f"{names}.cls_score.weight"].shape == (81, 2)
    assert found[f"{names}.bbox_pred.bias"].tolist() == [
        4 * r + k for r in COCO_ROWS for k in range(4)
    ]
    assert found[f"{names}.bbox_pred.weight"].shape == (324, 2)
    with pytest.raises(UserError, match=r"^checkpoint: found 80 classes in .*, allowed are 20 "):
        of_torchvision(path, 20)
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(UserError, match=r"^checkpoint: found no roi_heads.box_predictor"):
        of_torchvision(path)


def test_the_command(tmp_path):
    path = tmp_path / "zoo.pkl"
    path.write_bytes(b"cposix\nsystem\n(S'touch owned'\ntR.")
    command = [sys.executable, str(ROOT / "scripts" / "convert.py"), f"checkpoint={path}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line == (
        f"error: checkpoint: found {path} with posix.system in it, allowed are arrays only"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["zoo.pkl"]
