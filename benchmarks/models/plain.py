"""Models in plain PyTorch of families that are no vision or language model: graphs, policies, adapters, tables, series."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, relu

from .language import GPT, next_token


class GraphNetwork(nn.Module):
    """Graph network that adds up the messages of neighbours; ``forward`` takes features (nodes, width) and edges."""

    def __init__(self, width: int = 128, layers: int = 3, classes: int = 7) -> None:
        super().__init__()
        self.messages, self.own = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(layers)) for _ in range(2)
        )
        self.norms, self.head = (
            nn.ModuleList(nn.LayerNorm(width) for _ in range(layers)),
            nn.Linear(width, classes),
        )

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        degree = (
            torch.zeros_like(x[:, :1]).index_add(0, target, torch.ones_like(x[:, :1])[target]).clamp(min=1)
        )
        for message, own, norm in zip(self.messages, self.own, self.norms, strict=True):
            seen = torch.zeros_like(x).index_add(0, target, message(x)[source]) / degree
            x = x + relu(norm(own(x) + seen))
        return self.head(x)


def classified_nodes(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["x"], batch["edges"])
    return cross_entropy(logits[batch["train"]], batch["y"][batch["train"]])


def gnn() -> tuple[nn.Module, Any, Any]:
    nodes = 2000
    batch = {"x": torch.randn(nodes, 128), "edges": torch.randint(0, nodes, (2, 5 * nodes))}
    batch |= {"y": torch.randint(0, 7, (nodes,)), "train": torch.randperm(nodes)[: nodes // 2]}
    return GraphNetwork(), classified_nodes, batch


class ActorCritic(nn.Module):
    """Policy and value of an observation, from one body."""

    def __init__(self, inputs: int = 64, width: int = 256, actions: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.policy, self.value = nn.Linear(width, actions), nn.Linear(width, 1)

    def forward(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(seen)
        return self.policy(hidden), self.value(hidden).squeeze(-1)


def clipped_objective(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of proximal policy optimization: clipped surrogate, value and entropy."""
    logits, value = model(batch["seen"])
    log = logits.log_softmax(-1)
    ratio = (log.gather(1, batch["action"][:, None]).squeeze(1) - batch["old"]).exp()
    gain = batch["gain"] - batch["gain"].mean()
    gain = gain / (gain.std() + 1e-8)
    policy = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
    entropy = -(log.exp() * log).sum(-1).mean()
    return -policy + 0.5 * (value - batch["reward"]).square().mean() - 0.01 * entropy


def ppo() -> tuple[nn.Module, Any, Any]:
    size = 4096
    batch = {"seen": torch.randn(size, 64), "action": torch.randint(0, 8, (size,))}
    batch |= {"old": torch.full((size,), 1 / 8).log(), "gain": torch.randn(size), "reward": torch.randn(size)}
    return ActorCritic(), clipped_objective, batch


class LowRank(nn.Module):
    """Frozen linear layer with a trainable product of two thin matrices beside it; the second one begins at zero."""

    def __init__(self, layer: nn.Linear, rank: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), scale
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.scale * self.up(self.down(self.dropout(x)))


def lora() -> tuple[nn.Module, Any, Any]:
    """Return a frozen GPT whose attention has trainable adapters."""
    model = GPT(4096, 4, 192, 4, 64).requires_grad_(False)
    for block in model.blocks:
        block.mix, block.out = LowRank(block.mix), LowRank(block.out)
    tokens = torch.randint(0, 4096, (4, 65))
    return model, next_token, (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class Clicks(nn.Module):
    """Recommender: embeddings of categories and numbers, their products pair by pair, and a perceptron."""

    def __init__(self, sizes: tuple[int, ...], width: int = 32, numbers: int = 13) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.numbers = nn.Sequential(nn.Linear(numbers, 128), nn.ReLU(), nn.Linear(128, width), nn.ReLU())
        fields = len(sizes) + 1
        self.pairs = torch.triu_indices(fields, fields, 1).unbind()
        inner = width + fields * (fields - 1) // 2
        self.top = nn.Sequential(
            nn.Linear(inner, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)
        )

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        numbers, categories = self.numbers(batch[0]), batch[1].unbind(1)
        rows = [numbers, *(table(part) for table, part in zip(self.tables, categories, strict=True))]
        stacked = torch.stack(rows, 1)
        products = (stacked @ stacked.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat((numbers, products), 1)).squeeze(1)


def dlrm() -> tuple[nn.Module, Any, Any]:
    size, tables = 1024, (1000,) * 16
    categories = torch.randint(0, 1000, (size, len(tables)))
    return (
        Clicks(tables), binary_cross_entropy_with_logits,
        ((torch.randn(size, 13), categories), (torch.rand(size) < 0.3).float()),
    )  # fmt: skip


class Tagger(nn.Module):
    """Tagger of tokens by a bidirectional LSTM."""

    def __init__(self, vocabulary: int = 2000, width: int = 96, tags: int = 9) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 1, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0])


def lstm() -> tuple[nn.Module, Any, Any]:
    return Tagger(), next_token, (torch.randint(0, 2000, (16, 40)), torch.randint(0, 9, (16, 40)))


MODELS = {"gnn": gnn, "ppo": ppo, "lora": lora, "dlrm": dlrm, "lstm": lstm}
