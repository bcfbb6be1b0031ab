"""Where teachers come from, and how they are checked."""

import hashlib
import json
import logging
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest
import torch
import yaml
from safetensors.torch import save_file

from eakd.classification import evaluate_checkpoint
from eakd.classification.teacher import load_teacher
from eakd.config import ROOT, compose
from eakd.data import Pipeline, digits
from eakd.errors import UserError
from eakd.models import resnet8, resnet14
from eakd.training import Compute
from eakd.training.find_teacher import find_checkpoint, manifest_entry

COMPUTE = Compute.create("cpu", "float32")


@pytest.fixture
def pipeline():
    return Pipeline(digits(train_per_class=5), batch_size=16, mean=[0.3] * 3, std=[0.3] * 3)


@pytest.fixture
def server(tmp_path):
    """A local web server over ``tmp_path / 'web'``; returns its address and the requests seen."""
    folder, seen = tmp_path / "web", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            seen.append(self.path)

    httpd = HTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}", seen
    httpd.shutdown()
    httpd.server_close()


def test_order_of_places(tmp_path):
    with pytest.raises(UserError, match="data=digits student=resnet8 distiller=none"):
        find_checkpoint("auto", "digits", "resnet8", tmp_path, {})
    for suffix in (".pth", ".safetensors"):  # ours wins
        path = tmp_path / "digits" / f"resnet8{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert find_checkpoint("auto", "digits", "resnet8", tmp_path, {}) == path
    with pytest.raises(UserError, match=r"found no file 'none\.pth'"):
        find_checkpoint("none.pth", "digits", "resnet8", tmp_path, {})


def test_download_is_checked_and_done_once(tmp_path, server):
    folder, address, seen = server
    torch.save({"model": resnet8(10).state_dict()}, folder / "published.pth")
    digest = hashlib.sha256((folder / "published.pth").read_bytes()).hexdigest()
    entry = {"url": f"{address}/published.pth", "sha256": digest}
    for _ in range(2):
        path = find_checkpoint("auto", "digits", "resnet8", tmp_path, entry)
        assert path.read_bytes() == (folder / "published.pth").read_bytes()
    assert len(seen) == 1

    wrong = {**entry, "sha256": "0" * 64}
    with pytest.raises(UserError, match=r"teacher\.checkpoint: found a download .* SHA-256") as e:
        find_checkpoint("auto", "digits", "resnet14", tmp_path, wrong)
    assert "\n" not in str(e.value)
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == ["resnet8.pth"]


def test_no_checksum_no_download(tmp_path, server):
    _, address, seen = server
    with pytest.raises(UserError, match="train it with"):
        find_checkpoint("auto", "digits", "resnet8", tmp_path, {"url": address, "sha256": None})
    assert seen == []


def test_the_manifest_is_sound():
    manifest = ROOT / "checkpoints" / "manifest.yaml"
    for data, entries in yaml.safe_load(manifest.read_text()).items():
        for name, entry in entries.items():
            compose([f"teacher={name}", f"data={data}"])  # both exist
            assert set(entry) == {"source", "url", "sha256", "top1"}
            assert 0 < entry["top1"] < 100
            assert (entry["url"] is None) or len(entry["sha256"]) == 64
            assert manifest_entry(manifest, data, name) == entry
    assert manifest_entry(manifest, "cifar100", "resnet8") == {}


def test_evaluation_is_cached_and_compared(tmp_path, pipeline, caplog):
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    save_file(resnet8(10).state_dict(), tmp_path / "a.safetensors")
    arguments = (tmp_path / "a.safetensors", pipeline, COMPUTE)
    cache = tmp_path / "cache"
    teacher, result = load_teacher(resnet8(10), *arguments, expected_top1=75.0, cache=cache)
    assert "but 75.00 % is published" in caplog.text
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    (cached,) = cache.iterdir()
    assert json.loads(cached.read_text()) == result
    cached.write_text(json.dumps({"top1": 12.5, "top5": 50.0}))
    assert load_teacher(resnet8(10), *arguments, cache=cache)[1]["top1"] == 12.5  # not run again
    cached.write_text('{"top1": 1')  # cut off: measured again
    assert load_teacher(resnet8(10), *arguments, cache=cache)[1] == result
    unfolded, plain = load_teacher(resnet8(10), *arguments, fold=False)
    assert plain == result
    images = next(pipeline.evaluation("test")).images
    torch.testing.assert_close(
        unfolded(images).logits, teacher(images).logits, rtol=1e-4, atol=1e-4
    )


def test_another_architecture_is_named(tmp_path, pipeline):
    save_file(resnet8(10).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: .*layer1\.1\.conv1\.weight"):
        load_teacher(resnet14(10), tmp_path / "a.safetensors", pipeline, COMPUTE)


def test_evaluate_any_format(tmp_path, capsys):
    torch.manual_seed(0)
    state = resnet8(10).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pth")
    results = []
    for name in ("a.safetensors", "b.pth"):
        config = compose(["model=resnet8", f"checkpoint={tmp_path / name}"], config_name="evaluate")
        results.append(evaluate_checkpoint(config))
        assert f"top-1 {results[-1]['top1']:.2f} %" in capsys.readouterr().out
    assert results[0] == results[1]


def test_real_teacher_on_real_images(real_data, capsys):
    config = compose(
        [
            *("data=cifar100", "model=resnet20", "precision=float32"),
            f"data.root={real_data / 'cifar100-images.zip'}",
            f"checkpoint={real_data / 'resnet20_cifar100.pth'}",
        ],
        config_name="evaluate",
    )
    assert evaluate_checkpoint(config)["top1"] == pytest.approx(67.22, abs=0.1)
