"""Speech models of Hugging Face with random weights: Wav2Vec2 with CTC and masked frames, and Whisper."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .language import own_loss

BATCH = 2


def wav2vec2() -> tuple[nn.Module, Any, Any]:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    config = Wav2Vec2Config(
        vocab_size=32,
        conv_dim=(64,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.0,
        **sizes,
    )
    batch = {"input_values": torch.randn(BATCH, 8000), "labels": torch.randint(1, 32, (BATCH, 6))}
    return Wav2Vec2ForCTC(config), own_loss, batch


def whisper() -> tuple[nn.Module, Any, Any]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    sizes = {"d_model": 128, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "num_mel_bins": 40}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(
        vocab_size=2048, max_source_positions=100, max_target_positions=32, **layers, **sizes, **special,
    )  # fmt: skip
    batch = {"input_features": torch.randn(BATCH, 40, 200), "labels": torch.randint(3, 2048, (BATCH, 24))}
    return WhisperForConditionalGeneration(config), own_loss, batch


MODELS = {"wav2vec2": wav2vec2, "whisper": whisper}
