"""Task of a byte-level transformer language model on the standard library's source, tested on held-out modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from .task import Data, Pair, Samples, Task
from .text import text

WINDOW, TRAIN, HELD_OUT = 64, 4_000, 1_000
WIDTH, LAYERS, HEADS = 96, 2, 4


def windows(part: str, count: int) -> Pair:
    """Return ``count`` windows at random places that do not overlap: 64 bytes, and the byte that follows each of them."""
    source = text(part)
    places = np.random.default_rng(0).permutation(len(source) // (WINDOW + 1))[:count] * (WINDOW + 1)
    chosen = torch.tensor(np.stack([source[at : at + WINDOW + 1] for at in places])).long()
    return chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous()


def data() -> Data:
    return Data(Samples(*windows("train", TRAIN)), windows("valid", HELD_OUT), windows("test", HELD_OUT))


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.mix(self.before(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(gelu(self.up(self.after(x))))


class Transformer(nn.Module):
    """Transformer from bytes (batch, 64) to logits (batch, 64, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(WINDOW, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.bytes(x) + self.places))


def losses(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of each window's bytes, in nats."""
    return cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=5.6e-3)


def tasks() -> list[Task]:
    return [
        Task(
            name="bytes",
            data=data,
            model=Transformer,
            losses=losses,
            values=losses,
            metric="nats/byte",
            higher=False,
            optimizer=_optimizer,
            batch_size=16,
            epochs=8,
        )
    ]
