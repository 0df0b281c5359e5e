"""torchvision's classifiers at 64x64, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

SIDE = 64
BATCHES = {
    "resnet18": 8,
    "resnet50": 4,
    "resnext50_32x4d": 4,
    "densenet121": 4,
    "efficientnet_b0": 8,
    "mobilenet_v2": 12,
    "mobilenet_v3_small": 16,
    "mnasnet1_0": 12,
    "regnet_y_400mf": 12,
    "shufflenet_v2_x1_0": 16,
    "squeezenet1_1": 16,
    "convnext_tiny": 4,
}
"""Classifier -> images in its batch, so that an eager step on one thread takes at most about 300 ms."""


def images(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, SIDE, SIDE), torch.arange(batch) % 10


def classifier(name: str) -> tuple[nn.Module, Any, Any]:
    import torchvision

    model = getattr(torchvision.models, name)(weights=None, num_classes=10)
    return model, nn.CrossEntropyLoss(), images(BATCHES[name])


def vit_tiny() -> tuple[nn.Module, Any, Any]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIDE, 8, 12, 3, 192, 768, num_classes=10), nn.CrossEntropyLoss(), images(5)


def swin() -> tuple[nn.Module, Any, Any]:
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer([4, 4], 48, [2, 2], [2, 4], [7, 7], num_classes=10, stochastic_depth_prob=0.0)
    return model, nn.CrossEntropyLoss(), images(8)


def vision_models() -> dict[str, Callable[[], tuple[nn.Module, Any, Any]]]:
    classifiers = {name: functools.partial(classifier, name) for name in BATCHES}
    return {**classifiers, "vit_tiny": vit_tiny, "swin_t": swin}
