"""An exported language model is the run's best, for transformers as for us."""

import pytest
import torch

import eakd
from eakd.composing import compose
from eakd.hub.export import export
from eakd.training.run import run

transformers = pytest.importorskip("transformers")


def test_an_exported_language_model(words, tmp_path):
    summary = run(compose([*words, "recipe.epochs=2", f"run_dir={tmp_path / 'run'}"]))
    folder = export(compose([f"run={tmp_path / 'run'}", f"to={tmp_path / 'a'}"], "export"))
    tokens = torch.arange(20)[None]
    wanted, theirs = (
        transformers.AutoModelForCausalLM.from_pretrained(place).eval()(tokens).logits.detach()
        for place in (tmp_path / "run" / "best", folder)
    )
    model = eakd.load(folder)
    assert torch.equal(theirs, wanted)
    assert torch.equal(model(tokens).logits.detach(), wanted)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    best = summary["token_accuracy_best"]
    assert model.exported["epoch"] == "best"
    assert model.exported["test_metrics"]["token_accuracy"] == best
    text = (folder / "README.md").read_text()
    assert "library_name: transformers" in text and f"value: {best}" in text
    assert str(tmp_path) not in text and str(compose(words).data.train) not in text
