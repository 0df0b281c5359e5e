"""Situations with weights that begin at zero, so that the first pass does not see what lies behind them."""

from __future__ import annotations

import torch
from torch import nn

from ..parts import CLASSES, Block, Classifier, F, adamw, cross_entropy, images, mlp, rows, train
from ..situation import Run, situation


class LoRA(nn.Module):
    """Frozen linear layer with a trained update of low rank, which begins at zero."""

    def __init__(self, inner: nn.Linear, rank: int = 3) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / 4)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 2 * F.dropout(x, 0.1, self.training) @ self.down.T @ self.up.T


@situation()
def lora(run: Run) -> None:
    """Train low-rank updates of frozen layers by AdamW over the weights that are trained."""
    model = run.model(Classifier(nn.Sequential(LoRA(nn.Linear(16, 16)), nn.GELU(), LoRA(nn.Linear(16, 16)))))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    step = run.step(model, cross_entropy(), optimizer)
    for batch in rows():
        step(batch)


@situation(slow=True)
def rezero(run: Run) -> None:
    """Train residual branches behind a factor that begins at zero."""

    class ReZero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.alpha = mlp(16, 16, 16), nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.alpha * self.branch(x)

    train(run, Classifier(nn.Sequential(ReZero(), ReZero())), lr=0.2)


@situation(slow=True)
def adaptive_norm_zero(run: Run) -> None:
    """Train a transformer block whose modulation begins at zero, as in DiT."""

    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.block = nn.LayerNorm(16, elementwise_affine=False), Block(16, 2)
            self.modulation, self.head = nn.Linear(16, 48), nn.Linear(16, CLASSES)
            self.inputs = nn.Linear(8, 16)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inputs(x).unflatten(0, (-1, 4))
            shift, scale, gate = self.modulation(F.silu(x.mean(1, keepdim=True))).chunk(3, -1)
            x = x + gate * self.block(self.norm(x) * (1 + scale) + shift)
            return self.head(x.flatten(0, 1))

    train(run, Modulated(), lr=0.2)


@situation(slow=True)
def zero_init_residual(run: Run) -> None:
    """Train residual blocks whose last BatchNorm begins at zero."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
            self.norm, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            nn.init.zeros_(self.last.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.silu(x + self.last(self.b(F.silu(self.norm(self.a(x))))))

    layers = [nn.Conv2d(3, 8, 3), Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    train(run, nn.Sequential(*layers, nn.Linear(8, CLASSES)), images(), lr=0.2)


@situation("channels_last")
def zero_convolution(run: Run) -> None:
    """Train a copy beside a frozen net behind convolutions that begin at zero, as in ControlNet."""

    class Controlled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Conv2d(3, 8, 3).requires_grad_(False)
            self.copy, self.zero = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.silu(self.frozen(x) + self.zero(F.gelu(self.copy(x)))).mean((2, 3)))

    train(run, Controlled(), images(), lr=0.2)


@situation(slow=True)
def zero_head(run: Run) -> None:
    """Train a model whose output layer begins at zero, by AdamW."""
    net = mlp()
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)
    train(run, net, make=adamw)


@situation(slow=True)
def layer_scale(run: Run) -> None:
    """Train branches behind a factor of 1e-6, as in ConvNeXt."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.scale = mlp(16, 16, 16), nn.Parameter(torch.full((16,), 1e-6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.scale * self.branch(x)

    train(run, Classifier(nn.Sequential(Scaled(), Scaled())), lr=0.2)


@situation()
def lazy_layers(run: Run) -> None:
    """Train layers whose weights have no shape before the first pass."""
    net = nn.Sequential(nn.LazyLinear(16), nn.GELU(), nn.LazyLinear(CLASSES))
    run.modules.append(net)
    step = run.step(net, cross_entropy(), torch.optim.SGD(net.parameters(), 0.1))
    for batch in rows():
        step(batch)
