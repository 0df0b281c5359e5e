"""Spectrograms of synthesised sounds: which waveform sounds in which envelope, at any pitch, in noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from .task import Data, Pair, Samples, Task, cached, strided_network

RATE, LENGTH = 4_000, 2_240
"""Samples a second, and samples of a sound: 0.56 s."""
SIDE, STORED = 32, 34
"""Frames (and frequencies) that a network sees, and frames that are stored: an access takes a random stretch of them."""
WAVES = ("sine", "square", "saw", "triangle", "pulse", "chord")
ENVELOPES = ("pluck", "swell", "tremolo", "vibrato")
CLASSES = len(WAVES) * len(ENVELOPES)
TRAIN, HELD_OUT = 24_000, 4_000


def sounds(labels: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Return sounds of the classes ``labels``, shape (n, 2240), with random pitch, phase, length and noise."""
    count = len(labels)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=draws)

    time = torch.arange(LENGTH) / RATE
    wave, envelope = labels[:, None] // len(ENVELOPES), labels[:, None] % len(ENVELOPES)
    pitch, slow = 110 * 2 ** uniform(0, 2), uniform(5, 9)
    swing = (envelope == 3) * uniform(0.01, 0.03) * (2 * math.pi * slow * time).sin() / slow * 3
    turns = pitch * (time + swing) + uniform(0, 1)
    phase = turns % 1
    waves = (
        (2 * math.pi * turns).sin(),
        (phase < 0.5).float() * 2 - 1,
        2 * phase - 1,
        4 * (phase - 0.5).abs() - 1,
        (phase < 0.15).float() * 2 - 1,
        ((2 * math.pi * turns).sin() + (3 * math.pi * turns).sin() + (2.5 * math.pi * turns).sin()) / 3,
    )
    sound = sum(torch.where(wave == number, values, 0.0) for number, values in enumerate(waves))
    start = uniform(0, 0.1)
    after = (time - start).clamp_min(0)
    envelopes = (
        (-after * uniform(6, 20)).exp(),
        1 - (-after * uniform(3, 10)).exp(),
        1 + 0.8 * (2 * math.pi * slow * time).sin(),
        torch.ones(count, LENGTH),
    )
    loud = sum(torch.where(envelope == number, values, 0.0) for number, values in enumerate(envelopes))
    noise = torch.randn(count, LENGTH, generator=draws) * 10 ** uniform(-2.0, -0.2)
    return sound * loud * (time >= start) * uniform(0.3, 1.0) + noise


def spectrograms(labels: torch.Tensor, seed: int) -> np.ndarray:
    """Return logarithmic spectrograms of sounds of these classes: uint8 (n, 32, 34), 0.4 decibels a step."""
    draws, window = torch.Generator().manual_seed(seed), torch.hann_window(128)
    parts = []
    for chosen in labels.split(1000):
        waves = torch.stft(
            sounds(chosen, draws), 128, hop_length=64, window=window, center=False, return_complex=True
        )
        power = waves.abs().square()[:, 1:65, :STORED].unflatten(1, (SIDE, 2)).mean(2)
        parts.append((25 * (power.clamp_min(1e-4).log10() + 4)).clamp(0, 255).round().byte())
    return torch.cat(parts).numpy()


def _arrays() -> dict[str, np.ndarray]:
    draws = torch.Generator().manual_seed(0)
    arrays = {}
    for seed, (part, count) in enumerate((("train", TRAIN), ("valid", HELD_OUT), ("test", HELD_OUT))):
        labels = torch.randint(CLASSES, (count,), generator=draws)
        arrays |= {part: spectrograms(labels, seed + 1), f"{part} labels": labels.numpy().astype(np.uint8)}
    return arrays


def stretch(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a random stretch of each spectrogram, uint8 (n, 32, 34) to float (n, 1, 32, 32) of a mean of about zero."""
    start = torch.randint(STORED - SIDE + 1, (len(images), 1, 1), generator=generator)
    frames = (start + torch.arange(SIDE)).expand(-1, SIDE, -1)
    return images.gather(2, frames).float().mul_(1 / 32).sub_(2.5).unsqueeze(1)


def data() -> Data:
    arrays = {name: torch.tensor(array) for name, array in cached("sounds-v1", _arrays).items()}

    def held_out(part: str, seed: int) -> Pair:
        return stretch(arrays[part], torch.Generator().manual_seed(seed)), arrays[f"{part} labels"].long()

    train = Samples(arrays["train"], arrays["train labels"].long(), stretch)
    return Data(train, held_out("valid", 1), held_out("test", 2))


def network() -> nn.Module:
    """Return a network of four strided convolutions."""
    return strided_network(((1, 16, 5), (16, 32, 3), (32, 48, 3), (48, 64, 3)), CLASSES)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=4e-3)


def tasks() -> list[Task]:
    return [
        Task(
            name="sounds",
            data=data,
            model=network,
            optimizer=_optimizer,
            batch_size=64,
            epochs=12,
        )
    ]
