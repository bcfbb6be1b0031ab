"""Any timm network, as teacher or student, in the contract of `eakd.models.base`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from eakd.errors import UserError, check_boolean, check_number, check_numbers, check_text
from eakd.models.base import Output, StagedModel


class TimmModel(StagedModel):
    """A timm network behind its own input size and normalisation; built by `timm_model`.

    Features are timm's intermediate maps; preactivations equal them. Networks that are a chain of
    modules (ResNet, ConvNeXt, EfficientNet, VGG, …) also run stage by stage; others, such as
    transformers with a class token beside the map, raise `UserError` there.

    Args:
        model: the timm network.
        architecture: its name, for messages.
        input_size: side in pixels to which images are resized.
        bicubic: resize bicubically rather than bilinearly.
        scale, shift: ``image * scale + shift`` per channel turns the data set's normalisation into
            the network's.
        feature_indices: which of timm's intermediate maps to return; None for all.
        arguments: what ``timm.create_model`` was called with, besides the name.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: str,
        input_size: int,
        bicubic: bool,
        scale: Tensor,
        shift: Tensor,
        feature_indices: Sequence[int] | None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.arguments = dict(arguments or {})
        self.architecture = architecture
        self.input_size = input_size
        self.interpolation = "bicubic" if bicubic else "bilinear"
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)
        self.feature_indices = None if feature_indices is None else list(feature_indices)
        self._chain: list[list[str]] | None = None

    @property
    def num_stages(self) -> int:
        """The number of feature maps."""
        if self.feature_indices is not None:
            return len(self.feature_indices)
        return len(getattr(self.model, "feature_info", ()))

    @property
    def num_features(self) -> int:
        """The number of channels of ``pooled``."""
        # timm's own `num_features` doesn't know the layers between the map and the classifier
        # (MobileNetV3, VGG), and its `head_hidden_size` not that two pools may be concatenated.
        classifier = self.model.get_classifier()
        if isinstance(classifier, nn.Linear | nn.Conv2d):
            return classifier.weight.shape[1]
        return self.model.head_hidden_size

    def adapt(self, images: Tensor) -> Tensor:
        """Renormalise and resize ``(N, 3, H, W)`` images as the network expects them."""
        # Both steps are linear and the resize keeps constants, so their order is free: the smaller
        # map first.
        images = images * self.scale + self.shift
        size = (self.input_size, self.input_size)
        if images.shape[2:] == size:
            return images
        return F.interpolate(images, size, mode=self.interpolation, antialias=True)

    def forward(self, images: Tensor, features: bool = True) -> Output:
        """Classify images ``(N, 3, H, W)`` of the data set's size and normalisation.

        Raises:
            UserError: ``features`` are wanted and timm offers none for this architecture.
        """
        images, maps = self.adapt(images), []
        if features:
            x, maps = self._intermediates(images)
        else:
            x = self.model.forward_features(images)
        logits, pooled = self._classify(x)
        return Output(logits, maps, list(maps), pooled)

    def forward_stage(
        self, index: int, x: Tensor, preactivation: bool = False
    ) -> tuple[Tensor, None]:
        """Run stage ``index``; stage 0 takes images as `forward` does.

        Raises:
            UserError: the architecture is no chain of modules.
        """
        return self._run(index, self.adapt(x) if index == 0 else x), None

    def head(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._classify(self._run(-1, x))

    def _run(self, index: int, x: Tensor) -> Tensor:
        if self._chain is None:
            self._chain = self._find_chain()
        for name in self._chain[index]:
            x = self.model.get_submodule(name)(x)
        return x

    def _intermediates(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        if not hasattr(self.model, "forward_intermediates"):
            raise UserError(
                f"{self.architecture}: timm offers no intermediate features for it, so it works "
                "only with methods on logits"
            )
        return self.model.forward_intermediates(
            images, indices=self.feature_indices, output_fmt="NCHW"
        )

    def _classify(self, x: Any) -> tuple[Tensor, Tensor]:
        """``(logits, pooled)``, outside autocast as in `eakd.models.base.classify`."""
        dtype = self.scale.dtype
        with torch.autocast(self.scale.device.type, enabled=False):
            x = tree_map(lambda part: part.to(dtype), x)  # some architectures keep several maps
            pooled = self.model.forward_head(x, pre_logits=True)
            classifier = self.model.get_classifier()
            # Dropout may sit between the two, and distilled transformers have two classifiers.
            plain = isinstance(classifier, nn.Linear) and not getattr(self.model, "drop_rate", 0)
            logits = classifier(pooled) if plain else self.model.forward_head(x)
        return logits, pooled.flatten(1)

    @torch.no_grad()
    def _find_chain(self) -> list[list[str]]:
        """The names of the modules of each stage, and last of those between features and pool.

        Tried, not assumed: the network's children run one after the other on one image and must
        meet each intermediate map in turn, and the final one.
        """
        names = []
        for name, child in self.model.named_children():
            inner = child.named_children() if isinstance(child, nn.Sequential) else ()
            names += [f"{name}.{part}" for part, _ in inner] or [name]
        training = {module for module in self.model.modules() if module.training}
        self.model.eval()
        try:
            shape = (1, self.scale.shape[1], self.input_size, self.input_size)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.scale)
            with torch.autocast(x.device.type, enabled=False):
                final, maps = self._intermediates(x)
                chain: list[list[str]] = [[]]
                for name in names:
                    x = self.model.get_submodule(name)(x)
                    chain[-1].append(name)
                    if len(chain) <= len(maps) and _same(x, maps[len(chain) - 1]):
                        chain.append([])
                    if len(chain) > len(maps) and _same(x, final):
                        return chain
        except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
            pass  # a child that cannot simply be called: no chain
        finally:
            for module in training:
                module.training = True
        raise UserError(
            f"{self.architecture}: does not run stage by stage, as this method needs; allowed are "
            "plain convolutional networks such as resnet18 or convnext_tiny"
        )


def _same(a: Any, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return False
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max())


def timm_model(
    architecture: str,
    num_classes: int = 100,
    pretrained: bool = False,
    data_mean: Sequence[float] | None = None,
    data_std: Sequence[float] | None = None,
    input_size: int | None = None,
    feature_indices: Sequence[int] | None = None,
    **timm_args: Any,
) -> TimmModel:
    """A timm network that takes the data set's own images, whatever it was trained on.

    Args:
        architecture: timm's name, e.g. ``vit_tiny_patch16_224`` or ``resnet18.a1_in1k``.
        num_classes: number of classes; the classifier is new if the trained one has others.
        pretrained: fetch timm's trained weights.
        data_mean: per channel in 0…1, with which the images arrive normalised. None if they arrive
            in the network's own normalisation.
        data_std: likewise.
        input_size: side in pixels; None for the size the network was made for.
        feature_indices: which of timm's intermediate maps to return (transformers have one per
            block); None for all.
        **timm_args: further arguments of ``timm.create_model``.

    Raises:
        UserError: unknown name (with the nearest ones), or weights that cannot be had.
    """
    import timm
    from timm.data import resolve_model_data_config

    check_text("architecture", architecture)
    if ":" not in architecture and not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise UserError(f"architecture: found {architecture!r}, allowed is a timm model{hint}")
    if (data_mean is None) != (data_std is None):
        raise UserError("data_mean, data_std: found one of them, allowed is both or none")
    if data_mean is not None and data_std is not None:
        check_numbers("data_mean", data_mean, 3)
        check_numbers("data_std", data_std, 3, above=0)
    check_boolean("pretrained", pretrained)
    if input_size is not None:
        check_number("input_size", input_size, at_least=1, integer=True)
    if feature_indices is not None:
        check_numbers("feature_indices", feature_indices, integer=True)
    arguments = {"pretrained": pretrained, "num_classes": num_classes, **timm_args}
    try:
        model, arguments = _create(timm.create_model, architecture, arguments, input_size)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{architecture}: timm cannot create it ({reason})") from error
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key], dtype=torch.float32) for key in ("mean", "std"))
    scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
    if data_mean is not None and data_std is not None:
        scale = torch.tensor(list(data_std)) / std
        shift = (torch.tensor(list(data_mean)) - mean) / std
    return TimmModel(
        model,
        architecture,
        input_size or config["input_size"][-1],
        config["interpolation"] != "bilinear",
        scale,
        shift,
        feature_indices,
        arguments,
    )


def _create(
    create: Any, architecture: str, arguments: dict[str, Any], input_size: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network, and with what it was created.

    Transformers must know another input size; convolutional networks know no such argument.
    """
    if input_size is not None:
        sized = {"img_size": input_size, **arguments}
        try:
            return create(architecture, **sized), sized
        except TypeError:
            pass
    return create(architecture, **arguments), arguments
