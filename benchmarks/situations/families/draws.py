"""Situations with random draws: of modules, functions, own generators, NumPy and Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from ..parts import (
    CLASSES,
    Classifier,
    F,
    Transformer,
    adamw,
    mlp,
    sequences,
    tokens,
    train,
)
from ..situation import Run, situation


def trained(run: Run, net: nn.Module, batches: list[Any] | None = None, loss: Any = None) -> nn.Module:
    """Train a model on all batches, and compare the next random numbers."""
    model = train(run, net, batches, loss, adamw)
    run.keep(torch_draw=torch.rand(2), numpy_draw=float(np.random.rand()), python_draw=random.random())
    return model


@situation()
def dropout_module(run: Run) -> None:
    """Train a model with ``nn.Dropout`` and ``nn.AlphaDropout``."""
    trained(run, Classifier(nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 16), nn.AlphaDropout(0.2))))


@situation()
def dropout_function(run: Run) -> None:
    """Train a model that calls ``F.dropout``."""

    class Dropped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.3, self.training)

    trained(run, Classifier(Dropped()))


@situation(slow=True)
def attention_dropout(run: Run) -> None:
    """Train ``nn.TransformerEncoderLayer`` with its dropout."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x).mean(1))

    trained(run, Pooled(), sequences())


@situation()
def rrelu(run: Run) -> None:
    """Train a model with ``nn.RReLU``, which draws slopes."""
    trained(run, Classifier(nn.RReLU()))


class VAE(nn.Module):
    """Variational autoencoder that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).mean()
        return (self.decoder(z) - x).square().mean() + 0.1 * divergence


def own(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss that the model computes from the inputs."""
    return model(batch[0])


@situation()
def vae_randn(run: Run) -> None:
    """Train a variational autoencoder, which draws ``randn_like``."""
    trained(run, VAE(), loss=own)


@situation()
def gumbel_softmax(run: Run) -> None:
    """Train a model that draws discrete codes by ``F.gumbel_softmax``."""

    class Codes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.gumbel_softmax(x.unflatten(1, (4, 4)), tau=0.7, hard=True).flatten(1)

    trained(run, Classifier(Codes()))


@situation(slow=True)
def masked_autoencoder(run: Run) -> None:
    """Train on a random half of the positions, drawn by ``torch.rand`` and ``argsort``."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(inputs=8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = torch.rand(x.shape[:2]).argsort(1)[:, : x.shape[1] // 2]
            return self.net(x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])).mean(1))

    trained(run, Masked(), sequences())


@situation()
def diffusion(run: Run) -> None:
    """Train a denoiser whose loss draws times and noise."""

    def denoise(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0]
        times = torch.randint(0, 10, (len(x), 1))
        noise = torch.randn_like(x)
        share = times / 10
        return F.mse_loss(model((1 - share).sqrt() * x + share.sqrt() * noise), noise)

    trained(run, mlp(classes=8), loss=denoise)


@situation(slow=True)
def recurrent_dropout(run: Run) -> None:
    """Train a GRU of two layers with dropout between them."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(8, 12, 2, batch_first=True, dropout=0.3), nn.Linear(12, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    train(run, Recurrent(), sequences())


@situation(slow=True)
def token_dropout(run: Run) -> None:
    """Train a transformer that replaces random tokens, with the loss head's rewrite."""

    class Words(Transformer):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            dropped = torch.rand(tokens.shape) < 0.1
            return super().forward(tokens.masked_fill(dropped, 0))

    trained(run, Words(), tokens())
