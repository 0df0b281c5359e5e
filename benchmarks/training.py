"""Trains a task by a method and measures seconds, samples and held-out metric along the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from .tasks.task import Pair, Task, as_is

THREADS = 1
"""Of torch, in each run.  With one thread for each of two cores a run beside any other program took
10 to 40 times as long (OpenMP's threads wait for each other); with one it took at most twice as long."""
QUICK_SHARE, QUICK_EPOCHS = 5, 4

Method = Callable[[Task, DataLoader[Any], nn.Module, int, int], Iterable[Any]]
"""From task, plain loader, model, number of epochs and seed to the batches of an epoch."""


def train(task: Task, method: Method, seed: int, device: str, quick: bool, part: str) -> dict[str, float]:
    """Train with ``method``; checkpoint 0 is before training, checkpoint i after i times ``every`` epochs.

    Model, its first weights, the order of the samples and the learning rate of each epoch are the
    same for all methods of a seed.  The clock stands while the metric is measured, on ``part``
    (``valid`` or ``test``) of the data.
    """
    torch.set_num_threads(THREADS)
    data = task.data()
    held_out: Pair = getattr(data, part)
    samples = data.train.first(len(data.train) // QUICK_SHARE) if quick else data.train
    epochs, every = (QUICK_EPOCHS, 1) if quick else (task.epochs, task.every)
    torch.manual_seed(seed)
    model = task.model().to(device)
    optimizer = task.optimizer(model.parameters())
    rate = optimizer.param_groups[0]["lr"]
    order = RandomSampler(samples, generator=torch.Generator().manual_seed(seed))
    plain = DataLoader(samples, task.batch_size, sampler=order, collate_fn=as_is)
    loader = method(task, plain, model, epochs, seed)

    found = {"metric@0": metric(task, model, held_out, device), "seconds@0": 0.0, "samples@0": 0.0}
    seconds = processor = trained = 0.0
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        model.train()
        start, start_processor = time.perf_counter(), time.process_time()
        trained += one_epoch(task, loader, model, optimizer, device)
        seconds += time.perf_counter() - start
        processor += time.process_time() - start_processor
        if (epoch + 1) % every == 0:
            now = metric(task, model, held_out, device)
            number = (epoch + 1) // every
            found |= {f"seconds@{number}": seconds, f"samples@{number}": trained, f"metric@{number}": now}
    found |= {"seconds": seconds, "samples": trained, "metric": now}
    return found | {"processor share": processor / seconds}


def one_epoch(
    task: Task, loader: Iterable[Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> int:
    """The training loop; returns the number of samples that went through backward."""
    observe = getattr(loader, "observe", None)
    trained = 0
    for inputs, targets, *weights in loader:
        losses = task.losses(model(inputs.to(device)), targets.to(device))
        loss = (losses * weights[0].to(device)).mean() if weights else losses.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trained += len(inputs)
        if observe is not None:
            observe(losses.detach())
    if device != "cpu":
        torch.cuda.synchronize()
    return trained


@torch.no_grad()
def metric(task: Task, model: nn.Module, held_out: Pair, device: str) -> float:
    """The mean metric of the held-out samples, in evaluation mode."""
    model.eval()
    parts = zip(*(values.split(500) for values in held_out), strict=True)
    values = [task.values(model(inputs.to(device)), targets.to(device)) for inputs, targets in parts]
    return torch.cat(values).mean().item()
