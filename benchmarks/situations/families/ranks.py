"""Situations of two processes under DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..parts import CLASSES, Classifier, batchnorm, conv, cross_entropy, images, mlp, rows, sgd
from ..processes import WORLD
from ..situation import Run, situation
from .moments import optimizer


def trained(
    run: Run, net: Callable[[], Any], data: Any = rows, wrap: dict[str, Any] | None = None, **options: Any
) -> None:
    """Train a model under DDP; each rank has batches of its own.

    Args:
        run: the run.
        net: makes the model.
        data: makes batches from a seed.
        wrap: arguments of DDP's wrapper.
        options: arguments of the step.
    """
    model = run.model(net())
    wrapped = DistributedDataParallel(model, **(wrap or {}))
    step = run.step(wrapped, cross_entropy(), sgd(model), **options)
    for batch in data(seed=100 + dist.get_rank()):
        step(batch)


@situation(ranks=WORLD, slow=True)
def ddp_dense(run: Run) -> None:
    """Train a dense net under DDP."""
    trained(run, mlp)


@situation("channels_last", WORLD)
def ddp_channels_last(run: Run) -> None:
    """Train convolutions under DDP with a channels_last plan."""
    trained(run, conv, images)


@situation("channels_last captured", WORLD)
def ddp_batch_norm(run: Run) -> None:
    """Train BatchNorm under DDP, which broadcasts its buffers, with a captured channels_last plan."""
    trained(run, batchnorm, images)


@situation(ranks=WORLD)
def ddp_accumulated(run: Run) -> None:
    """Accumulate four batches under DDP, clipped; gradients are exchanged once an update."""
    trained(run, mlp, accumulate=4, clip=1.0)


@situation("channels_last", WORLD, slow=True)
def ddp_accumulated_convolutions(run: Run) -> None:
    """Accumulate two batches of convolutions under DDP with a channels_last plan and buckets as views."""
    trained(run, conv, images, {"gradient_as_bucket_view": True}, accumulate=2)


@situation(ranks=WORLD, slow=True)
def ddp_unused_parameters(run: Run) -> None:
    """Train under ``find_unused_parameters`` a model that leaves a layer out in some passes of a rank."""

    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + (self.b(x).tanh() if bool(x[0, 0] > 0) else 0)

    trained(run, lambda: Classifier(Skipping()), wrap={"find_unused_parameters": True})


@situation(ranks=WORLD)
def ddp_dropout(run: Run) -> None:
    """Train under DDP with dropout, each rank with its own random state."""
    torch.manual_seed(0)
    net = Classifier(nn.Dropout(0.3))
    torch.manual_seed(50 + dist.get_rank())
    trained(run, lambda: net)


@situation("channels_last fused", WORLD)
def ddp_resumed(run: Run) -> None:
    """Resume AdamW's moments of convolutions under DDP with a plan of channels_last and the fused update."""
    model = run.model(conv())
    wrapped, moments = DistributedDataParallel(model), optimizer("AdamW")(model)
    usual, step = (make(wrapped, cross_entropy(), moments) for make in (run.usual, run.step))
    for number, batch in enumerate(images(seed=100 + dist.get_rank())):
        (usual if number < 10 else step)(batch)


@situation("channels_last", WORLD)
def ddp_by_forward(run: Run) -> None:
    """Train convolutions under DDP by ``forward``, the framework's way, with a channels_last plan."""
    model = run.model(conv())
    wrapped, update = DistributedDataParallel(model), sgd(model)
    step = run.step(wrapped, cross_entropy())
    for batch in images(seed=100 + dist.get_rank()):
        update.zero_grad()
        step.forward(batch).backward()
        update.step()


@situation("default", WORLD, slow=True)
def ddp_default(run: Run) -> None:
    """Train a small head over frozen convolutions under DDP with the plan that the default search chooses."""

    def net() -> Any:
        body = nn.Conv2d(3, 8, 3).requires_grad_(False)
        return nn.Sequential(body, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))

    trained(run, net, images)
