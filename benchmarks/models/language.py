"""Language models: a small GPT in plain PyTorch, and Hugging Face's decoders and encoders with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

BATCH, TOKENS = 8, 128
VOCABULARY = 4096
"""Of the models of Hugging Face."""


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.mix(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.after(x))))


class GPT(nn.Module):
    """GPT from tokens (batch, positions) to logits (batch, positions, vocabulary)."""

    def __init__(
        self, vocabulary: int, layers: int = 4, width: int = 256, heads: int = 4, tokens: int = TOKENS
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))


def next_token(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt(vocabulary: int, layers: int = 4) -> tuple[nn.Module, Any, Any]:
    tokens = torch.randint(0, vocabulary, (BATCH, TOKENS + 1))
    return GPT(vocabulary, layers), next_token, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def own_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss that a Hugging Face model computes itself."""
    return model(**batch).loss


def hugging_face(kind: str, **settings: Any) -> tuple[nn.Module, Any, Any]:
    """Return a language model by its class, with the configuration ``settings``."""
    import transformers

    config = getattr(transformers, f"{kind.split('For')[0].removesuffix('LMHeadModel')}Config")(**settings)
    model = getattr(transformers, kind)(config)
    tokens = torch.randint(0, config.vocab_size, (4, 64))
    labels = torch.arange(4) % 2 if kind.endswith("SequenceClassification") else tokens
    return model, own_loss, {"input_ids": tokens, "labels": labels}


def written_out(name: str) -> Callable[[], tuple[nn.Module, Any, Any]]:
    """Return the Hugging Face model ``name`` with its attention in plain PyTorch and without dropout."""
    made = language_models()[name]
    off = {"gpt2": ("attn_pdrop",), "llama": (), "bert": ("attention_probs_dropout_prob",)}[name]
    settings = made.keywords | {"attn_implementation": "eager"} | dict.fromkeys(off, 0.0)
    return functools.partial(hugging_face, *made.args, **settings)


def language_models() -> dict[str, functools.partial[tuple[nn.Module, Any, Any]]]:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "intermediate_size": 512}
    grouped = small | {"num_key_value_heads": 2, "head_dim": 32}
    experts = grouped | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    gpt2 = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 2, "n_head": 4}
    gpt2 |= {"bos_token_id": 0, "eos_token_id": 0}
    t5 = {"vocab_size": VOCABULARY, "d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 4}
    t5 |= {"decoder_start_token_id": 0}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    disentangled = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pad_token_id": 0}
    xlstm = {"vocab_size": VOCABULARY, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4}
    xlstm |= {"mode": "train", "chunk_size": 32, "use_cache": False}
    return {
        "gpt-8k": functools.partial(gpt, 8192),
        "gpt-32k": functools.partial(gpt, 32768),
        "gpt2": functools.partial(hugging_face, "GPT2LMHeadModel", **gpt2),
        "llama": functools.partial(hugging_face, "LlamaForCausalLM", num_key_value_heads=4, **small),
        "qwen2": functools.partial(hugging_face, "Qwen2ForCausalLM", num_key_value_heads=4, **small),
        "qwen3-moe": functools.partial(hugging_face, "Qwen3MoeForCausalLM", **experts),
        "xlstm": functools.partial(hugging_face, "xLSTMForCausalLM", **xlstm),
        "bert": functools.partial(hugging_face, "BertForSequenceClassification", **small),
        "bert-lm": functools.partial(hugging_face, "BertForMaskedLM", **small),
        "roberta": functools.partial(hugging_face, "RobertaForSequenceClassification", **small),
        "modernbert": functools.partial(hugging_face, "ModernBertForMaskedLM", **small, **ends),
        "deberta-v2": functools.partial(hugging_face, "DebertaV2ForMaskedLM", **small, **disentangled),
        "t5": functools.partial(hugging_face, "T5ForConditionalGeneration", **t5),
    }
