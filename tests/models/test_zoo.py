"""Weights are read from every format in use and written whole; mistakes cost one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from eakd.errors import UserError
from eakd.models import timm_model
from eakd.models.zoo import load_state, load_weights, save_weights

from .helpers import build, filled, images


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module) -> None:
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text and len(text) < 700
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 240, "best_acc": torch.tensor(72.3)},
        lambda state: {"state_dict": state},
        lambda state: {"model": {f"module.{key}": x for key, x in state.items()}},
        lambda state: {f"_orig_mod.{key}": x for key, x in state.items()},
        lambda state: {k: x for k, x in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "zoo", "state_dict", "data parallel", "compiled", "no counters"],
)
def test_torch_files(wrap, tmp_path: Path) -> None:
    source, target = filled(build("resnet8")), build("resnet8")
    path = tmp_path / "weights.pth"
    torch.save(wrap(source.state_dict()), path)
    load_weights(target, path)
    assert_same_state(source, target)


def test_safetensors_round_trip(tmp_path: Path) -> None:
    source = filled(build("wrn_16_1")).to(memory_format=torch.channels_last)
    target = build("wrn_16_1")
    path = tmp_path / "new" / "wrn.safetensors"
    save_weights(source, path, {"top1": "66.7"})
    load_weights(target, path)
    assert_same_state(source, target)
    with safe_open(path, "pt") as file:
        assert file.metadata()["top1"] == "66.7"
    assert [p.name for p in path.parent.iterdir()] == ["wrn.safetensors"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(build("resnet8"), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("eakd.models.zoo.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(build("resnet8"), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_another_architecture_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "resnet8.pth"
    torch.save({"model": build("resnet8").state_dict()}, path)
    with pytest.raises(UserError) as error:
        load_weights(build("vgg8"), path)
    one_line(error, "resnet8.pth", "VGG", "missing block0.0.weight", "unexpected conv1.weight")
    with pytest.raises(UserError) as error:
        load_weights(build("resnet8", 10), path)
    one_line(error, "shape of fc.weight (100, 64) instead of (10, 64)")
    with pytest.raises(UserError) as error:
        load_weights(build("resnet20"), path)
    one_line(error, "missing layer1.1.conv1.weight", "more")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, -100])
def test_truncated_files_are_one_line(suffix: str, keep: int, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(build("resnet8").state_dict(), path)
    else:
        save_weights(build("resnet8"), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        load_weights(build("resnet8"), path)
    one_line(error, path.name)


class Harmful:
    def __reduce__(self) -> tuple:
        return (os.system, ("echo harmed",))


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for content in ({"model": Harmful()}, {"epoch": 3}, [1, 2], {}):
        torch.save(content, path)
        with pytest.raises(UserError) as error:
            load_state(path)
        one_line(error, "other.pth")
    path.write_text("<html>404</html>")
    with pytest.raises(UserError) as error:
        load_state(path)
    one_line(error, "other.pth")
    with pytest.raises(UserError, match="no such file"):
        load_state(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="safetensors"):
        save_weights(build("resnet8"), path)


def test_timm_files_fit_our_wrapper(tmp_path: Path) -> None:
    model, path = timm_model("resnet18", 10), tmp_path / "timm.pth"
    torch.save(model.model.state_dict(), path)
    other = timm_model("resnet18", 10)
    load_weights(other, path)
    assert_same_state(model, other)
    save_weights(model, tmp_path / "ours.safetensors")
    load_weights(other, tmp_path / "ours.safetensors")


def test_a_teacher_in_the_zoos_format() -> None:
    folder = os.environ.get("EAKD_TEST_DATA")
    if not folder or not (Path(folder) / "resnet20_cifar100.pth").exists():
        pytest.skip("EAKD_TEST_DATA names no folder with resnet20_cifar100.pth")
    model = build("resnet20")
    load_weights(model, Path(folder) / "resnet20_cifar100.pth")
    with torch.no_grad():
        assert model.eval()(images(2, 32)).logits.isfinite().all()
