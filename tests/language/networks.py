"""Small models and rows without any file."""

import torch

from eakd.language.batches import TextData
from eakd.language.text import Row, Rows

VOCABULARY = 97


def gpt2(seed=0, width=32, vocabulary=VOCABULARY, dropout=0.0, spread=0.3):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=width, n_layer=2, n_head=2,
        initializer_range=spread, **rates,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def llama(seed=1, width=32, vocabulary=VOCABULARY, spread=0.3):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=spread, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rows(count=24, seed=0, vocabulary=VOCABULARY):
    """Prompts of 1 to 12 tokens, answers of 1 to 20."""
    draw = torch.Generator().manual_seed(seed)

    def ids(most):
        length = int(torch.randint(1, most + 1, (), generator=draw))
        return tuple(torch.randint(vocabulary, (length,), generator=draw).tolist())

    return Rows([Row(ids(12), ids(20), ("",), "", line) for line in range(1, count + 1)])


def text_data(count=24, **settings):
    found = rows(count)
    return TextData(found, {"test": rows(9, seed=1)}, **{"batch_size": 12, **settings})
