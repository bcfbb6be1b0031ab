"""Students as directories that ``AutoModelForCausalLM.from_pretrained`` loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from eakd.files import write_folder, write_json

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

    def write(folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_json(folder / METADATA, dict(metadata))

    write_folder(path, write)
