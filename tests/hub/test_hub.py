"""An exported run is the run: its logits, its accuracy, its story; opened by others as by us."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import eakd
from eakd.classification import evaluate
from eakd.classification.build import build_data, build_model
from eakd.composing import compose
from eakd.config import ROOT
from eakd.errors import UserError
from eakd.hub.card import PAPER, SOFTWARE
from eakd.hub.export import export
from eakd.models import resnet8
from eakd.models.weights import load_weights
from eakd.training.device import Compute
from eakd.training.reading import read_object
from eakd.training.run import run
from eakd.training.schedule import Recipe


def exported(directory, to, *words):
    return export(compose([f"run={directory}", f"to={to}", *words], "export"))


@pytest.fixture(scope="module")
def finished(trained):
    """The directory of a finished run of EA-KD."""
    (found,) = trained.glob("digits/*/ea_kd/seed0-*")
    return found


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    return exported(finished, tmp_path_factory.mktemp("exported") / "student")


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def results(folder):
    """The metrics in a card's front matter: name → value, as the hub's own library reads them."""
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard.load(folder / "README.md")
    return card, {each.metric_name: each.metric_value for each in card.data.eval_results}


def images(side, count=3):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_logits_are_the_runs(finished, folder, capsys):
    model = eakd.load(folder)
    wanted = resnet8(num_classes=10)
    load_weights(wanted, finished / "last.safetensors")
    x = images(16)
    assert not model.training
    assert torch.equal(model(x).logits, wanted.eval()(x).logits)
    known = {"image_size": 16, "mean": [0.299] * 3, "classes": list("0123456789")}
    assert known.items() <= model.exported.items()


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_cards_accuracy_is_the_networks(which, finished, tmp_path):
    folder = exported(finished, tmp_path / "a", f"which={which}")
    summary = read_object(finished / "summary.json")
    card, found = results(folder)
    epoch = 2 if which == "last" else summary["top1_best_epoch"]
    label = f"{which} epoch ({epoch}{', chosen on test' * (which == 'best')})"
    assert found.keys() == {f"top-1 %, {label}", f"top-5 %, {label}"}
    compute = Compute.create(device="cpu", precision=summary["precision"])
    config = compose(["data.train_per_class=8"])
    data = build_data(config, 0, compute, Recipe(epochs=1, batch_size=16))
    measured = evaluate(compute.place(eakd.load(folder)), data.evaluation("test"), compute)
    assert measured["top1"] == found[f"top-1 %, {label}"]
    assert measured["top5"] == found[f"top-5 %, {label}"]
    assert f"{label}, these weights" in card.content


def test_the_card_tells_how_it_came_about(folder, finished):
    card, _ = results(folder)
    section = read_object(folder / "config.json")["eakd"]
    summary = read_object(finished / "summary.json")
    assert (card.data.library_name, card.data.license) == ("eakd", "unknown")
    assert card.data.pipeline_tag == "image-classification"
    for text in (
        *("| seed | 0 |", "| best epoch chosen on | test |", '| weighting | kind="ea"'),
        *("SGD with Nesterov momentum", "`resnet8`, top-1 %", summary["teacher_digest"]),
        *(
            section["weights"]["model.safetensors"],
            f"eakd {eakd.__version__}",
            "Su, Chi-Ping",
            PAPER,
        ),
    ):
        assert text in card.content, text
    assert str(finished.parents[3]) not in card.content  # nobody's folders
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PAPER in citation and SOFTWARE in citation


def test_places_on_this_machine_stay_here(finished, tmp_path):
    """A run whose teacher was named by a path."""
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    config = read_object(copied / "config.json")
    config["teacher"]["checkpoint"] = "/home/somebody/secret/teacher.pth"
    (copied / "config.json").write_text(json.dumps(config))
    text = (exported(copied, tmp_path / "a") / "README.md").read_text()
    assert "checkpoint: teacher.pth" in text and "secret" not in text


@torch.no_grad()
def test_plain_torch_opens_it(folder):
    """The names in the file are the architecture's own."""
    model = resnet8(num_classes=10)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    assert torch.equal(model.eval()(images(16)).logits, eakd.load(folder)(images(16)).logits)


@pytest.mark.parametrize(("name", "size"), [("test_resnet.r160_in1k", 24), ("test_vit", 32)])
def test_timm_opens_its_own(name, size, tiny, tmp_path):
    words = ["student=timm", f"student.name={name}", f"student.input_size={size}"]
    words += ["distiller=none", "recipe.epochs=1", f"run_dir={tmp_path / 'run'}"]
    config = compose([*tiny, *words])
    run(config)
    folder = exported(tmp_path / "run", tmp_path / "a")
    with torch.no_grad():
        ours, x = eakd.load(folder), images(16)
        before = build_model(config.student, "student", 10)
        load_weights(before, tmp_path / "run" / "last.safetensors")
        wanted = before.eval()(x).logits
        assert torch.equal(ours(x).logits, wanted)
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        sized = {"img_size": size} if "vit" in name else {}
        file = folder / "model.safetensors"
        named = timm.create_model(name, num_classes=10, checkpoint_path=file, **sized).eval()
        for model in (opened, named):  # they take images as timm prepares them
            torch.testing.assert_close(model(ours.adapt(x)), wanted)
    known = timm.data.resolve_model_data_config(opened)
    assert list(known["input_size"]) == [3, size, size] and known["crop_pct"] == 1.0
    assert results(folder)[0].data.library_name == "timm"


def test_the_users_own_network(own_configs, tiny, tmp_path, monkeypatch):
    """It is opened where its code is, and only if that is said."""
    (tmp_path / "exported_own.py").write_text(
        "from eakd.models import StagedModel, resnet8\n"
        "def small(num_classes: int, scale: float = 1.0) -> StagedModel:\n"
        "    return resnet8(num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own_configs({"model/small.yaml": "name: small\n_target_: exported_own.small\nscale: 2.0\n"})
    words = ["student=small", "distiller=none", "recipe.epochs=1", "recipe.evaluate_every=0"]
    run(compose([*tiny, *words, f"run_dir={tmp_path / 'run'}"]))
    folder = exported(tmp_path / "run", tmp_path / "a")
    with pytest.raises(UserError, match=r"the network .exported_own.small., .* own_code=True"):
        eakd.load(folder)
    assert eakd.load(folder, own_code=True).exported["network"]["arguments"] == {"scale": 2}


def change(folder, **values):
    path = folder / "config.json"
    config = read_object(path)
    config["eakd"].update(values)
    path.write_text(json.dumps(config))


def network(constructor="eakd.models.resnet8", **arguments):
    return {"network": {"name": "x", "constructor": constructor, "arguments": arguments}}


def other_weights(folder):
    state = load_file(folder / "model.safetensors")
    state["fc.bias"] += 1e-6
    save_file(state, folder / "model.safetensors")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "found no config.json, allowed is a folder"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: found a damaged file"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json: found no eakd, allowed"),
        (lambda f: change(f, format=2, version="9"), "found format 2 of version '9', allowed is 1"),
        (lambda f: change(f, task="x"), "found task 'x', allowed is one of image-classification"),
        (lambda f: change(f, weights=None), "found weights None, allowed is a JSON object"),
        (lambda f: change(f, num_classes="10"), "num_classes '10', allowed is a JSON integer"),
        (lambda f: change(f, num_classes=9), "not the weights of this ResNet: shape of fc.weight"),
        (lambda f: change(f, **network("os.system")), "found the network 'os.system'"),
        (lambda f: change(f, **network("eakd.models.resnet9")), "config.json: .* be imported"),
        (lambda f: change(f, **network("eakd.models.Output")), "allowed is a subclass of torch"),
        (lambda f: change(f, **network(width=3)), "network.width: found a key"),
        (
            lambda f: change(f, **network("eakd.models.timm_model", architecture="hf-hub:a/b")),
            "found the architecture 'hf-hub:a/b', allowed is a name of timm's own",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: found no file"),
        (cut, "found weights with the digest"),
        (other_weights, "found weights with the digest"),
    ],
)
def test_damaged_folders_are_one_line(damage, message, copy):
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        eakd.load(copy)
    assert "\n" not in str(error.value) and str(copy) in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/nowhere/at/all", "", "a b/c"])
def test_what_is_neither_a_folder_nor_a_name(name):
    with pytest.raises(UserError, match=r"^load: found '.*', allowed is a folder .* OWNER/NAME"):
        eakd.load(name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], "run: found no finished run in nowhere"),
        (["which=first"], "which: found 'first', allowed is one of auto, last, best"),
        (["license=My own"], "license: found 'My own'"),
        (["push=name"], "push: found 'name', allowed is OWNER/NAME"),
        (["to={taken}"], "to: found .*, which is not empty, allowed is a new folder"),
        (["to={taken}", "overwrite=true"], "which no export has written"),
    ],
)
def test_refused_exports_leave_no_trace(words, message, finished, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    words = [word.format(taken=taken) for word in words]
    given = {word.partition("=")[0] for word in words}
    rest = [f"run={finished}", f"to={tmp_path / 'a'}"]
    words += [word for word in rest if word.partition("=")[0] not in given]
    with pytest.raises(UserError, match=message):
        export(compose(words, "export"))
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "thesis.tex"]


def test_an_export_is_replaced_whole(finished, copy):
    (copy / "left").write_text("of before")
    with pytest.raises(UserError, match="allowed is a new folder, or overwrite=true"):
        exported(finished, copy)
    exported(finished, copy, "overwrite=true", "license=mit")
    assert {path.name for path in copy.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    assert "license: mit" in (copy / "README.md").read_text()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_weights_that_are_not_the_summarys_are_refused(finished, tmp_path):
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    other = next((finished.parents[1] / "kd").glob("seed1-*")) / "last.safetensors"
    shutil.copyfile(other, copied / "last.safetensors")
    with pytest.raises(UserError, match=re.escape(f"weights in {copied}") + ".* summary.json"):
        exported(copied, tmp_path / "a")


def test_a_glob_names_one_run(finished, trained, tmp_path):
    folder = exported(finished.parent / "seed0-*", tmp_path / "a")
    assert read_object(folder / "config.json")["eakd"]["method"] == "ea_kd"
    with pytest.raises(UserError, match="run: found 2 directories in"):
        exported(finished.parent / "seed*", tmp_path / "b")


def test_without_its_data_a_run_has_no_names_of_classes(finished, tmp_path, caplog):
    copied = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(copied / ".hydra")
    known = eakd.load(exported(copied, tmp_path / "a")).exported
    assert (known["classes"], known["num_classes"], known["image_size"]) == (None, 10, 16)
    assert "names of classes are left out" in caplog.text
