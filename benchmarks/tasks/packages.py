"""Packages of Python's standard library, told apart by windows of 128 bytes of their source, on held-out modules."""

from __future__ import annotations

import sysconfig
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .task import Data, Pair, Samples, Task
from .text import LEFT_OUT, PARTS

CLASSES, WINDOW = 20, 128
TRAIN, HELD_OUT = 30_000, 4_000
"""Windows for training, and for validation and test each; classes are equally frequent in the latter."""
LEAST_MODULES = 4
"""A package with fewer modules has none for validation and test."""
LEAST_BYTES = 1_000
"""A module with fewer bytes, such as an empty ``__init__``, is left out."""


def sources(part: str) -> list[np.ndarray]:
    """Return the bytes, uint8, of the modules of ``part`` (``train``, ``valid``, ``test``) for each package.

    The packages are the largest ones.  A fifth of the modules of each is for validation and a fifth for the test, in the
    order of a checksum of their names.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        inside = path.relative_to(root)
        if not LEFT_OUT & set(inside.parts) and path.stat().st_size >= LEAST_BYTES:
            modules.setdefault(inside.parts[0], []).append(path)
    enough = {name: paths for name, paths in modules.items() if len(paths) >= LEAST_MODULES}
    size = {name: sum(path.stat().st_size for path in paths) for name, paths in enough.items()}
    largest = sorted(sorted(size, key=lambda name: -size[name])[:CLASSES])
    return [np.frombuffer(b"\n".join(_modules(enough[name], part)), np.uint8) for name in largest]


def _modules(paths: list[Path], part: str) -> list[bytes]:
    order = sorted(paths, key=lambda path: zlib.crc32(path.name.encode()))
    chosen = [path for number, path in enumerate(order) if PARTS.get(number % 5, "train") == part]
    return [path.read_bytes() for path in chosen]


def windows(part: str, count: int, seed: int, equal: bool) -> Pair:
    """Return windows at random places and their packages: of each package as many, or in proportion to its size."""
    draws, texts = np.random.default_rng(seed), sources(part)
    sizes = np.array([max(len(text) - WINDOW, 0) for text in texts], float)
    shares = (sizes > 0) / (sizes > 0).sum() if equal else sizes**0.5 / (sizes**0.5).sum()
    labels = draws.choice(len(texts), count, p=shares)
    starts = (draws.random(count) * sizes[labels]).astype(int)
    chosen = [texts[label][start : start + WINDOW] for label, start in zip(labels, starts, strict=True)]
    return torch.tensor(np.stack(chosen)), torch.tensor(labels)


def data() -> Data:
    """Return training windows by the square root of the packages' sizes, and held-out ones of equal classes."""
    return Data(
        Samples(*windows("train", TRAIN, 0, False)),
        windows("valid", HELD_OUT, 1, True),
        windows("test", HELD_OUT, 2, True),
    )


class Network(nn.Module):
    """Convolutions over bytes, from (batch, 128) uint8 to logits (batch, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, 24)
        layers: list[nn.Module] = []
        for inputs, outputs in ((24, 64), (64, 96), (96, 128)):
            convolution = nn.Conv1d(inputs, outputs, 5, stride=2, padding=2, bias=False)
            layers += [convolution, nn.BatchNorm1d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.head = nn.Linear(128, CLASSES)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.bytes(windows.long()).transpose(1, 2)))


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)


def tasks() -> list[Task]:
    return [
        Task(
            name="packages",
            data=data,
            model=Network,
            optimizer=_optimizer,
            batch_size=64,
            epochs=6,
        )
    ]
