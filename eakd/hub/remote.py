"""The hub of Hugging Face: folders fetched from it, and brought to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eakd.errors import UserError, one_line_of, shortened

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # of models and tokenizers


def library(key: str) -> Any:
    """The module ``huggingface_hub``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{key}: found no huggingface_hub, which the hub needs: pip install 'eakd[hub]'"
        ) from error
    return huggingface_hub


def check_name(key: str, name: str) -> None:
    """Raise `UserError` unless ``name`` can be one on the hub."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{key}: found {shortened(name)}, allowed is OWNER/NAME")


def download(name: str, revision: str | None = None, code: bool = False) -> Path:
    """The folder of a model on the hub, downloaded unless it has been before.

    Args:
        code: also files of Python, which come with some language models.

    Raises:
        UserError: no such name, no network, no permission.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"load: found {shortened(name)}, allowed is a folder that eakd-export has written, or "
            "OWNER/NAME on the hub"
        )
    hub, patterns = library("load"), [*FILES, *(["*.py"] if code else [])]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the hub's, of the network's, of the disk's
        at = f" at {revision}" if revision else ""
        raise UserError(
            f"load: found no folder {name!r} here, and could not download it from the hub{at} "
            f"({reason(error)}), allowed is a folder, or OWNER/NAME of a model that you may read"
        ) from error


def check_push(name: str) -> None:
    """Refuse what cannot be brought to the hub, before anything is written.

    Raises:
        UserError: no name, library or credentials.
    """
    check_name("push", name)
    if library("push").get_token() is None:
        raise UserError(
            "push: found no credentials of the hub, allowed after `hf auth login`, or with a token "
            "that may write in HF_TOKEN"
        )


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder to a repository, which is made if it is not there.

    Returns:
        The address of the commit.

    Raises:
        UserError: no network, or the hub refuses.
    """
    api = library("push").HfApi(library_name="eakd")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        message = f"Upload {folder.name}"
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except Exception as error:  # of the hub's, of the network's
        raise UserError(
            f"push: could not upload to {name} ({reason(error)}); {folder} is whole, and "
            f"`hf upload {name} {folder}` tries again"
        ) from error


def reason(error: Exception) -> str:
    """What went wrong, in one short line."""
    return f"{type(error).__name__}: {one_line_of(error, 160)}"
