"""Weights are read from every format in use and written whole; mistakes cost one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eakd.errors import UserError
from eakd.models import timm_model
from eakd.models.weights import load_state, load_weights, save_weights

from .helpers import build, filled, images


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
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

    monkeypatch.setattr("eakd.models.weights.save", fail)
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


class LanguageModel(nn.Module):
    """The outline of a causal language model, whose head may share the embedding's weight."""

    def __init__(self, tied: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 16, dtype=dtype)
        self.norm = nn.LayerNorm(16, dtype=dtype)
        self.head = nn.Linear(16, 300, bias=False, dtype=dtype)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(tokens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_are_stored_once(dtype: torch.dtype, tmp_path: Path) -> None:
    source, path = LanguageModel(tied=True, dtype=dtype), tmp_path / "tied.safetensors"
    save_weights(source, path, {"top1": "66.7"})
    assert path.stat().st_size < 1.2 * 300 * 16 * dtype.itemsize + 500
    plain = load_file(path)
    assert plain.keys() == {"embedding.weight", "norm.bias", "norm.weight"}
    assert torch.equal(plain["embedding.weight"], source.head.weight)
    with safe_open(path, "pt") as file:
        note = json.dumps({"head.weight": "embedding.weight"})
        assert file.metadata() == {"top1": "66.7", "tied": note}

    state = load_state(path)
    assert state["head.weight"] is state["embedding.weight"]
    tokens = torch.arange(10)
    for tied in (True, False):
        target = LanguageModel(tied, dtype)
        load_weights(target, path)
        assert_same_state(source, target)
        assert (target.head.weight is target.embedding.weight) == tied
        assert target.head.weight.data_ptr() != state["head.weight"].data_ptr()
        torch.testing.assert_close(target(tokens), source(tokens), rtol=0, atol=0)


def test_files_of_untied_weights_have_no_note(tmp_path: Path) -> None:
    save_weights(LanguageModel(tied=False), path := tmp_path / "untied.safetensors")
    with safe_open(path, "pt") as file:
        assert not file.metadata()
    with pytest.raises(UserError, match="metadata key 'tied'"):
        save_weights(LanguageModel(tied=False), path, {"tied": "no"})


@pytest.mark.parametrize("kept", ["embedding.weight", "head.weight"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_programs_leave_tied_weights_out(suffix: str, kept: str, tmp_path: Path) -> None:
    source, path = LanguageModel(tied=True), tmp_path / f"model{suffix}"
    state = {key: x for key, x in source.state_dict().items() if key == kept or "norm" in key}
    write = save_file if suffix == ".safetensors" else torch.save
    write(state, path)
    target = LanguageModel(tied=True)
    load_weights(target, path)
    assert_same_state(source, target)
    assert target.head.weight is target.embedding.weight
    (absent,) = {"embedding.weight", "head.weight"} - {kept}
    with pytest.raises(UserError) as error:  # nothing says that these two belong together
        load_weights(LanguageModel(tied=False), path)
    one_line(error, path.name, f"missing {absent}")
    del state[kept]
    torch.save(state, path.with_suffix(".pth"))
    with pytest.raises(UserError) as error:
        load_weights(target, path.with_suffix(".pth"))
    one_line(error, "missing embedding.weight, head.weight")


def test_one_tied_weight_cannot_hold_two_values(tmp_path: Path) -> None:
    save_weights(LanguageModel(tied=False), path := tmp_path / "untied.safetensors")
    target = LanguageModel(tied=True)
    before = {key: x.clone() for key, x in target.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_weights(target, path)
    one_line(error, path.name, "different values for the tied embedding.weight and head.weight")
    assert all(torch.equal(x, before[key]) for key, x in target.state_dict().items())
    state = load_state(path)
    # Equal in the type of the model, which is what counts.
    state["head.weight"] = state["embedding.weight"].double() * (1 + 1e-12)
    save_file(state, path := tmp_path / "equal.safetensors")
    load_weights(target, path)
    assert torch.equal(target.head.weight, state["embedding.weight"])


class Overlapping(nn.Module):
    """Whatever else shares memory: slices, views, a buffer, and tensors without any."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(6, 6)
        self.query, self.key = nn.Parameter(both[:3]), nn.Parameter(both[3:])
        self.both, self.middle = nn.Parameter(both), nn.Parameter(both[1:5])
        self.register_buffer("transposed", both.T)
        self.register_buffer("as_integers", both.view(torch.int32))
        self.register_buffer("copy_of_query", self.query.detach())
        self.conv, self.twin = nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 3)
        self.to(memory_format=torch.channels_last)
        self.twin.weight = self.conv.weight
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("also_empty", torch.empty(0, 3))
        self.register_buffer("empty_slice", both[:0])


def test_what_only_overlaps_is_stored_whole(tmp_path: Path) -> None:
    source, target, path = Overlapping(), Overlapping(), tmp_path / "views.safetensors"
    assert source.conv.weight.is_contiguous(memory_format=torch.channels_last)
    save_weights(source, path)
    tied = {"copy_of_query": "query", "twin.weight": "conv.weight"}
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["tied"]) == tied
    plain = load_file(path)
    assert plain.keys() == source.state_dict().keys() - tied.keys()
    assert all(torch.equal(x, source.state_dict()[key]) for key, x in plain.items())
    load_weights(target, path)
    assert_same_state(source, target)
    assert target.twin.weight is target.conv.weight
    assert target.copy_of_query.data_ptr() == target.query.data_ptr() == target.both.data_ptr()
    del plain["also_empty"]
    save_file(plain, path := tmp_path / "less.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(target, path)
    assert str(error.value).endswith("this Overlapping: missing also_empty")  # no tied name


@pytest.mark.parametrize(
    "note",
    [
        "",
        "{",
        pytest.param("[" * 100_000, id="deep"),
        "null",
        '["head.weight"]',
        '{"head.weight": 3}',
        '{"head.weight": ["embedding.weight"]}',
        '{"head.weight": "absent"}',
        '{"head.weight": "head.weight"}',
        '{"head.weight": "embedding.weight", "more": "head.weight"}',  # no file has chains
    ],
)
def test_a_damaged_note_is_one_line(note: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = LanguageModel(tied=True).state_dict()
    del state["head.weight"]
    save_file(state, path, {"tied": note})
    with pytest.raises(UserError) as error:
        load_state(path)
    one_line(error, path.name, "truncated, or not a file of weights")
