"""A small text set, a teacher and overrides for runs of seconds."""

import json

import pytest


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with rows (`train`, `dev`) and a model `teacher` that has the data's tokenizer."""
    import torch

    from eakd.language.export import save_directory
    from eakd.language.models import load_tokenizer, tiny_gpt
    from eakd.language.source import HERE
    from eakd.language.text import read_lines

    folder = tmp_path_factory.mktemp("language")
    lines = [line for _, line in read_lines(HERE / "python_docs.jsonl.gz")][:60]
    for name, part in (("train", lines[:48]), ("dev", lines[48:])):
        text = "".join(json.dumps(line) + "\n" for line in part)
        (folder / f"{name}.jsonl").write_text(text)
    tokenizer = load_tokenizer(HERE / "python_docs.tokenizer.json")
    torch.manual_seed(7)
    teacher = tiny_gpt(layers=2, width=48, heads=4, positions=128, tokenizer=tokenizer)
    for parameter in teacher.parameters():  # unsure of some answers and sure of others
        parameter.data *= 3 if parameter.dim() > 1 else 1
    save_directory(teacher, tokenizer, folder / "teacher", {"test_token_accuracy": "1.0"})
    return folder


@pytest.fixture
def words(place, tmp_path):
    """Overrides of a run: 3 epochs of 4 steps, each of several micro-batches, with dropout."""
    return [
        "data=text",
        f"data.train={place / 'train.jsonl'}",
        f"data.dev={place / 'dev.jsonl'}",
        f"data.tokenizer={place / 'teacher'}",
        "data.template=plain",
        "data.max_prompt_length=64",
        "data.max_length=128",
        "data.tokens_per_batch=200",
        "teacher=hf",
        f"teacher.path={place / 'teacher'}",
        "student=tiny_gpt_s",
        "student.width=32",
        "student.dropout=0.2",
        "distiller=language/ea_kd",
        "recipe.epochs=3",
        "recipe.batch_size=12",
        "recipe.lr=0.005",
        "device=cpu",
        "precision=float32",
        f"output_root={tmp_path / 'outputs'}",
        f"checkpoint_root={tmp_path / 'checkpoints'}",
    ]
