"""Students as directories that ``AutoModelForCausalLM.from_pretrained`` loads."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from eakd.files import sync_directory, write_json, writing

METADATA = "eakd.json"  # what the model was measured at


def save_directory(
    model: nn.Module, tokenizer: Any, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write weights, config and tokenizer, whole or not at all; what was there before is replaced.

    Between the two renames of a replacement there is no ``path``: a run that is killed there writes
    it again, because its checkpoint comes later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of killed processes; only one writes in a run's directory.
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    temporary, old = (
        path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp") for _ in range(2)
    )
    with writing(path):
        try:
            model.save_pretrained(temporary, safe_serialization=True)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
            write_json(temporary / METADATA, dict(metadata))
            for file in temporary.iterdir():
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
            sync_directory(path.parent)
        finally:
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)
