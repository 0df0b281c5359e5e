"""torchvision's classifiers at 64x64, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SIDE, BATCH = 64, 16
NAMES = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "convnext_tiny",
)


def classifier(name: str) -> tuple[nn.Module, Any, Any]:
    import torchvision

    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    return model, nn.CrossEntropyLoss(), (torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % 10)


def vit_tiny() -> tuple[nn.Module, Any, Any]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(SIDE, 8, 12, 3, 192, 768, num_classes=10)
    return model, nn.CrossEntropyLoss(), (torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % 10)


def swin() -> tuple[nn.Module, Any, Any]:
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 48, [2, 2], [2, 4], [7, 7], num_classes=10, stochastic_depth_prob=0.0)
    return model, nn.CrossEntropyLoss(), (torch.randn(2, 3, SIDE, SIDE), torch.arange(2))


def vision_models() -> dict[str, Callable[[], tuple[nn.Module, Any, Any]]]:
    return {**{name: functools.partial(classifier, name) for name in NAMES}, "vit_tiny": vit_tiny}
