"""Each builder has a config of its name, which builds it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from eakd.models.inference import count_parameters

from .helpers import ZOO

TIMM = ("vit_b", "deit_b", "swin_b")
CONFIGS = Path(__file__).parents[2] / "configs" / "model"


def test_every_architecture_has_one() -> None:
    files = {path.stem: path.read_text() for path in CONFIGS.glob("*.yaml")}
    # Networks of other domains are tested there.
    images = {name for name, text in files.items() if "_target_: eakd.models." in text}
    assert images == {*ZOO, *TIMM, "timm", "vit_tiny"}


@pytest.mark.parametrize("name", [*ZOO, "timm"])
def test_builds_what_it_says(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    data = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    config = OmegaConf.create({"data": data, "student": OmegaConf.create(text)}).student
    arguments = {key: value for key, value in config.items() if key not in ("name", "checkpoint")}
    model = instantiate(arguments, num_classes=7)
    if name == "timm":
        assert model.architecture == config.name == "vit_tiny_patch16_224"
        return
    assert config.name == name
    classes = 200 if name == "mobilenetv2_tiny" else 100
    width = [*model.parameters()][-2].shape[1]  # the classifier's
    millions = (count_parameters(model) + (classes - 7) * (width + 1)) / 1e6
    stated = float(text.split(":")[1].split(" M parameters")[0])
    assert stated == pytest.approx(millions, abs=0.05 if millions > 10 else 0.005)


@pytest.mark.parametrize("name", TIMM)
def test_transformers_say_what_they_are(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    config = OmegaConf.create(text)
    assert config.name == name
    assert timm.is_model_pretrained(config.architecture)
    with torch.device("meta"):
        model = timm.create_model(config.architecture, num_classes=200)
    stated = float(text.split(":")[1].split(" M parameters")[0])
    assert stated == pytest.approx(count_parameters(model) / 1e6, abs=0.05)
