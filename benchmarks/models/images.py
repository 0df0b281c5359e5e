"""Vision models of Hugging Face with random weights: classification, segmentation, detection, masked and paired images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .language import own_loss

SIDE, BATCH = 64, 4


def images(side: int = SIDE, batch: int = BATCH) -> torch.Tensor:
    return torch.randn(batch, 3, side, side)


def convnextv2() -> tuple[nn.Module, Any, Any]:
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    config = ConvNextV2Config(hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 4, 2], num_labels=10)
    batch = {"pixel_values": images(), "labels": torch.arange(BATCH)}
    return ConvNextV2ForImageClassification(config), own_loss, batch


def segformer() -> tuple[nn.Module, Any, Any]:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(hidden_sizes=[16, 32, 64, 128], decoder_hidden_size=64, num_labels=5)
    batch = {"pixel_values": images(), "labels": torch.randint(0, 5, (BATCH, SIDE, SIDE))}
    return SegformerForSemanticSegmentation(config), own_loss, batch


def vit_mae() -> tuple[nn.Module, Any, Any]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    decoder = {"decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 256}
    config = ViTMAEConfig(image_size=SIDE, patch_size=8, decoder_num_attention_heads=4, **sizes, **decoder)
    return ViTMAEForPreTraining(config), own_loss, {"pixel_values": images()}


def detr() -> tuple[nn.Module, Any, Any]:
    """Return DETR with a small ResNet; the assignment of boxes to queries runs in SciPy, as in the original."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], out_features=["stage4"],
        layer_type="basic",
    )  # fmt: skip
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128}
    sizes |= {"decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        num_queries=20, num_labels=5, **sizes,
    )  # fmt: skip
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]])
    labels = [{"class_labels": torch.tensor([1, 3]), "boxes": boxes.clone()} for _ in range(BATCH)]
    return DetrForObjectDetection(config), own_loss, {"pixel_values": images(2 * SIDE), "labels": labels}


def clip() -> tuple[nn.Module, Any, Any]:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 1000, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    vision = sizes | {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    tokens = torch.randint(3, 1000, (2 * BATCH, 16))
    tokens[:, -1] = 2
    batch = {"input_ids": tokens, "pixel_values": images(batch=2 * BATCH)}
    return CLIPModel(config), contrastive, batch


def contrastive(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, return_loss=True).loss


MODELS = {
    "convnextv2": convnextv2,
    "segformer": segformer,
    "vit-mae": vit_mae,
    "detr": detr,
    "clip": clip,
}
