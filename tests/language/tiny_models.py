"""Models and tokenizers for tests of evaluation: random ones of a second, and a trained one."""

import functools
import json
import zipfile

import pytest
import torch

TEXTS = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
    "Name three colours. Red, green and blue; 1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
]


@functools.cache
def tokenizer():
    """Byte-level BPE of about 300 tokens, with an end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def gpt2(seed=0, vocab=None, positions=512, sharpness=3.0):
    """A random GPT-2, in eval mode, whose predictions are far from flat."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    end = tokenizer().eos_token_id
    config = GPT2Config(
        vocab_size=vocab or len(tokenizer()),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(10 * sharpness)
    return model


def save(folder, seed=0, **settings):
    """A directory as `save_pretrained` writes it."""
    gpt2(seed, **settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def unpacked(real_data, tmp_path_factory, name):
    """The folder in one of the archives of real data."""
    archive = real_data / f"{name}.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    folder = tmp_path_factory.mktemp(name)
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / name
