"""An exported detector finds what the run's detector finds."""

import json

import pytest
import torch
from coco_sets import write_set

import eakd
from eakd.composing import compose
from eakd.hub.export import export
from eakd.training.run import run

pytest.importorskip("pycocotools")


def test_an_exported_detector(tmp_path):
    words = [
        *("data=coco_folder", "data.name=mine", f"data.root={write_set(tmp_path / 'set')}"),
        *("data.short_sides=[64,96]", "data.long_side=128", "data.test_short_side=96"),
        *(f"data.cache_dir={tmp_path / 'cache'}", "data.workers=0", "recipe.epochs=1"),
        *("recipe.steps_per_epoch=2", "recipe.batch_size=2", "device=cpu", "precision=float32"),
        *("student=frcnn_tiny", "distiller=detection/none", "progress=false"),
        *(f"output_root={tmp_path}", f"run_dir={tmp_path / 'run'}"),
    ]
    summary = run(compose(words))
    folder = export(compose([f"run={tmp_path / 'run'}", f"to={tmp_path / 'a'}"], "export"))
    model = eakd.load(folder)
    known = model.exported
    assert (known["task"], known["short_side"], known["long_side"]) == ("object-detection", 96, 128)
    assert known["test_metrics"]["ap"] == summary["ap_last"]
    # The run's own tool opens the file, and finds the same with it.
    predicted = []
    from eakd.detection.predict import load_detector
    from eakd.training.device import Compute

    compute = Compute.create(device="cpu", precision="float32")
    config = compose([f"run={tmp_path / 'run'}", "device=cpu", "precision=float32"], "predict")
    wanted = load_detector(config, compute)
    assert model.categories == wanted.categories
    images = [torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))]
    for network in (model, wanted.model):
        state = network.state_dict()
        predicted.append({name: value.clone() for name, value in state.items()})
    assert images and all(torch.equal(predicted[0][k], v) for k, v in predicted[1].items())
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: object-detection" in text and json.dumps(summary["seed"]) in text
