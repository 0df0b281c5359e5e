"""Diffusion model in plain PyTorch: a U-Net with time embedding and attention that predicts the noise of an image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import group_norm, mse_loss, scaled_dot_product_attention, silu

SIDE, BATCH, WIDTH, STEPS = 32, 4, 32, 1000


class Residual(nn.Module):
    """Two convolutions with a shift by the time, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.first, self.second = (nn.Conv2d(size, outputs, 3, padding=1) for size in (inputs, outputs))
        self.time = nn.Linear(width, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.first(silu(self.before(x))) + self.time(silu(time))[:, :, None, None]
        return self.shortcut(x) + self.second(self.dropout(silu(self.between(hidden))))


class Attention(nn.Module):
    """Attention over the places of an image."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(8, channels)
        self.mix, self.out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = group_norm(x, 8, self.norm.weight, self.norm.bias).flatten(2)
        parts = self.mix(flat).unflatten(1, (3, self.heads, -1)).permute(1, 0, 2, 4, 3)
        seen = scaled_dot_product_attention(*parts).transpose(2, 3).flatten(1, 2)
        return x + self.out(seen).view_as(x)


class UNet(nn.Module):
    """U-Net of three resolutions; ``forward`` takes noisy images and their times."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        sizes, time = [width, 2 * width, 4 * width], 4 * width
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.inside = nn.Conv2d(3, width, 3, padding=1)
        inputs = [width, *sizes[:-1]]
        self.down = nn.ModuleList(Residual(i, o, time) for i, o in zip(inputs, sizes, strict=True))
        self.smaller = nn.ModuleList(nn.Conv2d(size, size, 3, stride=2, padding=1) for size in sizes[:-1])
        self.middle, self.attention = Residual(sizes[-1], sizes[-1], time), Attention(sizes[-1])
        outputs = [width, *sizes[:-1]]
        self.up = nn.ModuleList(Residual(2 * s, o, time) for s, o in zip(sizes, outputs, strict=True))
        self.larger = nn.ModuleList(nn.Conv2d(size, size, 3, padding=1) for size in sizes[:-1])
        self.norm, self.outside = nn.GroupNorm(8, width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        half = self.time[0].in_features // 2
        rates = torch.exp(-math.log(1e4) / half * torch.arange(half, device=x.device))
        angles = times[:, None] * rates
        time = self.time(torch.cat((angles.sin(), angles.cos()), 1))
        x, kept = self.inside(x), []
        for level, block in enumerate(self.down):
            x = block(x, time)
            kept.append(x)
            if level < len(self.smaller):
                x = self.smaller[level](x)
        x = self.attention(self.middle(x, time))
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat((x, kept[level]), 1), time)
            if level:
                x = self.larger[level - 1](nn.functional.interpolate(x, scale_factor=2.0))
        return self.outside(silu(self.norm(x)))


def denoising(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the error of the noise that the model sees in images at random times of the process."""
    images, times = batch["images"], batch["times"]
    noise = torch.randn_like(images)
    kept = torch.cos(times / STEPS * math.pi / 2)[:, None, None, None]
    return mse_loss(model(kept * images + (1 - kept**2).sqrt() * noise, times), noise)


def unet2d() -> tuple[nn.Module, Any, Any]:
    batch = {"images": torch.rand(BATCH, 3, SIDE, SIDE), "times": torch.randint(0, STEPS, (BATCH,)).float()}
    return UNet(), denoising, batch


MODELS = {"unet2d": unet2d}
