"""An exported detector finds what the run's detector finds."""

import pytest
import torch
from coco_sets import write_set

import eakd
from eakd.composing import compose
from eakd.detection.predict import load_detector
from eakd.hub.export import export
from eakd.training.device import Compute
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
    # The run's own tool finds the same network, names of classes included.
    words = [f"run={tmp_path / 'run'}", "device=cpu", "precision=float32"]
    wanted = load_detector(compose(words, "predict"), Compute.create(device="cpu"))
    assert model.categories == wanted.categories and str(model) == str(wanted.model)
    for found, value in zip(
        model.state_dict().values(), wanted.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, value)
    text = (folder / "README.md").read_text()
    assert "pipeline_tag: object-detection" in text
