"""Files of weights as the field's trainers write them, and whatever else is taken for one."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import gzip
import io
import json
import os
import pathlib
import pickle
import shlex
import subprocess
import sys
import tarfile
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from eakd.errors import UserError
from eakd.models import timm_model
from eakd.models.weight_files import CONTAINERS, load_state
from eakd.models.weights import load_weights

from .helpers import build, filled


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[key]) for key, x in a.state_dict().items())


def loads(content: object, path: Path, **options: object) -> None:
    """``content``, made of the weights of a ResNet-8, fits another one."""
    torch.save(content, path, **options)
    target = build("resnet8")
    load_weights(target, path)
    assert same(filled(build("resnet8")), target)


def refusal(path: Path, *parts: str) -> str:
    """The one line in which a file is refused."""
    with pytest.raises(UserError) as error:
        load_weights(build("resnet8"), path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 900
    assert all(part in text for part in parts), text
    return text


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return filled(build("resnet8")).state_dict()


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container(name: str, state, tmp_path: Path) -> None:
    loads({"epoch": 3, name: state}, tmp_path / "a.pth")
    loads({name: {"state_dict": state, "arch": "resnet8"}, "best": 70.1}, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model_ema", "model"), "model"),
        (("state_dict_ema", "state_dict"), "state_dict"),
        (("weights", "net"), "net"),
        (("ema_state_dict", "student"), "student"),
    ],
)
def test_one_of_several_is_taken_and_named(names, taken, state, tmp_path: Path, caplog) -> None:
    others = {key: x + 1 for key, x in state.items()}
    loads({n: state if n == taken else others for n in names}, path := tmp_path / "a.pth")
    (other,) = set(names) - {taken}
    assert f"{path}: took the weights under {taken}, not those under {other}" in caplog.text


def test_the_same_weights_twice_are_no_choice(state, tmp_path: Path, caplog) -> None:
    loads({"model": state, "state_dict": state}, tmp_path / "a.pth")
    loads({"model": {}, "net": {"lr": 0.1}, "params": state}, tmp_path / "a.pth")
    assert not caplog.text


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "backbone.", "student.", "net.", "mine.of.any.depth."),
        *("module._orig_mod.", "_orig_mod.module.", "model.module.net.", "layer1.", "bn1.fc."),
    ],
)
def test_common_prefixes(prefix: str, state, tmp_path: Path) -> None:
    prefixed = {prefix + key: x for key, x in state.items()}
    loads(prefixed, tmp_path / "a.pth")
    loads({"state_dict": prefixed}, tmp_path / "a.pth")
    save_file(prefixed, tmp_path / "a.safetensors")
    target = build("resnet8")
    load_weights(target, tmp_path / "a.safetensors")
    assert same(filled(build("resnet8")), target)


def test_averages_of_torch(tmp_path: Path) -> None:
    average = AveragedModel(filled(build("resnet8")))
    assert "n_averaged" in average.state_dict()
    loads({"model_ema": average.state_dict()}, tmp_path / "a.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.model.", "net.model."])
def test_a_wrapper_has_a_prefix_of_its_own(prefix: str, tmp_path: Path) -> None:
    model = timm_model("resnet18", 10)
    inner = {prefix + key: x for key, x in model.model.state_dict().items()}
    torch.save(inner, tmp_path / "a.pth")
    other = timm_model("resnet18", 10)
    load_weights(other, tmp_path / "a.pth")
    assert same(model, other)


def test_a_name_that_is_wanted_is_no_prefix(tmp_path: Path) -> None:
    """A network whose parts are called like wrappers keeps their names."""

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    source, target = Nested(), Nested()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    assert same(source, target)


def test_a_prefix_of_some_names_is_refused(state, tmp_path: Path) -> None:
    both = {f"student.{k}": x for k, x in state.items()}
    both |= {f"teacher.{k}": x for k, x in state.items()}
    torch.save({"model": both}, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth", "missing conv1.weight", "unexpected student.conv1.weight")


def company() -> dict[str, object]:
    """What trainers keep beside the weights."""
    network = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    arguments = argparse.Namespace(lr=0.1, where=pathlib.Path("a/b"), seeds=[1, 2])
    return {
        "args": arguments,
        "config": types.SimpleNamespace(inner=arguments),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "epoch": 240,
        "best_acc": np.float64(71.2),
        "top5": np.float32(91.5),
        "improved": np.bool_(True),
        "history": np.arange(12.0).reshape(3, 4),
        "names": np.array(["a", "b"]),
        "objects": np.array([None, {"a": 1}], dtype=object),
        "numpy_rng": np.random.get_state(),  # noqa: NPY002
        "rng": torch.get_rng_state(),
        "size": torch.Size([3, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "when": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(hours=3),
        "day": datetime.date(2024, 2, 29),
        "version": torch.torch_version.TorchVersion("2.6.0"),
        "metrics": collections.defaultdict(list, {"acc": [1.0, 2.0]}),
        "window": collections.deque([1.0, 2.0], maxlen=5),
        "counter": collections.Counter("abba"),
        "ordered": collections.OrderedDict(a=1),
        "classes": {"a", "b"},
        "fixed": frozenset({1}),
        "span": range(3),
        "cut": slice(1, 2),
        "id": uuid.UUID(int=5),
        "money": decimal.Decimal("1.5"),
        "nothing": None,
        "huge": 2**80,
        "bytes": b"\0\xff",
        "type": float,
    }


@pytest.mark.parametrize("name", company())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
def test_what_lies_beside_the_weights(name: str, zipped: bool, state, tmp_path: Path) -> None:
    options = {"_use_new_zipfile_serialization": zipped}
    loads({name: company()[name], "model": state}, tmp_path / "a.pth", **options)


def test_everything_beside_the_weights(state, tmp_path: Path) -> None:
    loads({**company(), "state_dict": {f"module.{k}": x for k, x in state.items()}}, tmp_path / "a")
    parameters = {key: nn.Parameter(x) if x.is_floating_point() else x for key, x in state.items()}
    loads({"net": parameters, **company()}, tmp_path / "a")


def test_numpy_of_other_versions(state, tmp_path: Path) -> None:
    """Versions 1 and 2 call their modules by different names."""
    torch.save({"model": state, "acc": np.float64(7)}, path := tmp_path / "a.pth")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pkl,) = (name for name in parts if name.endswith("data.pkl"))
    for module in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        text = parts[pkl].replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray" in text
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, content in parts.items():
                text = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                text = text.replace(b"numpy.core.multiarray", module)
                archive.writestr(name, text if name == pkl else content)
        target = build("resnet8")
        load_weights(target, path)
        assert same(filled(build("resnet8")), target)


class Options:
    """A class of the trainer's own."""

    def __init__(self) -> None:
        self.lr = 0.1


class Touch:
    """Runs code when it is unpickled: makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.path,)


class Print:
    def __reduce__(self) -> tuple:
        return print, ("ran",)


class Popen:
    def __reduce__(self) -> tuple:
        return subprocess.Popen, (["true"],)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda state, _: {"model": state, "args": Options()}, f"{__name__}.Options"),
        (lambda state, p: {"model": state, "args": Touch(p)}, "class getattr"),
        (lambda state, _: {"model": state, "x": argparse.Namespace(y=Print())}, "class print"),
        (lambda state, _: {"model": state, "x": Popen()}, ".Popen"),
        (lambda state, _: {"model": state, "x": sys.exit}, "sys.exit"),
        (lambda state, _: {"model": state, "x": np.load}, "numpy.load"),
        (lambda *_: build("resnet8"), "eakd.models.resnet"),
        (lambda *_: nn.Sequential(nn.Linear(2, 2)), "torch.nn.modules.container.Sequential"),
        (lambda *_: {"model": build("resnet8"), "epoch": 3}, "eakd.models.resnet"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_other_objects_are_named_and_not_run(
    make, named, zipped, state, tmp_path: Path, capfd
) -> None:
    path, ran = tmp_path / "a.pth", tmp_path / "ran"
    torch.save(make(state, ran), path, _use_new_zipfile_serialization=zipped)
    refusal(path, named, "could run code", "python -c")
    assert not ran.exists() and "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "make",
    [
        lambda state: filled(build("resnet8")),
        lambda state: {"model": filled(build("resnet8")), "epoch": 3},
        lambda state: {"net": {"state_dict": state, "options": Options()}, "options": Options()},
    ],
    ids=["network", "network in a dict", "class beside"],
)
@pytest.mark.parametrize("name", ["a.pth", 'it\'s "mine" $HOME.pth'])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_command_that_is_named_converts(make, name, protocol, state, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save(make(state), path, pickle_protocol=protocol)
    command = shlex.split(refusal(path, "python -c ").split("was written: ")[1])
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, check=True, env={**os.environ, **paths}
    )
    (converted,) = tmp_path.glob("*.weights.pth")
    target = build("resnet8")
    load_weights(target, converted)
    assert same(filled(build("resnet8")), target)


def test_torchscript_is_converted_by_the_command_that_is_named(tmp_path: Path) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    source, target, path = Small(), Small(), tmp_path / "a.pt"
    torch.jit.trace(source, torch.ones(1, 3)).save(str(path))
    text = refusal(path, "found a TorchScript archive")
    command = shlex.split(text[text.index("python -c") :])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    load_weights(target, tmp_path / "a.weights.pth")
    assert same(source, target)


def test_formats_before_zip(state, tmp_path: Path) -> None:
    loads(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    loads({"net": state}, tmp_path / "a.tar", _use_new_zipfile_serialization=False)


def test_names_do_not_matter(state, tmp_path: Path) -> None:
    loads({"model": state}, tmp_path / "a.safetensors")
    loads({"model": state}, tmp_path / "a", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "a.bin", "a"):
        save_file(state, tmp_path / name)
        target = build("resnet8")
        load_weights(target, tmp_path / name)
        assert same(filled(build("resnet8")), target)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "weights/a.pth")


def zipped(path: Path, name: str = "teachers/a.pth") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"anything")


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def packed(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    path.write_bytes(gzip.compress(buffer.getvalue()))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a"])
@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (lambda p: p.write_text(POINTER), ["Git LFS pointer", "git lfs pull"]),
        (lambda p: p.write_text("<!DOCTYPE html>\n<html>Log in</html>"), ["web page", "download"]),
        (lambda p: p.write_text("\ufeff\n  <html lang='en'>404"), ["web page"]),
        (lambda p: p.write_text("<?xml version='1.0'?><Error>Denied</Error>"), ["web page"]),
        (lambda p: p.write_text('{"message": "Not Found"}'), ["JSON"]),
        (lambda p: p.write_text(json.dumps({"weight_map": {}}, indent=2)), ["JSON"]),
        (lambda p: p.write_text("[]"), ["JSON"]),
        (lambda p: p.write_text("404: Not Found"), ["'404: Not Found'"]),
        (lambda p: p.write_text("Zugriff verweigert: größer\n" * 90), ["Zugriff verweigert"]),
        (lambda p: p.write_text(""), ["an empty file", "fetch it again"]),
        (packed, ["gzip", "gunzip"]),
        (tar, ["tar archive", "unpack it"]),
        (zipped, ["zip archive", "unpack it", "teachers/a.pth"]),
        (npz, ["zip archive", "a.npy"]),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), ["pickle that torch did not write"]),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), ["HDF5"]),
        (lambda p: p.write_bytes(bytes(999)), ["unknown kind"]),
        (lambda p: p.write_bytes(bytes(range(255, 0, -1)) * 9), ["unknown kind"]),
        (lambda p: (p.mkdir(), (p / "model.safetensors").touch()), ["a folder", "such as model.s"]),
        (lambda p: p.mkdir(), ["a folder"]),
        (os.mkfifo, ["a pipe"]),
        (lambda p: p.symlink_to("/dev/zero"), ["a pipe, socket or device"]),
        (lambda p: p.symlink_to("nowhere"), ["no such file"]),
        (lambda p: p.symlink_to(p), ["cannot be read"]),
    ],
)
def test_other_files_are_named_with_the_way_on(write, parts, name, tmp_path: Path) -> None:
    write(tmp_path / name)
    refusal(tmp_path / name, *parts)


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(tmp_path / "file" / "a.pth", "cannot be read (Not a directory)")


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
@pytest.mark.parametrize("keep", [1, 8, 9, 60, 3000, 0.5, 0.99])
def test_cut_files_are_one_line(name: str, keep: float, state, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "a.pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    refusal(path)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.8])
def test_a_flipped_bit_is_noticed(place: float, state, tmp_path: Path) -> None:
    torch.save({"model": state}, path := tmp_path / "a.pth")
    content = bytearray(path.read_bytes())
    content[content.index(state["fc.weight"].numpy().tobytes()) + int(9000 * place)] ^= 4
    path.write_bytes(content)
    refusal(path, "damaged record", "fetch it again")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"epoch": 3, "acc": torch.ones(1)}, ["epoch (int)", "model_state_dict"]),
        ({"teacher": {"a": torch.ones(1)}}, ["teacher (dict)"]),
        ({"model": {"a": torch.ones(1), "b": np.ones(3)}}, ["b (Unread)", "under model"]),
        ({}, ["nothing"]),
        ([torch.ones(1)], ["type list"]),
        (torch.ones(3), ["type Tensor"]),
        ({"model": None}, ["model (NoneType)"]),
    ],
)
def test_what_is_there_instead_of_weights(content, parts, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth", "found no weights but", *parts)


def test_a_file_that_contains_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth", "found no weights")


def changed(state: dict[str, torch.Tensor], key: str, change) -> dict[str, torch.Tensor]:
    return {**state, key: change(state[key])}


def with_value(value: float):
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.view(-1)[0] = value
        return x

    return change


@pytest.mark.parametrize(
    ("key", "change", "word"),
    [
        ("fc.weight", lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised"),
        ("fc.weight", lambda x: x.to_sparse(), "sparse"),
        ("fc.weight", lambda x: x.to_sparse_csr(), "sparse"),
        ("fc.bias", lambda x: x.to(torch.complex64), "complex"),
        ("fc.bias", lambda x: x.to("meta"), "meta"),
        ("fc.weight", lambda x: (100 * x).to(torch.int8), "int8"),
        ("bn1.weight", lambda x: x.to(torch.int64), "int64"),
        ("bn1.weight", lambda x: x > 0, "bool"),
        ("fc.weight", lambda x: x.to(torch.float8_e4m3fn), "float8"),
        ("conv1.weight", with_value(float("nan")), "NaN"),
        ("bn1.running_var", with_value(float("inf")), "infinity"),
        ("fc.bias", with_value(float("-inf")), "infinity"),
        ("fc.bias", lambda x: with_value(1e300)(x.double()), "more than"),
        ("bn1.num_batches_tracked", lambda x: x + 0.5, "bn1.num_batches_tracked (float32)"),
    ],
)
def test_weights_that_cannot_be_used_are_named(key, change, word, state, tmp_path: Path) -> None:
    torch.save({"model": changed(state, key, change)}, path := tmp_path / "a.pth")
    target = build("resnet8")
    before = {name: x.clone() for name, x in target.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(target, path)
    text = str(error.value)
    assert text.startswith(str(path)) and key in text and word in text and "\n" not in text
    assert all(torch.equal(x, before[name]) for name, x in target.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_other_floats_are_converted(dtype, write, state, tmp_path: Path) -> None:
    narrow = {key: x.to(dtype) if x.is_floating_point() else x for key, x in state.items()}
    write(narrow, tmp_path / "a")
    target = build("resnet8")
    load_weights(target, tmp_path / "a")
    for key, x in target.state_dict().items():
        assert x.dtype == state[key].dtype
        assert torch.equal(x, narrow[key].to(x.dtype))


def test_a_mask_of_the_networks_own_may_be_infinite(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    source, target = Masked(), Masked()
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    assert same(source, target)


def test_a_state_keeps_its_names_where_none_are_wanted(tmp_path: Path) -> None:
    torch.save({"net": {"module.backbone.fc.weight": torch.ones(2)}}, tmp_path / "a.pth")
    assert load_state(tmp_path / "a.pth").keys() == {"backbone.fc.weight"}
    save_file({"a.b": torch.ones(2)}, tmp_path / "a.safetensors")
    found = load_state(tmp_path / "a.safetensors")
    assert found.keys() == load_file(tmp_path / "a.safetensors").keys() == {"a.b"}
