"""``eakd.load``: a network from an exported folder, or from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from eakd.hub.folder import (
    BOXES,
    CONFIG,
    TEXT,
    WEIGHTS,
    build_network,
    check_weights,
    read_section,
)
from eakd.hub.remote import download
from eakd.models.weights import load_weights


def load(
    source: str | os.PathLike[str], revision: str | None = None, *, own_code: bool = False
) -> nn.Module:
    """A trained network that ``eakd-export`` has written, in eval mode on the CPU.

    An image network takes images ``(N, 3, H, W)`` in the normalisation of its training, and returns
    an `eakd.models.Output` with ``logits``; a detector has ``detect`` and ``categories``; a
    language model is one of transformers'. The weights are compared with their digest.

    Args:
        source: a folder, or ``OWNER/NAME`` on the hub, which is downloaded once.
        revision: branch, tag or commit on the hub.
        own_code: also networks that are not eakd's: import the name in ``config.json``, or run
            the code that comes with a language model. Only for folders that you trust.

    Returns:
        The network; its attribute ``exported`` is what ``config.json`` says of it: ``mean``,
        ``std``, ``image_size``, ``classes`` and how it was trained.

    Raises:
        UserError: neither a folder nor a name on the hub, no network, damaged files, or one that
            could not be downloaded.
    """
    name = os.fspath(source)
    folder = Path(name) if os.path.isdir(name) else download(name, revision, own_code)
    section = read_section(folder)
    check_weights(folder, section["weights"])
    model: nn.Module
    if section["task"] == TEXT:
        from eakd.language.models import load_model

        model = load_model(folder, str(folder), trust_remote_code=own_code)
    else:
        where, classes = str(folder / CONFIG), section["num_classes"]
        model = build_network(section["network"], classes, where, own_code)
        load_weights(model, folder / WEIGHTS)
        if section["task"] == BOXES:
            model.categories = [tuple(each) for each in section["categories"]]
    model.exported = section
    return model.eval()
