"""A run is skipped or continued only with the data and the teacher that it was made with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eakd.composing import compose
from eakd.errors import UserError
from eakd.training import state as state_module
from eakd.training.find_teacher import weights_digest
from eakd.training.run import run


def images(folder, seed=0, classes=("cat", "dog"), count=6):
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for label, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(label * 100, label * 100 + 99, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.fixture
def job(tmp_path):
    images(tmp_path / "set")
    common = [
        *("data=image_folder", "data.name=mine", f"data.root={tmp_path / 'set'}"),
        *("recipe=digits", "recipe.epochs=3", "recipe.batch_size=6", "data.crop_padding=1"),
        *("teacher=resnet8", "student=resnet8", f"checkpoint_root={tmp_path / 'checkpoints'}"),
        *(f"data.cache_dir={tmp_path / 'cache'}", "device=cpu", "threads=1"),
    ]
    run(
        compose([*common, "distiller=none", "save_teacher=true", f"run_dir={tmp_path / 'teacher'}"])
    )
    return [*common, "distiller=ea_kd", f"run_dir={tmp_path / 'run'}"]


def other_images(tmp_path):
    images(tmp_path / "set", seed=1)


def one_pixel(tmp_path):
    path = tmp_path / "set" / "train" / "dog" / "3.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[5, 5, 0] ^= 1
    Image.fromarray(pixels).save(path)


def another_class(tmp_path):
    (tmp_path / "set" / "train" / "dog").rename(tmp_path / "set" / "train" / "eel")
    (tmp_path / "set" / "test" / "dog").rename(tmp_path / "set" / "test" / "eel")


def one_image_less(tmp_path):
    (tmp_path / "set" / "train" / "cat" / "0.png").unlink()


def another_teacher(tmp_path):
    path = tmp_path / "checkpoints" / "mine" / "resnet8.safetensors"
    state = load_file(path)
    state["fc.bias"] = state["fc.bias"].clone()
    state["fc.bias"][0] += 1e-3
    save_file(state, path)


CHANGES = [other_images, one_pixel, another_class, one_image_less, another_teacher]


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_run_of_other_inputs_is_not_skipped(change, job, tmp_path):
    first = run(compose(job))
    assert first["data_fingerprint"] and len(first["teacher_digest"]) == 64
    assert run(compose(job)) == first  # nothing changed
    change(tmp_path)
    name = "teacher_digest" if change is another_teacher else "data_fingerprint"
    with pytest.raises(UserError) as caught:
        run(compose(job))
    message = str(caught.value)
    assert message.startswith(f"{name}: found") and "\n" not in message
    assert "resume=false" in message and "output_root" in message
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == first
    again = run(compose([*job, "resume=false"]))
    assert again[name] != first[name]


@pytest.mark.parametrize("change", CHANGES)
def test_an_interrupted_run_of_other_inputs_is_not_continued(change, job, tmp_path, monkeypatch):
    save = state_module.save_checkpoint

    def save_then_stop(directory, state):
        save(directory, state)
        if state["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(state_module, "save_checkpoint", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        run(compose(job))
    monkeypatch.setattr(state_module, "save_checkpoint", save)
    change(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"(data_fingerprint|teacher_digest): found"):
        run(compose(job))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    # The checkpoint alone tells it too.
    (tmp_path / "run" / "environment.json").unlink()
    with pytest.raises(UserError, match=r"found \w+, but the checkpoint in"):
        run(compose(job))


def test_a_finished_run_outlives_its_inputs(job, tmp_path, caplog):
    first = run(compose(job))
    shutil.rmtree(tmp_path / "set")
    assert run(compose(job)) == first
    assert "not compared with what it was made from" in caplog.text


def test_the_same_weights_in_another_file_are_the_same_teacher(job, tmp_path):
    first = run(compose(job))
    path = tmp_path / "checkpoints" / "mine" / "resnet8.safetensors"
    digest, content = weights_digest(path), path.read_bytes()
    state = dict(reversed(load_file(path).items()))
    save_file(state, path, {"note": "written again", "by": "somebody"})
    assert path.read_bytes() != content and weights_digest(path) == digest
    assert run(compose(job)) == first


def test_digests_tell_names_types_shapes_and_values_apart(tmp_path):
    base = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
    others = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"], "b": base["b"].half()},
        {"a": base["a"], "b": base["b"].reshape(3, 2)},
        {"a": base["a"].flip(0), "b": base["b"]},
        {"a": base["a"]},
    ]
    found = set()
    for number, state in enumerate([base, *others]):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{number}.safetensors")
        found.add(weights_digest(tmp_path / f"{number}.safetensors"))
    assert len(found) == 6
    damaged = tmp_path / "damaged.safetensors"
    for content in (b"", b"12345", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}"):
        damaged.write_bytes(content)
        assert len(weights_digest(damaged)) == 64
