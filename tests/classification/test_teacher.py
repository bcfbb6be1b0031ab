"""Where teachers come from, and how they are checked."""

import hashlib
import json
import logging
import os
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from eakd.classification import evaluate_checkpoint
from eakd.classification.teacher import entropies_of_training_set, load_teacher
from eakd.composing import compose
from eakd.config import ROOT
from eakd.data import Pipeline, digits
from eakd.errors import UserError
from eakd.models import resnet8, resnet14
from eakd.models.weights import load_weights
from eakd.training import Compute
from eakd.training.find_teacher import (
    _weights_digest,
    find_checkpoint,
    manifest_entry,
    weights_digest,
)

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
            assert set(entry) - {"archive", "member", "train"} == {
                "source",
                "url",
                "sha256",
                "top1",
            }
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


@pytest.mark.slow
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


@pytest.fixture
def untrained(tmp_path):
    torch.manual_seed(0)
    save_file(resnet8(10).state_dict(), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    ("top1", "warned"), [(0.0, True), (10.0, True), (11.9, True), (13.0, False), (95.0, False)]
)
def test_guessing_is_said_with_its_likely_causes(top1, warned, untrained, pipeline, caplog):
    cache = untrained.parent / "cache"
    load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    assert len(pipeline.data.test_labels) == 1747  # 3 standard deviations are 2.2 %
    caplog.clear()
    (file,) = cache.iterdir()
    file.write_text(json.dumps({"top1": top1, "top5": 99.0}))
    load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == warned
    for text in warnings:
        assert str(untrained) in text and "\n" not in text
        assert all(word in text for word in ("order", "normalised", "trained on digits"))


def in_a_folder(path):
    path.mkdir()
    (path / "something").write_text("of somebody's")


@pytest.mark.parametrize(
    "damage",
    [
        *(
            lambda path, text=text: path.write_bytes(text.encode("latin-1"))
            for text in (
                *("", "[]", "null", "3", '"top1"', "{}", "{", "[" * 100_000, "\xff\xfe{}"),
                *('{"top1": 50.0}', '{"top1": 400.0, "top5": 400.0}', '{"top1": -1, "top5": 5}'),
                *('{"top1": NaN, "top5": 50.0}', '{"top1": true, "top5": 50.0}'),
                *('{"top1": "50", "top5": 60.0}', '{"top1": null, "top5": 60.0}'),
                *('{"top1": [50.0], "top5": 60.0}', '{"top1": 70.0, "top5": 60.0}'),
                *('{"top1": 50.0, "top5": 1e999}', '{"top1": 50.0, "top5": 60.0, "top9": 1.0}'),
            )
        ),
        lambda path: path.mkdir(),
        in_a_folder,
        lambda path: path.symlink_to(path),
    ],
)
def test_a_damaged_accuracy_is_measured_again_and_replaced(damage, untrained, pipeline, caplog):
    cache = untrained.parent / "cache"
    _, result = load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.unlink()
    damage(file)
    assert load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)[1] == result
    assert file.read_bytes() == good and "not kept" not in caplog.text
    for folder in cache.glob("*.folder"):  # what lay in the way is not lost
        assert all(path.read_text() == "of somebody's" for path in folder.iterdir())


def npy(values):
    return lambda path: np.save(path.open("wb"), values)


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 10**15
HUGE = (b"\x93NUMPY\x01\0v\0" + HEADER).ljust(127) + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\0\xff\xff{"),
        lambda path: path.write_bytes(HUGE),
        lambda path: path.write_bytes(b"PK\x03\x04 and no more"),
        lambda path: np.savez(path.open("wb"), a=np.ones(50)),
        npy(np.full(50, np.nan, np.float32)),
        npy(np.full(50, np.inf, np.float32)),
        npy(np.full(50, 2.5, np.float32)),  # above the logarithm of ten classes
        npy(np.full(50, -0.5, np.float32)),
        npy(np.ones(50)),
        npy(np.ones(49, np.float32)),
        npy(np.ones((50, 1), np.float32)),
        npy(np.array([{"a": 1}] * 50, dtype=object)),
        npy(np.array(["a"] * 50)),
        lambda path: path.mkdir(),
        in_a_folder,
    ],
)
def test_damaged_entropies_are_computed_again_and_replaced(damage, untrained, pipeline, caplog):
    cache = untrained.parent / "cache"
    model = resnet8(10)
    load_teacher(model, untrained, pipeline, COMPUTE, fold=False)
    arguments = (untrained, pipeline, COMPUTE, 3.0, cache)
    found = entropies_of_training_set(model.eval(), *arguments)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.unlink()
    damage(file)
    assert torch.equal(entropies_of_training_set(model, *arguments), found)
    assert file.read_bytes() == good and "not kept" not in caplog.text


@pytest.mark.parametrize("place", ["file", "file/deeper", "full", "absent of proc"])
def test_a_cache_that_cannot_be_written_stops_nothing(place, untrained, pipeline, caplog):
    folder = untrained.parent
    (folder / "file").write_text("no folder")
    cache = Path("/proc/nothing") if place == "absent of proc" else folder / place
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if place == "full":  # a limit on the size of files refuses as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        teacher, result = load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
        found = entropies_of_training_set(teacher, untrained, pipeline, COMPUTE, 3.0, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 0 <= result["top1"] <= 100 and found.isfinite().all()
    refused = [r.getMessage() for r in caplog.records if "not kept" in r.getMessage()]
    assert len(refused) == 2 and all("\n" not in text for text in refused)
    assert (folder / "file").read_text() == "no folder"
    assert not [path for path in folder.rglob("*") if path.suffix in (".json", ".npy", ".tmp")]


def test_another_teacher_under_the_same_name_is_measured(untrained, pipeline):
    """Even one of the same size and date, whose weights were only moved there."""
    cache = untrained.parent / "cache"
    stamp = untrained.stat().st_mtime_ns
    _, first = load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    torch.manual_seed(1)
    save_file(resnet8(10).state_dict(), other := untrained.parent / "other.safetensors")
    os.utime(other, ns=(stamp, stamp))
    assert other.stat().st_size == untrained.stat().st_size
    other.replace(untrained)
    _, second = load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    assert len(list(cache.iterdir())) == 2 and first != second
    expected = load_teacher(resnet8(10), untrained, pipeline, COMPUTE)[1]
    assert second == expected


def test_one_file_of_weights_in_two_networks(untrained, pipeline):
    cache = untrained.parent / "cache"
    for network in ("", "input_size 32", "input_size 64"):
        load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache, network=network)
    assert len(list(cache.iterdir())) == 3


def test_a_file_is_hashed_once(untrained, pipeline):
    def hashed():
        return _weights_digest.cache_info().misses

    before, cache = hashed(), untrained.parent / "cache"
    for _ in range(2):
        teacher, _ = load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
        entropies_of_training_set(teacher, untrained, pipeline, COMPUTE, 3.0, cache)
        weights_digest(untrained)
    assert hashed() == before + 1
    os.utime(untrained, ns=(1, 1))  # perhaps written to: it is looked at again
    load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=cache)
    assert hashed() == before + 2 and len(list(cache.glob("*.json"))) == 1


def test_a_teacher_that_is_replaced_while_it_is_read(untrained, pipeline, monkeypatch):
    def load_and_lose(model, path):
        load_weights(model, path)
        save_file(resnet8(10).state_dict(), path)

    monkeypatch.setattr("eakd.classification.teacher.load_weights", load_and_lose)
    with pytest.raises(UserError, match=r"a\.safetensors: was replaced while it was read"):
        load_teacher(resnet8(10), untrained, pipeline, COMPUTE, cache=untrained.parent / "cache")
    assert not (untrained.parent / "cache").exists()
