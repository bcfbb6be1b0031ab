"""Directories of models: on the disk, or from the hub; and the library that reads them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from eakd.errors import UserError, check_text
from eakd.training.find_teacher import weights_digest

# What is taken of a model on the hub.
FILES = ("*.json", "merges.txt", "vocab.txt", "*.model")


def library() -> Any:
    """The module ``transformers``, quiet.

    Raises:
        UserError: it is not installed.
    """
    # Rows are few, and forked processes of a test or a sweep would only warn of the threads.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "data: found no transformers, which language needs: pip install -e '.[language]'"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def find_directory(path: str, key: str = "path", download: bool = True) -> Path:
    """The directory of a model: ``path`` itself, or a model of that name on the hub.

    Args:
        key: of ``path``, for messages.
        download: else only what has been downloaded before is found.

    Raises:
        UserError: nothing of that name here, and none that could be downloaded.
    """
    check_text(key, path)
    if os.path.exists(path) or os.path.isabs(path) or path.startswith("."):
        for name in ("config.json", "tokenizer.json", "vocab.json", "tokenizer_config.json"):
            if os.path.isfile(os.path.join(path, name)):
                return Path(path)
        raise UserError(f"{key}: found no config.json in {path!r}, allowed is a directory with one")
    library()
    from huggingface_hub import snapshot_download

    def snapshot(*patterns: str, local: bool) -> Path:
        return Path(snapshot_download(path, allow_patterns=patterns, local_files_only=local))

    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            found = snapshot(*FILES, weights, local=not download)
            if any(found.glob(weights)):
                break
    except Exception as error:  # no network, no such model, one that needs a token
        reason = type(error).__name__
        raise UserError(
            f"{key}: found no {path} here and could not download it ({reason}), allowed is a "
            "directory with config.json, or the name of a model on the hub"
        ) from error
    return found


def directory_digest(directory: Path) -> str:
    """SHA-256, in hex, of what a directory's model computes: weights, config, tokenizer."""
    digest = hashlib.sha256()
    weights = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    for path in weights:
        digest.update(weights_digest(path).encode())
    for name in ("config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        if (directory / name).is_file():
            digest.update((directory / name).read_bytes())
    return digest.hexdigest()


def one_line_of(error: BaseException) -> str:
    """Its message in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
