"""Characters of real text, rendered in many fonts with their neighbours, distorted; long-tailed."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .task import Data, Pair, Samples, Task, cached, strided_network
from .text import VERSION, text

FIRST, CLASSES = 33, 94
"""The printable characters of ASCII but the blank."""
TRAIN, EACH = 100_000, 40
"""Training images, and test (and validation) images of each class."""
STORED, SHOWN = 18, 16
"""Side of a stored image, and of the random crop that an access gives."""
WRONG = 0.2
"""Share of the training labels that are wrong in ``glyphs-noise``."""
_FONTS = {
    "matplotlib": ("mpl-data/fonts/ttf", ("DejaVuSans", "DejaVuSerif", "STIXGeneral")),
    "font_roboto": ("files", ("Roboto",)),
    "font_source_sans_pro": ("files", ("SourceSansPro",)),
    "font_source_serif_pro": ("files", ("SourceSerifPro",)),
}
_BOX, _EM, _BASE = 64, 40, 46


def faces(part: str) -> list[Path]:
    """Return the font files of a part: of seven faces one is for validation, one for the test, five for training."""
    fonts = []
    for package, (folder, families) in _FONTS.items():
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise ModuleNotFoundError(f"{package} has the fonts of this task: pip install 'loopwise[bench]'")
        root = Path(str(spec.submodule_search_locations[0])) / folder  # type: ignore[index]
        paths = sorted(path for path in root.glob("*.ttf") if path.name.startswith(families))
        fonts += [path for path in paths if "Display" not in path.name]
    parts = {3: "test", 6: "valid"}
    return [path for n, path in enumerate(fonts) if parts.get(n % 7, "train") == part]


def atlas(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Render every character in every face, (faces, 95, 64, 64) in [0, 1], and return it with its width; the last is blank."""
    from PIL import Image, ImageDraw, ImageFont

    images = np.zeros((len(paths), CLASSES + 1, _BOX, _BOX), np.uint8)
    widths = np.zeros((len(paths), CLASSES + 1), np.float32)
    for row, path in enumerate(paths):
        font = ImageFont.truetype(str(path), _EM)
        for column in range(CLASSES + 1):
            character = chr(FIRST + column) if column < CLASSES else " "
            canvas = Image.new("L", (_BOX, _BOX))
            ImageDraw.Draw(canvas).text((_BOX // 2, _BASE), character, fill=255, font=font, anchor="ms")
            images[row, column] = np.asarray(canvas)
            widths[row, column] = font.getlength(character)
    return torch.tensor(images).float() / 255, torch.tensor(widths)


def classes_of(part: str) -> torch.Tensor:
    """Return the text of ``part`` as classes, with 94 for everything that is not a visible character."""
    codes = torch.tensor(text(part)).long() - FIRST
    return codes.where((codes >= 0) & (codes < CLASSES), CLASSES)


def rendered(part: str, positions: torch.Tensor, seed: int) -> np.ndarray:
    """Render the characters at ``positions`` of the text in random faces, uint8 (n, 18, 18)."""
    codes, (glyphs, widths) = classes_of(part), atlas(faces(part))
    draws = torch.Generator().manual_seed(seed)
    parts = [_render(codes, at, glyphs, widths, draws) for at in positions.split(2000)]
    return torch.cat(parts).numpy()


def _render(
    codes: torch.Tensor, at: torch.Tensor, glyphs: torch.Tensor, widths: torch.Tensor, draws: torch.Generator
) -> torch.Tensor:
    count = len(at)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=draws)

    face = torch.randint(len(glyphs), (count,), generator=draws)
    angle, slant, size = uniform(-0.15, 0.15), uniform(-0.2, 0.2), uniform(0.6, 0.85)
    matrix = torch.stack([angle.cos(), slant - angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 1, 1, 2, 2)
    line = (torch.arange(2 * STORED) + 0.5) / STORED - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)[None, ..., None]
    grid = (matrix @ grid)[..., 0] * size.view(-1, 1, 1, 1)
    page = torch.zeros(count, 1, 2 * STORED, 2 * STORED)
    for step in (-1, 0, 1):
        code = codes[(at + step).clamp(0, len(codes) - 1)]
        apart = step * (widths[face, code] + widths[face, codes[at]]) / _BOX
        moved = grid - torch.stack([apart, torch.zeros(count)], 1).view(-1, 1, 1, 2)
        page = page.maximum(
            nn.functional.grid_sample(glyphs[face, code].unsqueeze(1), moved, align_corners=False)
        )
    page = nn.functional.avg_pool2d(page, 2)
    blurred = nn.functional.avg_pool2d(page, 3, 1, 1)
    page = page.lerp(blurred, uniform(0, 1).view(-1, 1, 1, 1))
    paper, ink = uniform(0, 0.4).view(-1, 1, 1, 1), uniform(0.25, 0.6).view(-1, 1, 1, 1)
    return (255 * (paper + ink * page)).round().byte()[:, 0]


def _arrays() -> dict[str, np.ndarray]:
    draws = torch.Generator().manual_seed(0)
    codes = classes_of("train")
    visible = (codes < CLASSES).nonzero()[:, 0]
    at = visible[torch.randint(len(visible), (TRAIN,), generator=draws)]
    arrays = {"train": rendered("train", at, 1), "train labels": codes[at].numpy().astype(np.uint8)}
    for seed, part in ((2, "valid"), (3, "test")):
        codes = classes_of(part)
        places = [(codes == number).nonzero()[:, 0] for number in range(CLASSES)]
        chosen = [place[torch.randint(len(place), (EACH,), generator=draws)] for place in places]
        at = torch.cat(chosen)
        arrays |= {part: rendered(part, at, seed), f"{part} labels": codes[at].numpy().astype(np.uint8)}
    return arrays


def cropped(images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Crop uint8 (n, 18, 18) at random to float (n, 1, 16, 16), with pixel noise and a mean of about zero."""
    y, x = torch.randint(STORED - SHOWN + 1, (2, len(images), 1, 1), generator=generator)
    line = torch.arange(SHOWN)
    flat = ((y + line.view(1, -1, 1)) * STORED + x + line).view(len(images), -1)
    shown = images.view(len(images), -1).gather(1, flat).float().mul_(1 / 64).sub_(1.5)
    shown += 0.15 * torch.randn(shown.shape, generator=generator)
    return shown.view(-1, 1, SHOWN, SHOWN)


def data(wrong: float = 0.0) -> Data:
    """Return training data with the class frequencies of the text, and test data with equal ones.

    ``wrong`` is the share of training labels that are replaced by others.
    """
    arrays = {name: torch.tensor(array) for name, array in cached(f"glyphs-v1-{VERSION}", _arrays).items()}
    labels = arrays["train labels"].long()
    draws = torch.Generator().manual_seed(0)
    replaced = torch.rand(len(labels), generator=draws) < wrong
    others = (labels + torch.randint(1, CLASSES, labels.shape, generator=draws)) % CLASSES

    def held_out(part: str, seed: int) -> Pair:
        return cropped(arrays[part], torch.Generator().manual_seed(seed)), arrays[f"{part} labels"].long()

    train = Samples(arrays["train"], others.where(replaced, labels), cropped)
    return Data(train, held_out("valid", 1), held_out("test", 2))


def network() -> nn.Module:
    """Return a network of three strided convolutions."""
    return strided_network(((1, 16, 5), (16, 32, 3), (32, 64, 3)), CLASSES)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=6e-3)


def tasks() -> list[Task]:
    common: dict[str, Any] = {
        "model": network,
        "optimizer": _optimizer,
        "batch_size": 128,
    }
    return [
        Task(name="glyphs", data=data, epochs=16, **common),
        Task(name="glyphs-noise", data=functools.partial(data, WRONG), epochs=6, **common),
    ]
