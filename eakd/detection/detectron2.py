"""Weights of detectron2's model zoo as those of our networks.

The zoo's ``.pkl`` files are plain pickles of NumPy arrays. A pickle can call anything, so these are
read by an unpickler that knows arrays only; nothing of detectron2 is needed.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eakd.detection.faster_rcnn import STD
from eakd.errors import UserError
from eakd.models.weight_files import listed

# Rule for each name: a pattern, and what it becomes; ``None`` drops it. The first that fits counts.
RULES: tuple[tuple[str, str | Callable[[re.Match], str] | None], ...] = (
    (r"pixel_(?:mean|std)|(?:proposal_generator\.)?anchor_generator\..+", None),
    (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (
        r"backbone\.bottom_up\.res([2-5])\.(\d+)\.shortcut\.(weight|norm\.\w+)",
        lambda m: (
            f"backbone.body.layer{int(m[1]) - 1}.{m[2]}.downsample."
            + ("0.weight" if m[3] == "weight" else m[3].replace("norm", "1"))
        ),
    ),
    (
        r"backbone\.bottom_up\.res([2-5])\.(\d+)\.conv(\d)\.(weight|norm\.\w+)",
        lambda m: (
            f"backbone.body.layer{int(m[1]) - 1}.{m[2]}."
            + (f"conv{m[3]}.weight" if m[4] == "weight" else m[4].replace("norm", f"bn{m[3]}"))
        ),
    ),
    (
        r"backbone\.fpn_(lateral|output)([2-5])\.(weight|bias)",
        lambda m: (
            f"backbone.fpn.{'inner' if m[1] == 'lateral' else 'layer'}_blocks."
            f"{int(m[2]) - 2}.0.{m[3]}"
        ),
    ),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rpn.head.bbox_pred.\1"),
    (
        r"roi_heads\.box_head\.fc([12])\.(weight|bias)",
        lambda m: f"roi_heads.box_head.fc{int(m[1]) + 5}.{m[2]}",
    ),
    (
        r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.(?:weight|bias))",
        r"\1",
    ),
)


PREDICTOR = "roi_heads.box_predictor."
BOXES = PREDICTOR + "bbox_pred.weight"


def convert(path: str | Path, num_classes: int | None = None) -> dict[str, Tensor]:
    """A zoo file of a Faster R-CNN with a feature pyramid, as a state dict of torchvision's names.

    The network takes RGB in [0, 1], normalised by ImageNet's means and deviations; the file's takes
    BGR in [0, 255] minus its means. The first convolution makes up for the difference, exactly,
    because detectron2's means are 255 times ImageNet's, and zeros around an image stay zeros.

    Args:
        path: a ``.pkl`` file.
        num_classes: that it must have, without the background; any by default.

    Raises:
        UserError: no such file, one that holds more than arrays, or another network's weights.
    """
    arrays = _model_of(path, _read(path))
    state: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, array in arrays.items():
        new = _renamed(name)
        if new == "":
            unknown.append(name)
        elif new is not None:
            state[new] = torch.from_numpy(np.ascontiguousarray(array)).float()
    if unknown:
        raise UserError(
            f"checkpoint: found {len(unknown)} tensors of {_common(unknown)} in {path}, allowed "
            "are those of Faster R-CNN with FPN"
        )
    needed = ("backbone.body.conv1.weight", PREDICTOR + "cls_score.weight", BOXES)
    missing = [name for name in needed if name not in state]
    if missing:
        raise UserError(
            f"checkpoint: found no {listed(missing)} in {path}, allowed is a whole Faster R-CNN "
            "with FPN, such as faster_rcnn_R_50_FPN_3x"
        )
    _check_classes(path, state, num_classes)
    first = state["backbone.body.conv1.weight"]
    state["backbone.body.conv1.weight"] = first.flip(1) * 255 * torch.tensor(STD)[:, None, None]
    for name in ("cls_score", "bbox_pred"):
        for kind in ("weight", "bias"):
            key = f"{PREDICTOR}{name}.{kind}"
            if key in state:
                state[key] = background_first(state[key], boxes=name == "bbox_pred")
    return state


def background_first(rows: Tensor, boxes: bool = False, dim: int = 0) -> Tensor:
    """detectron2's order of classes, background last, as torchvision's, background first.

    Args:
        rows: ``C + 1`` classes along ``dim``; of boxes 4 for each of ``C`` classes, as detectron2
            has none for the background, which gets four zeros.
        boxes: which of both.
        dim: the dimension.
    """
    if boxes:
        return torch.cat([torch.zeros_like(rows.narrow(dim, 0, 4)), rows], dim)
    return rows.roll(1, dim)


def _renamed(name: str) -> str | None:
    """Our name of a tensor, ``None`` for one that is not needed, ``""`` for an unknown one."""
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, name)
        if match:
            if replacement is None:
                return None
            return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    return ""


def _check_classes(path: str | Path, state: Mapping[str, Tensor], wanted: int | None) -> None:
    classes = len(state[PREDICTOR + "cls_score.weight"]) - 1
    offsets = len(state[BOXES])
    if offsets != 4 * classes:
        raise UserError(
            f"checkpoint: found {offsets} box offsets for {classes} classes in {path}, allowed are "
            f"{4 * classes}, four for each class"
        )
    if wanted is not None and classes != wanted:
        raise UserError(
            f"checkpoint: found {classes} classes in {path}, allowed are {wanted} (num_classes)"
        )


def _common(names: list[str]) -> str:
    """Where most of the names lie: their first two parts."""
    places = [".".join(name.split(".")[:2]) for name in names]
    return max(dict.fromkeys(places), key=places.count) + "…"


def _model_of(path: str | Path, found: Any) -> dict[str, np.ndarray]:
    """The arrays of a zoo file.

    Raises:
        UserError: there are none.
    """
    model = found.get("model", found) if isinstance(found, dict) else None
    if (
        not isinstance(model, dict)
        or not model
        or not all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in model.items())
        or any(v.dtype.kind != "f" for k, v in model.items() if _renamed(k))
    ):
        raise UserError(
            f"checkpoint: found no arrays by name in {path}, allowed is a file of detectron2's zoo"
        )
    return model


def _read(path: str | Path) -> Any:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"checkpoint: found {path} ({error.strerror}), allowed is a file of detectron2's zoo"
        ) from error
    try:
        return _ArraysOnly(io.BytesIO(content)).load()
    except _NotAllowed as error:
        raise UserError(
            f"checkpoint: found {path} with {error} in it, allowed are arrays only"
        ) from error
    # A damaged pickle raises whatever its opcodes stumble over.
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"checkpoint: found {path}, which is no pickle or a damaged one ({reason}), allowed is "
            "a file of detectron2's zoo"
        ) from error


class _NotAllowed(Exception):
    """Something that a pickle wants to call."""


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What protocol 2 calls for bytes; other encodings would be a way to import modules."""
    if encoding != "latin1":
        raise _NotAllowed(f"encoding {encoding!r}")
    return text.encode("latin1")


def _array_makers() -> dict[str, Callable]:
    """The functions that pickled arrays call, as NumPy itself names them."""
    array, number = np.zeros(1), np.float32(0)
    return {
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "_reconstruct": array.__reduce__()[0],
        "_frombuffer": array.__reduce_ex__(5)[0],
        "scalar": number.__reduce__()[0],
    }


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, numbers, texts and containers; refuses to look anything else up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        # numpy.core until NumPy 2, numpy._core since then.
        if re.fullmatch(r"numpy(\._?core\.(multiarray|numeric))?", module):
            makers = _array_makers()
            if name in makers:
                return makers[name]
        raise _NotAllowed(f"{module}.{name}")
