"""``eakd-convert``: published detectors of other programs as files that training reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from eakd.detection.detectron2 import PREDICTOR, convert
from eakd.errors import UserError
from eakd.models.weight_files import listed, load_state
from eakd.models.weights import save_weights
from eakd.targets import build

# COCO numbers its 80 classes 1 to 90, with gaps; torchvision's networks have an output for each.
COCO_NAMES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_ROWS = [row for row, name in enumerate(COCO_NAMES) if name != "N/A"]  # background first


def convert_checkpoint(config: DictConfig) -> Path:
    """Convert ``config.checkpoint`` to the weights of ``config.model``; the path they are at.

    Raises:
        UserError: a file of another kind or network, or other bytes than ``config.sha256`` says.
    """
    path = Path(config.checkpoint)
    digest = _digest(path)
    if config.sha256 is not None and str(config.sha256).lower() != digest:
        raise UserError(f"sha256: found {digest} of {path}, allowed is {config.sha256}")
    read = convert if path.suffix == ".pkl" else of_torchvision
    state = read(path, config.num_classes)
    classes = len(state[f"{PREDICTOR}cls_score.bias"]) - 1
    node = config.model.copy()
    if node.get("backbone_weights"):  # which the file replaces
        node.backbone_weights = None
    model = build(node, "model", nn.Module, num_classes=classes)
    _load(model, state, path, config.model.name)
    into = Path(config.into)
    about = {"source": path.name, "sha256": digest, "num_classes": str(classes)}
    if classes == len(COCO_ROWS) - 1:  # both programs order them by COCO's ids
        about["categories"] = json.dumps([[row, COCO_NAMES[row]] for row in COCO_ROWS[1:]])
    save_weights(model, into, about)
    print(f"{into}: {config.model.name}, {len(state)} tensors of {path}")
    return into


def of_torchvision(path: Path, num_classes: int | None = None) -> dict[str, Tensor]:
    """torchvision's own weights of COCO, with outputs for its 80 classes alone.

    Args:
        path: a file of torch, such as ``fasterrcnn_resnet50_fpn_coco-258fb6c6.pth``.
        num_classes: that must be left, without the background; any by default.

    Raises:
        UserError: another file, or another number of classes.
    """
    state = load_state(path, ())
    key = f"{PREDICTOR}cls_score.bias"
    if key not in state:
        raise UserError(
            f"checkpoint: found no {key} in {path}, allowed is a Faster R-CNN of torchvision's, or "
            "a .pkl file of detectron2's zoo"
        )
    if len(state[key]) == COCO_ROWS[-1] + 1:
        for name in ("cls_score", "bbox_pred"):
            for kind in ("weight", "bias"):
                of_class = state[f"{PREDICTOR}{name}.{kind}"].unflatten(0, (COCO_ROWS[-1] + 1, -1))
                state[f"{PREDICTOR}{name}.{kind}"] = of_class[COCO_ROWS].flatten(0, 1)
    classes = len(state[key]) - 1
    if num_classes is not None and classes != num_classes:
        raise UserError(
            f"checkpoint: found {classes} classes in {path}, allowed are {num_classes} "
            "(num_classes)"
        )
    return state


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(
            f"checkpoint: found {path} ({error.strerror}), allowed is a file of weights"
        ) from error
    return digest.hexdigest()


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, name: str) -> None:
    wrong = [key for key, x in state.items() if not x.isfinite().all()]
    if wrong:
        raise UserError(f"checkpoint: found NaN or infinity in {listed(wrong)} of {path}")
    own = model.state_dict()
    shapes = [key for key, x in state.items() if key in own and own[key].shape != x.shape]
    fitting = {key: x for key, x in state.items() if key not in shapes}
    missing, unexpected = model.load_state_dict(fitting, strict=False)  # renames old names, too
    missing = [key for key in missing if key not in shapes]
    problems = (("no ", missing), ("unknown ", unexpected), ("another shape of ", shapes))
    found = "; ".join(kind + listed(keys) for kind, keys in problems if keys)
    if found:
        raise UserError(f"checkpoint: found {found} in {path}, allowed are the weights of {name}")
