"""The names in docs/language.md exist, and its settings are the published ones."""

import re

import pytest

from eakd.composing import compose
from eakd.config import method_label
from eakd.places import ROOT

TEXT = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")


def test_the_tables_name_what_is_there():
    methods = re.findall(r"`language/(\w+)`", TEXT)
    other = {"none": "sft"}  # another name of it
    assert {*other, "sft", "kd", "ea_kd", "rkld", "ea_rkld", "jsd", "ea_jsd"} == set(methods)
    for name in methods:
        label = method_label(compose(["data=text", f"distiller=language/{name}"]))
        assert label == other.get(name, name)
    for name in re.findall(r"^\| `(\w+)` \|", TEXT, re.M):
        if (ROOT / "configs" / "data" / f"{name}.yaml").exists():
            assert compose([f"data={name}"]).data.task == "eakd.language.Language"


@pytest.mark.parametrize("name", ["dolly", "dolly_minillm", "python_docs", "text"])
def test_every_set_says_where_its_rows_are(name):
    from eakd.language.source import TextSource
    from eakd.targets import build

    more = ["data.train=a.jsonl", "data.dev=b.jsonl"] if name == "text" else []
    data = compose([f"data={name}", *more]).data
    source = build(data.load, "data", TextSource)
    assert "train" in source.files and (source.divide or "test" in source.files)
    assert {"template", "max_length", "tokens_per_batch", "rouge_samples"} <= set(data)


def test_published_settings_are_dskds():
    recipe = compose(["data=dolly_minillm", "distiller=language/kd", "student=gpt2"]).recipe
    expected = {
        "epochs": 20, "batch_size": 32, "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.01,
        "schedule": "cosine", "min_lr": 1e-7, "clip_norm": 1.0, "warmup_epochs": 0.0,
    }  # fmt: skip
    assert {key: recipe[key] for key in expected} == expected
    assert list(recipe.betas) == [0.9, 0.999]


def test_sizes_that_models_state():
    """Millions of parameters, of the published models without their weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from eakd.language.models import load_tokenizer, tiny_gpt
    from eakd.language.source import HERE

    shapes = {"gpt2": (12, 768), "gpt2_medium": (24, 1024), "gpt2_large": (36, 1280)}
    shapes["gpt2_xl"] = (48, 1600)
    tokenizer = load_tokenizer(HERE / "python_docs.tokenizer.json")
    for name in (*shapes, "tiny_gpt_s", "tiny_gpt_t"):
        node = compose([f"student={name}", "data=python_docs"]).student
        with torch.device("meta"):
            if name in shapes:
                layers, width = shapes[name]
                model = GPT2LMHeadModel(
                    GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)
                )
            else:
                sizes = {k: v for k, v in node.items() if k not in ("name", "task", "_target_")}
                sizes = {k: v for k, v in sizes.items() if k not in ("checkpoint", "table")}
                model = tiny_gpt(tokenizer=tokenizer, **sizes)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        text = (ROOT / "configs" / "model" / f"{name}.yaml").read_text(encoding="utf-8")
        stated = float(re.search(r"([\d.,]+) M parameters", text)[1].replace(",", ""))
        assert stated == pytest.approx(millions, abs=0.5 if millions > 10 else 0.005)
