"""Networks that processes started by a test import: without batch norms, and broken in one rank."""

import os

from torch import nn

from eakd.errors import UserError
from eakd.models import resnet8


def without_batchnorm(num_classes) -> nn.Module:
    """ResNet-8 with group norms: what a sample gets does not depend on its batch."""
    model = resnet8(num_classes=num_classes)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(4, child.num_features))
    return model


def refused_by_the_second(num_classes) -> nn.Module:
    if os.environ["RANK"] == "1":
        raise UserError("depth: found 8, allowed is anything else")
    return resnet8(num_classes=num_classes)


def broken_in_the_second(num_classes) -> nn.Module:
    def stop(*_):
        raise RuntimeError("a bug in one process")

    model = resnet8(num_classes=num_classes)
    if os.environ["RANK"] == "1":
        model.register_forward_pre_hook(stop)
    return model
