"""Causal language models and tokenizers, from directories that ``save_pretrained`` writes.

A model is one of transformers' own. The loss asks it for its last hidden states and applies the
head itself, in chunks, so `split` says which part is which, after it has looked that the two
together are the whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eakd.errors import UserError, check_boolean, check_number
from eakd.language.hub import directory_digest, find_directory, library, one_line_of
from eakd.language.tokens import check_same_tokens, load_tokenizer

__all__ = [
    "Parts",
    "check_causal",
    "check_same_tokens",
    "check_vocabulary",
    "directory_digest",
    "find_directory",
    "library",
    "load_model",
    "load_tokenizer",
    "outputs_of",
    "positions_of",
    "pretrained",
    "split",
    "tiny_gpt",
]

log = logging.getLogger(__name__)


def load_model(
    path: str | Path,
    key: str = "path",
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A causal language model of transformers, in eval mode.

    Args:
        path: a directory with ``config.json``, or a model's name on the hub.
        key: of ``path``, for messages.
        dtype: of the weights.

    Raises:
        UserError: no such model, or one that is not causal, needs code of its own, has weights that
            do not fit, or cannot be read.
    """
    transformers = library()
    directory = find_directory(str(path), key)
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{key}: found no config.json in {directory}, allowed is a directory with one"
        )
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{key}: found a damaged {directory / 'config.json'}") from error
    (name, *_) = config.get("architectures") or ["no architecture"]
    if config.get("is_encoder_decoder") or not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise UserError(f"{key}: found {name}, allowed is a causal language model")
    if config.get("auto_map") and not trust_remote_code:
        raise UserError(
            f"{key}: found a model that runs code of its own, allowed with "
            f"{key.partition('.')[0]}.trust_remote_code=true"
        )
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # damaged weights, an architecture that this version does not know
        raise UserError(
            f"{key}: found no model that can be read in {directory} ({one_line_of(error)})"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise UserError(
            f"{key}: found no {missing[0]} in {directory}, which lacks {len(missing)} of its "
            "weights"
        )
    return model.eval()


def pretrained(path: str, trust_remote_code: bool = False, tokenizer: Any = None) -> nn.Module:
    """A trained model, for configs.

    Args:
        path: see `load_model`.
        tokenizer: of the data; its size is checked by `check_vocabulary`.
    """
    check_boolean("trust_remote_code", trust_remote_code)
    return load_model(path, "path", trust_remote_code)


def tiny_gpt(
    layers: int = 2,
    width: int = 64,
    heads: int = 2,
    positions: int = 256,
    dropout: float = 0.1,
    tokenizer: Any = None,
) -> nn.Module:
    """A GPT-2 of any size with random weights, which the caller's seed decides.

    Args:
        positions: the longest text, in tokens.
        tokenizer: that it is for.
    """
    for name, value in (("layers", layers), ("width", width), ("heads", heads)):
        check_number(name, value, at_least=1, integer=True)
    check_number("positions", positions, at_least=2, integer=True)
    check_number("dropout", dropout, at_least=0, at_most=1)
    if width % heads:
        raise UserError(f"width: found {width}, allowed is a multiple of heads, {heads}")
    transformers = library()
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    end = tokenizer.eos_token_id
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=end,
        eos_token_id=end,
        **rates,
    )
    return transformers.GPT2LMHeadModel(config)


def positions_of(model: nn.Module) -> int | None:
    """The longest text that a model can read, in tokens; ``None`` without such a limit."""
    for name in ("n_positions", "max_position_embeddings", "max_seq_len"):
        found = getattr(model.config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def outputs_of(model: nn.Module) -> int:
    """Logits of a token, those that no token of the tokenizer has included."""
    head = model.get_output_embeddings()
    return getattr(head, "out_features", None) or model.config.vocab_size


def check_vocabulary(model: nn.Module, tokenizer: Any, role: str) -> None:
    """Raise `UserError` unless a model has an output for each token; say so if it has more."""
    found = outputs_of(model)
    if found < len(tokenizer):
        raise UserError(
            f"{role}: found {found} embeddings, allowed is at least {len(tokenizer)}, the "
            "tokenizer's size"
        )
    if found > len(tokenizer):
        log.info(
            "%s: %d logits are cut to the %d tokens of the tokenizer", role, found, len(tokenizer)
        )


class Parts(NamedTuple):
    """A model in two.

    Attributes:
        body: token ids ``(N, L)`` → an output with ``last_hidden_state`` ``(N, L, D)``.
        weight: ``(V, D)`` of the head.
        bias: ``(V,)``, or ``None``.
    """

    body: nn.Module
    weight: Tensor
    bias: Tensor | None


def split(model: nn.Module) -> Parts | None:
    """A model's body and head, or ``None`` of one whose head is more than a linear map.

    An adapter on the head, capped or scaled logits: such a model's own logits are used. The answer
    is found by asking, see `is_plain`, and kept.
    """
    if not hasattr(model, "_eakd_plain"):
        model._eakd_plain = is_plain(model)
    if not model._eakd_plain:
        return None
    head = model.get_output_embeddings()
    return Parts(model.base_model, head.weight, head.bias)


@torch.no_grad()
def is_plain(model: nn.Module) -> bool:
    """Whether head and body, one after the other, say what the model says."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return False
    training = model.training
    model.eval()
    try:
        device = head.weight.device
        tokens = torch.arange(8, device=device).remainder(head.out_features)[None]
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        own = model(input_ids=tokens, use_cache=False).logits
        return own.shape[-1] == head.out_features and torch.allclose(
            head(hidden).float(), own.float(), rtol=1e-3, atol=1e-3
        )
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        model.train(training)


@torch.no_grad()
def check_causal(model: nn.Module, role: str, example: Sequence[int]) -> None:
    """Raise `UserError` if a model's logits are not finite, or a later token changes earlier ones.

    Args:
        example: ids of a text.
    """
    training = model.training
    device = model.get_output_embeddings().weight.device
    tokens = torch.tensor([list(example)[:32]], device=device)
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % max(int(tokens.max()) + 1, 2)
    model.eval()
    first, second = (
        model(input_ids=each, use_cache=False).logits.float() for each in (tokens, other)
    )
    model.train(training)
    if not first.isfinite().all():
        raise UserError(
            f"{role}: found non-finite logits, allowed is a model whose weights are whole"
        )
    if not torch.allclose(first[:, :-1], second[:, :-1], rtol=1e-2, atol=1e-2):
        name = type(model).__name__
        raise UserError(
            f"{role}: found {name}, which reads ahead, allowed is a causal language model"
        )
