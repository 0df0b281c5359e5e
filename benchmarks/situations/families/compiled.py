"""Situations whose plans Inductor compiles: given, chosen without timing, searched, and recalled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..parts import (
    Classifier,
    Transformer,
    adamw,
    batchnorm,
    conv,
    cross_entropy,
    images,
    mlp,
    rows,
    sequences,
    sgd,
    tokens,
    train,
)
from ..situation import Run, situation
from .changes import changed
from .draws import VAE, own
from .initial import LoRA
from .moments import resumed
from .structures import Checkpointed, Recurrent


@situation("inductor", slow=True)
def inductor_dense(run: Run) -> None:
    """Train a dense net with dropout by Inductor."""
    train(run, Classifier(nn.Sequential(nn.Dropout(0.3), nn.LayerNorm(16))), rows())


@situation("inductor", slow=True)
def inductor_transformer(run: Run) -> None:
    """Train a transformer of repeated blocks by Inductor, with the loss head and clipping."""
    train(run, Transformer(), tokens(), clip=1.0)


@situation("inductor channels_last", slow=True)
def inductor_resumed_convolutions(run: Run) -> None:
    """Resume AdamW's moments of convolutions under Inductor with channels_last and the fused update."""
    resumed(run, lambda model: torch.optim.AdamW(model.parameters(), 2e-3), conv, loaded=True)


@situation("inductor computed again", slow=True)
def inductor_computed_again(run: Run) -> None:
    """Compute activations with dropout again in the backward pass of Inductor."""
    train(
        run,
        Classifier(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.3), nn.Linear(32, 16))),
        rows(),
    )


@situation("inductor", slow=True)
def inductor_checkpointed(run: Run) -> None:
    """Train a checkpointed model with dropout by Inductor."""
    train(run, Classifier(Checkpointed(False)), rows())


@situation("inductor", slow=True)
def inductor_zero_init(run: Run) -> None:
    """Train low-rank updates that begin at zero by Inductor."""
    train(run, Classifier(nn.Sequential(LoRA(nn.Linear(16, 16)), nn.GELU())), rows())


@situation("inductor", slow=True)
def inductor_frozen_later(run: Run) -> None:
    """Freeze layers in the middle under Inductor, which compiles again."""
    changed(run, lambda model, optimizer: model[:2].requires_grad_(False))


@situation("inductor", slow=True)
def inductor_recurrent(run: Run) -> None:
    """Train a GRU by Inductor."""
    train(run, Recurrent(nn.GRU(8, 12, batch_first=True)), sequences())


@situation("inductor", slow=True)
def inductor_float64(run: Run) -> None:
    """Train a model in float64 by Inductor."""
    train(run, mlp().double(), [(x.double(), y) for x, y in rows()])


@situation("inductor", slow=True)
def inductor_bfloat16(run: Run) -> None:
    """Train a model in bfloat16 by Inductor."""
    train(run, mlp().bfloat16(), [(x.bfloat16(), y) for x, y in rows()])


@situation("off", slow=True)
def off_vae(run: Run) -> None:
    """Train a variational autoencoder, which draws noise, by the plan of ``autotune="off"``."""
    train(run, VAE(), rows(), own)


@situation("off", slow=True)
def off_batch_norm(run: Run) -> None:
    """Train BatchNorm with a smaller last batch by the plan of ``autotune="off"``."""
    train(run, batchnorm(), [*images(), *images(2, size=5)])


@situation("default", slow=True)
def default_transformer(run: Run) -> None:
    """Train a transformer by the plan that the default search chooses."""
    train(run, Transformer(vocabulary=400), tokens(vocabulary=400, length=16))


@situation("default", slow=True)
def default_resumed_convolutions(run: Run) -> None:
    """Resume AdamW's moments of convolutions under the plan that the default search chooses."""
    resumed(run, lambda model: torch.optim.AdamW(model.parameters(), 2e-3), large_convolutions, large_images)


def large_convolutions() -> Any:
    """Return convolutions that are faster in channels_last."""
    layers = [
        layer for _ in range(2) for layer in (nn.Conv2d(32, 32, 3, 1, 1), nn.GELU(), nn.MaxPool2d(3, 1, 1))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def large_images() -> list[Any]:
    return [(x.repeat(1, 11, 1, 1)[:, :32], y) for x, y in images(side=16)]


@situation("default", slow=True)
def recalled_convolutions(run: Run) -> None:
    """Recall a plan that a first training stored, in a second one with older moments."""
    remembered(run, large_convolutions, large_images())


@situation("default", slow=True)
def recalled_dense(run: Run) -> None:
    """Recall a plan that a first training stored, in a second one with other weights, loss and data."""
    remembered(run, lambda: Classifier(nn.Sequential(nn.LayerNorm(16), nn.Dropout(0.2))), rows())


def remembered(run: Run, net: Callable[[], nn.Module], data: list[Any]) -> None:
    """Train two models one after the other with one cache of plans; the second resumes ten usual batches."""
    train(run, net(), data[:5], make=adamw)
    model = run.model(net())
    optimizer = adamw(model)
    usual = run.usual(model, cross_entropy(), optimizer)
    for batch in data[:10]:
        usual(batch)
    step = run.step(model, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer)
    for batch in data[10:]:
        step(batch)


@situation("inductor", slow=True)
def inductor_copied(run: Run) -> None:
    """Copy a step that Inductor compiled, and train the copy."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for batch in rows(5):
        step(batch)
    second = copy.deepcopy(step)
    run.model(second.spec.model if run.ours else second.model)
    for batch in rows(8, seed=3):
        second(batch)
