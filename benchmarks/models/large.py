"""Language models of the sizes that fill a GPU: GPT-2 medium and Llama 1B, in plain PyTorch, with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from .language import GPT, next_token


@dataclass(frozen=True)
class Shape:
    vocabulary: int
    layers: int
    width: int
    heads: int
    tokens: int
    keys: int = 0
    """Heads of keys and values; 0: a GPT-2, whose queries, keys and values have as many."""
    inner: int = 0
    """Width of the gated layer."""


SHAPES = {
    "gpt2-medium": Shape(50304, 24, 1024, 16, 1024),
    "llama-1b": Shape(128256, 16, 2048, 32, 2048, 8, 8192),
}
TINY = {"gpt2-medium": Shape(61, 2, 16, 2, 12), "llama-1b": Shape(61, 2, 16, 4, 12, 2, 32)}
"""The same in small, to try the benchmark out on a CPU."""


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions, and a gated layer; ``norm`` and ``gated`` are a peer's or torch's."""

    def __init__(self, shape: Shape, norm: type[nn.Module], gated: object) -> None:
        super().__init__()
        self.size = shape.width // shape.heads
        self.before, self.after = norm(shape.width), norm(shape.width)
        width, narrow = shape.width, shape.keys * self.size
        self.q, self.out = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, narrow, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, shape.inner, bias=False) for _ in range(2))
        self.down, self.gated = nn.Linear(shape.inner, width, bias=False), gated

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        seen = self.before(x)
        q, k, v = (
            part(seen).unflatten(2, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        q, k = (turned(part, cos, sin) for part in (q, k))
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        seen = self.after(x)
        return x + self.down(self.gated(self.gate(seen), self.up(seen)))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    return (x * cos + torch.cat((-other, one), -1) * sin).to(x.dtype)


class Llama(nn.Module):
    """Llama from tokens (batch, positions) to features, which ``head`` turns into logits."""

    def __init__(self, shape: Shape, norm: type[nn.Module] = nn.RMSNorm, gated: object = swiglu) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(LlamaBlock(shape, norm, gated) for _ in range(shape.layers))
        self.norm, self.head = norm(shape.width), nn.Linear(shape.width, shape.vocabulary, bias=False)
        size = shape.width // shape.heads
        rates = 500000.0 ** -(torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(shape.tokens).float(), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.norm(x)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(tokens))


def large(shape: Shape) -> nn.Module:
    if shape.inner:
        return Llama(shape)
    return GPT(shape.vocabulary, shape.layers, shape.width, shape.heads, shape.tokens)


def by_liger(shape: Shape) -> tuple[nn.Module, object]:
    """Return a Llama with Liger Kernel's norm, gated layer and fused loss, and its ``loss(model, batch)``."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerRMSNorm

    fused = LigerFusedLinearCrossEntropyLoss()

    def loss(model: Llama, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        features = model.features(batch[0]).flatten(0, 1)
        return fused(model.head.weight, features, batch[1].flatten())

    return Llama(shape, LigerRMSNorm, LigerSiLUMulFunction.apply), loss


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return next_token(model(batch[0]), batch[1])


def check_liger(device: torch.device) -> None:
    """Verify that Liger's model computes the same loss as ours; else its row means nothing."""
    torch.manual_seed(0)
    ours, (theirs, loss) = Llama(TINY["llama-1b"]).to(device), by_liger(TINY["llama-1b"])
    theirs.to(device).load_state_dict(ours.state_dict())
    tokens = torch.randint(0, TINY["llama-1b"].vocabulary, (2, TINY["llama-1b"].tokens), device=device)
    expected, actual = loss_of(ours, (tokens, tokens)).item(), loss(theirs, (tokens, tokens)).item()
    if not abs(actual - expected) < 1e-3 * expected:
        raise RuntimeError(f"Liger's model has the loss {actual}, ours with the same weights {expected}")
