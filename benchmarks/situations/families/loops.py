"""Situations with other loops: averaging, schedules, clipping, accumulation, scaling, several passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ..parts import F, Transformer, adamw, batchnorm, cross_entropy, images, mlp, rows, sgd, tokens, train
from ..situation import Run, situation


@situation(slow=True)
def averaged_weights(run: Run) -> None:
    """Keep an exponential average of the weights by ``AveragedModel``, and evaluate it."""
    model = run.model(batchnorm())
    average = run.model(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True))
    step = run.step(model, cross_entropy(), sgd(model))
    for number, (x, y) in enumerate(images()):
        step((x, y))
        average.update_parameters(model)
        if number % 5 == 4:
            with torch.no_grad():
                average.eval()(x)
    update_bn(images(4), average)


@situation()
def one_cycle(run: Run) -> None:
    """Change rate and momentum by ``OneCycleLR`` after each batch."""
    model = run.model(mlp())
    optimizer = sgd(model)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=21)
    step = run.step(model, cross_entropy(), optimizer)
    for batch in rows():
        step(batch)
        schedule.step()
    run.keep(lr=optimizer.param_groups[0]["lr"], momentum=optimizer.param_groups[0]["momentum"])


@situation("fused", slow=True)
def schedule_fused(run: Run) -> None:
    """Change the rate by warm-up and cosine under a fused plan."""
    model = run.model(mlp())
    optimizer = adamw(model)
    warm, cosine = lr_scheduler.LinearLR(optimizer, 0.1, 1, 5), lr_scheduler.CosineAnnealingLR(optimizer, 15)
    schedule = lr_scheduler.SequentialLR(optimizer, [warm, cosine], [5])
    step = run.step(model, cross_entropy(), optimizer)
    for batch in rows():
        step(batch)
        schedule.step()


@situation(slow=True)
def plateau(run: Run) -> None:
    """Lower the rate by the loss that the step returns."""
    model = run.model(mlp())
    optimizer = sgd(model, lr=0.3)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    step = run.step(model, cross_entropy(), optimizer)
    for batch in rows():
        schedule.step(step(batch))


@situation(slow=True)
def clipped(run: Run) -> None:
    """Clip the norm of all gradients."""
    train(run, Transformer(), tokens(), lr=0.3, clip=0.5)


@situation()
def accumulated(run: Run) -> None:
    """Accumulate four batches for an update, clipped."""
    train(run, mlp(), accumulate=4, clip=1.0)


@situation()
def accumulated_by_hand(run: Run) -> None:
    """Accumulate three batches through ``forward``, the rest of the loop being the user's."""
    model = run.model(mlp())
    optimizer = sgd(model)
    step = run.step(model, cross_entropy())
    for number, batch in enumerate(rows()):
        (step.forward(batch) / 3).backward()
        if number % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


@situation()
def scaler(run: Run) -> None:
    """Train by a ``GradScaler`` on the CPU, with clipping; one batch overflows."""
    model = run.model(mlp())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    step = run.step(model, cross_entropy(), sgd(model), scaler=scaler, clip=1.0)
    for number, (x, y) in enumerate(rows()):
        step((x * float("inf") if number == 7 else x, y))
    run.keep(scale=scaler.get_scale())


@situation()
def scaler_accumulated(run: Run) -> None:
    """Accumulate two batches under a ``GradScaler``."""
    model = run.model(mlp())
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    step = run.step(model, cross_entropy(), adamw(model), scaler=scaler, accumulate=2)
    for batch in rows():
        step(batch)


@situation()
def losses_of_samples(run: Run) -> None:
    """Train on one loss a sample, and read ``step.losses``."""
    model = run.model(mlp())
    step, worst = run.step(model, nn.CrossEntropyLoss(reduction="none"), sgd(model)), []
    for x, y in rows():
        if run.ours:
            step((x, y))
            worst.append(step.losses.max())
        else:
            with torch.no_grad():
                worst.append(F.cross_entropy(model(x), y, reduction="none").max())
            step((x, y))
    run.keep(worst=torch.stack(worst))


@situation(slow=True)
def losses_weighted_outside(run: Run) -> None:
    """Reweight rows of the batch by an importance that changes with each batch."""
    model = run.model(mlp())

    def weighted(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y, weights = batch
        return (F.cross_entropy(model(x), y, reduction="none") * weights).sum() / weights.sum()

    step, weights = run.step(model, weighted, sgd(model)), torch.ones(16)
    for x, y in rows():
        step((x, y, weights))
        with torch.no_grad():
            weights = F.cross_entropy(model(x), y, reduction="none").softmax(0)


def ragged(count: int = 20) -> list[Any]:
    """Return batches of tokens with very different numbers of labels that count."""
    data = tokens(count)
    for number, (_, labels) in enumerate(data):
        labels[(1, 32, 5, 17)[number % 4] :] = -100
    return data


def update_by(run: Run, group: list[Any], model: nn.Module, optimizer: Any) -> None:
    """Make one update by all batches of a group at once, as the usual loop would without accumulation."""
    inputs, labels = (torch.cat(parts) for parts in zip(*group, strict=True))
    optimizer.zero_grad()
    cross_entropy()(model(inputs), labels).backward()
    optimizer.step()


@situation()
def accumulated_tokens(run: Run) -> None:
    """Accumulate batches with unequal numbers of labels as one batch; the criterion tells how many count."""
    model, data = run.model(Transformer()), ragged()
    optimizer = sgd(model)
    step = run.step(model, cross_entropy(), optimizer, accumulate=4)
    for number in range(0, 20, 4):
        if run.ours:
            for batch in data[number : number + 4]:
                step.inner(batch)
        else:
            update_by(run, data[number : number + 4], model, optimizer)


@situation(slow=True)
def accumulated_tokens_by_count(run: Run) -> None:
    """Accumulate batches with unequal numbers of labels, which the loss returns; the last update is flushed."""
    model, data = run.model(Transformer()), ragged(18)
    optimizer = sgd(model)

    def counted(model: nn.Module, batch: Any) -> Any:
        return cross_entropy()(model(batch[0]), batch[1]), (batch[1] >= 0).sum()

    step = run.step(model, counted, optimizer, accumulate=4)
    for number in range(0, 18, 4):
        if run.ours:
            for batch in data[number : number + 4]:
                step.inner(batch)
        else:
            update_by(run, data[number : number + 4], model, optimizer)
    if run.ours:
        step.flush()
