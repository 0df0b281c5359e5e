"""Situations with changes of the batch, other forms of batches, and shapes that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..parts import CLASSES, F, Transformer, adamw, cross_entropy, images, mlp, rows, sequences, sgd, tokens
from ..situation import Run, situation


@situation()
def normalised_in_place(run: Run) -> None:
    """Normalise the input in place inside the model."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.sub_(0.5).div_(0.25))

    model, data = run.model(InPlace()), rows()
    step = run.step(model, cross_entropy(), sgd(model))
    for batch in data:
        step(batch)
    run.keep(first=data[0][0], last=data[-1][0])


@situation()
def masked_in_place(run: Run) -> None:
    """Mask spans of the input in place, drawn by NumPy, as SpecAugment does."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                spans = np.zeros(x.shape[:2], dtype=bool)
                for row, begin in enumerate(np.random.randint(0, x.shape[1] - 1, len(x))):
                    spans[row, begin : begin + 2] = True
                x[torch.from_numpy(spans)] = 0
            return self.net(x.mean(1))

    model, data = run.model(Masked()), sequences()
    step = run.step(model, cross_entropy(), sgd(model))
    for batch in data:
        step(batch)
    run.keep(zeros=int((data[0][0] == 0).sum()), first=data[0][0], next_draw=float(np.random.rand()))


@situation()
def batch_is_a_dict_that_changes(run: Run) -> None:
    """Pop the labels of a dictionary and add the logits to it inside the loss."""
    model = run.model(mlp())

    def popped(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        labels = batch.pop("labels")
        batch["logits"] = model(batch["x"])
        return F.cross_entropy(batch["logits"], labels)

    step = run.step(model, popped, sgd(model))
    data = [{"x": x, "labels": y} for x, y in rows()]
    for batch in data:
        step(batch)
    run.keep(keys=[sorted(batch) for batch in data], logits=data[0]["logits"].detach())


@situation(slow=True)
def label_written_in_place(run: Run) -> None:
    """Write the ignored index into the targets inside the loss."""
    model, data = run.model(Transformer()), tokens()

    def ignoring(model: nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        targets[targets < 4] = -100
        return F.cross_entropy(model(inputs), targets)

    step = run.step(model, ignoring, adamw(model))
    for batch in data:
        step(batch)
    run.keep(targets=data[0][1])


@situation()
def one_batch_repeated(run: Run) -> None:
    """Train on one batch again and again, which the model shifts in place each time."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(0.9)
            return self.net(x)

    model, batch = run.model(Shifted()), rows(1)[0]
    step = run.step(model, cross_entropy(), sgd(model))
    for _ in range(20):
        step(batch)
    run.keep(batch=batch[0])


@situation(slow=True)
def last_smaller_batch(run: Run) -> None:
    """Train two epochs whose last batch is smaller."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for _ in range(2):
        for batch in [*rows(9), *rows(1, size=5)]:
            step(batch)


@situation()
def changing_sizes(run: Run) -> None:
    """Change the number of samples from batch to batch."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for number in range(20):
        step(rows(1, size=6 + number % 7, seed=number)[0])


@situation(slow=True)
def changing_lengths(run: Run) -> None:
    """Change the length of the sequences of a transformer."""
    model = run.model(Transformer())
    step = run.step(model, cross_entropy(), adamw(model))
    for number in range(20):
        step(tokens(1, length=5 + number % 6, seed=number)[0])


@situation(slow=True)
def single_samples(run: Run) -> None:
    """Train on one sample a batch, and on two from the eleventh batch."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model, lr=0.01))
    for number in range(20):
        step(rows(1, size=1 + (number >= 10), seed=number)[0])


@situation(slow=True)
def images_of_several_sizes(run: Run) -> None:
    """Change the side of the images of a convolution net."""
    model = run.model(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
        )
    )
    step = run.step(model, cross_entropy(), sgd(model))
    for number in range(20):
        step(images(1, side=(8, 12, 10)[number % 3], seed=number)[0])


@situation(slow=True)
def transposed_batches(run: Run) -> None:
    """Train on batches with other strides: transposed, strided and expanded."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, (x, y) in enumerate(rows()):
        others = [x, x.T.contiguous().T, x.repeat_interleave(2, 1)[:, ::2], x[:1].expand(16, -1)]
        step((others[number % 4], y))


@situation()
def dtype_of_batches_changes(run: Run) -> None:
    """Train on inputs in float64 in every third batch, which the model casts."""

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.float())

    model = run.model(Casting())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, (x, y) in enumerate(rows()):
        step((x.double() if number % 3 == 2 else x, y))


@situation(slow=True)
def nested_batches(run: Run) -> None:
    """Train on dictionaries of lists, texts, numbers and ``None``; the text chooses the task."""
    model = run.model(mlp())

    def by_task(model: nn.Module, batch: Any) -> torch.Tensor:
        x, weight = torch.cat(batch["parts"], 1), batch["more"]["weight"]
        out = model(x) if batch["task"] == "plain" else model(-x)
        assert batch["nothing"] is None
        return weight * F.cross_entropy(out, batch["more"]["labels"])

    step = run.step(model, by_task, sgd(model))
    for number, (x, y) in enumerate(rows()):
        more = {"labels": y, "weight": 1.0 + 0.5 * (number % 2)}
        task = "plain" if number % 3 else "flipped"
        step({"parts": [x[:, :3], x[:, 3:]], "task": task, "more": more, "nothing": None})
