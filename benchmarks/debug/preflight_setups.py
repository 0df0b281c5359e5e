"""Healthy setups of a training for the benchmark of ``preflight``: model, batch, loss and optimizer of drawn sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

F = nn.functional


@dataclass
class Drawn:
    """Setup of a training, which faults change before it is checked."""

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    target: torch.Tensor
    criterion: Callable[[Any, torch.Tensor], torch.Tensor]
    optimizer: Callable[[Any], Any]
    held: torch.optim.Optimizer | None = None
    """Optimizer that a fault has made already."""
    expected: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the check, which the peer has as well."""
    step: Callable[[Any, Any, Any], Any] | None = None
    """Training step, which the peer cannot look at."""

    def made(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.held or self.optimizer([p for p in self.model.parameters() if p.requires_grad])


class Called(nn.Module):
    """Module of named parts and a function of the parts and the inputs."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.run = run

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.run(self, *inputs)


def _body(rng: random.Random, a: int, b: int) -> nn.Sequential:
    width, act = rng.choice((32, 48, 64)), rng.choice((nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh))
    layers: list[nn.Module] = [nn.Linear(a, width), act()]
    for _ in range(rng.choice((0, 1, 2))):
        layers += [nn.Linear(width, width), act()]
    return nn.Sequential(*layers, nn.Linear(width, b))


def _zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _classes(rng: random.Random, count: int) -> tuple[int, torch.Tensor]:
    classes = rng.choice((3, 5, 10))
    return classes, torch.randperm(count) % classes


def vectors(rng: random.Random) -> Any:
    classes, y = _classes(rng, 32)
    return _body(rng, 20, classes), (torch.randn(32, 20),), y, F.cross_entropy


def regression(rng: random.Random) -> Any:
    x = torch.randn(32, 12)
    return _body(rng, 12, 1), (x,), x[:, :1] - x[:, 1:2] ** 2, rng.choice((F.mse_loss, F.smooth_l1_loss))


def labels(rng: random.Random) -> Any:
    return (
        _body(rng, 16, 4),
        (torch.randn(24, 16),),
        (torch.rand(24, 4) < 0.4).float(),
        F.binary_cross_entropy_with_logits,
    )


def zero_head(rng: random.Random) -> Any:
    classes, y = _classes(rng, 32)
    model = nn.Sequential(nn.Linear(20, 32), nn.GELU(), _zeros(nn.Linear(32, classes)))
    return model, (torch.randn(32, 20),), y, F.cross_entropy


def images(rng: random.Random) -> Any:
    classes, y = _classes(rng, 24)
    width = rng.choice((8, 12))
    norm = rng.choice((nn.BatchNorm2d(width), nn.GroupNorm(2, width), nn.Identity()))
    model = nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)),
    )
    x = torch.randn(24, 3, 12, 12)
    with torch.no_grad():
        model(x)
    return model, (x,), y, F.cross_entropy


def segmentation(rng: random.Random) -> Any:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1))
    x = torch.randn(8, 3, 8, 8)
    return model, (x,), x[:, :3].argmax(1), F.cross_entropy


def recurrent(rng: random.Random) -> Any:
    classes, y = _classes(rng, 24)
    layer = rng.choice((nn.GRU, nn.LSTM))(6, 32, batch_first=True)
    return (
        Called(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=layer, head=nn.Linear(32, classes)),
        (torch.randn(24, 9, 6),),
        y,
        F.cross_entropy,
    )


def attention(rng: random.Random) -> Any:
    classes, y = _classes(rng, 16)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=rng.random() < 0.5)
    ids, mask = torch.randint(1, 30, (16, 10)), torch.ones(16, 10, dtype=torch.bool)
    mask[::2, 6:] = False

    def run(m: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = m.layer(m.embed(ids), src_key_padding_mask=~mask)
        weight = mask.unsqueeze(-1).float()
        return m.head((x * weight).sum(1) / weight.sum(1))

    model = Called(run, embed=nn.Embedding(30, 16), layer=layer, head=nn.Linear(16, classes))
    return model, (ids, mask), y, F.cross_entropy


def language(rng: random.Random) -> Any:
    ids = torch.randint(40, (8, 13))

    def run(m: Any, ids: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return m.head(m.layer(m.embed(ids) + m.place.weight, src_mask=mask, is_causal=True)).transpose(1, 2)

    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
    model = Called(
        run, embed=nn.Embedding(40, 32), place=nn.Embedding(12, 32), layer=layer, head=nn.Linear(32, 40)
    )
    if rng.random() < 0.5:
        model.head.weight = model.embed.weight  # tied
        nn.init.normal_(model.embed.weight, std=0.02)
    return model, (ids[:, :-1],), ids[:, 1:], F.cross_entropy


def denoiser(rng: random.Random) -> Any:
    model = Called(
        lambda m, x, t: m.out(F.silu(m.data(x) + m.time(t))),
        **{"data": nn.Linear(16, 64), "time": nn.Embedding(10, 64), "out": _zeros(nn.Linear(64, 16))},
    )
    return model, (torch.randn(24, 16), torch.randint(10, (24,))), torch.randn(24, 16), F.mse_loss


def autoencoder(rng: random.Random) -> Any:
    x = torch.randn(32, 4) @ torch.randn(4, 24) / 2
    return nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)), (x,), x, F.mse_loss


def residual(rng: random.Random) -> Any:
    classes, y = _classes(rng, 32)

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.stem(x)
        for block in m.blocks:
            if not m.training or torch.rand(()) > 0.3:  # stochastic depth
                x = x + m.scale * block(x)
        return m.head(x)

    blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU()) for _ in range(3))
    model = Called(run, stem=nn.Linear(20, 32), blocks=blocks, head=nn.Linear(32, classes))
    model.scale = nn.Parameter(torch.full((32,), 0.1))
    return model, (torch.randn(32, 20),), y, F.cross_entropy


def table(rng: random.Random) -> Any:
    numbers, kinds = torch.randn(32, 5), torch.randint(6, (32, 3))
    run = lambda m, x, k: m.body(torch.cat([x, m.embed(k).flatten(1)], 1))  # noqa: E731
    model = Called(run, embed=nn.Embedding(6, 4), body=_body(rng, 17, 2))
    return model, (numbers, kinds), (numbers[:, 0] > 0).long(), F.cross_entropy


def frozen_trunk(rng: random.Random) -> Any:
    classes, y = _classes(rng, 32)
    model = nn.Sequential(_body(rng, 20, 32), nn.ReLU(), nn.Linear(32, classes))
    model[0].requires_grad_(False)
    return model, (torch.randn(32, 20),), y, F.cross_entropy


SETUPS: dict[str, Callable[[random.Random], Any]] = {
    made.__name__: made
    for made in (
        *(vectors, regression, labels, zero_head, images, segmentation, recurrent, attention),
        *(language, denoiser, autoencoder, residual, table, frozen_trunk),
    )
}
OPTIMIZERS: tuple[tuple[Any, tuple[float, float]], ...] = (
    (torch.optim.AdamW, (1e-3, 5e-3)),
    (torch.optim.Adam, (1e-3, 5e-3)),
    (torch.optim.RMSprop, (5e-4, 2e-3)),
    (lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9), (0.02, 0.1)),
)
"""Optimizers, with the range of their learning rates."""


def drawn(name: str, seed: int) -> Drawn:
    """Return the healthy setup of this name, with sizes, values and the optimizer drawn by the seed."""
    rng = random.Random(f"{name} {seed}")
    torch.manual_seed(rng.getrandbits(32))
    model, inputs, target, criterion = SETUPS[name](rng)
    make, (low, high) = rng.choice(OPTIMIZERS)
    rate = low * (high / low) ** rng.random()
    return Drawn(model.train(), inputs, target, criterion, lambda parameters: make(parameters, lr=rate))
