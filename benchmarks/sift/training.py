"""Train a task by a method and measure seconds, samples and held-out metric after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from ..tasks.task import Pair, Task, as_is

THREADS = 1
"""Threads of torch in each run.  With one thread for each of two cores, a run beside any other program took 10 to 40
times as long, as OpenMP's threads wait for each other; with one thread it took at most twice as long."""
QUICK_SHARE, QUICK_EPOCHS = 5, 4

Method = Callable[[Task, DataLoader[Any], nn.Module, int, int], Iterable[Any]]
"""From task, plain loader, model, number of epochs and seed to the batches of an epoch."""


class Training:
    """Training of a task with a method, epoch by epoch, with the seconds of its epochs.

    The model, its initial weights, the order of the samples and the learning rate of each epoch depend on the seed only,
    not on the method.
    """

    def __init__(
        self, task: Task, method: Method, seed: int, device: str, quick: bool, stretch: float = 1.0
    ) -> None:
        torch.set_num_threads(THREADS)
        self.task, self.device, self.data = task, device, task.data()
        samples = self.data.train
        samples = samples.first(len(samples) // QUICK_SHARE) if quick else samples
        self.epochs, self.every = (QUICK_EPOCHS, 1) if quick else (task.epochs, task.every)
        self.epochs = round(self.epochs * stretch / self.every) * self.every
        torch.manual_seed(seed)
        self.model = task.model().to(device)
        self.optimizer = task.optimizer(self.model.parameters())
        self.rate = self.optimizer.param_groups[0]["lr"]
        order = RandomSampler(samples, generator=torch.Generator().manual_seed(seed))
        plain = DataLoader(samples, task.batch_size, sampler=order, collate_fn=as_is)
        self.loader = method(task, plain, self.model, self.epochs, seed)
        self.seconds = self.processor = 0.0
        self.epoch = self.samples = 0

    def run_epoch(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
        self.model.train()
        start, start_processor = time.perf_counter(), time.process_time()
        self.samples += one_epoch(self.task, self.loader, self.model, self.optimizer, self.device)
        self.seconds += time.perf_counter() - start
        self.processor += time.process_time() - start_processor
        self.epoch += 1


def train(
    task: Task, method: Method, seed: int, device: str, quick: bool, part: str, stretch: float = 1.0
) -> dict[str, float]:
    """Train for ``stretch`` times the task's epochs with ``method``, and return the curve of checkpoints.

    Checkpoint 0 is before training, checkpoint i after i times ``every`` epochs.  The seconds do not count the
    measurement of the metric on ``part`` (``valid`` or ``test``) of the data.
    """
    run = Training(task, method, seed, device, quick, stretch)
    held_out: Pair = getattr(run.data, part)
    curve = {"metric@0": metric(task, run.model, held_out, device), "seconds@0": 0.0, "samples@0": 0.0}
    for number in range(1, run.epochs // run.every + 1):
        for _ in range(run.every):
            run.run_epoch()
        now = metric(task, run.model, held_out, device)
        curve |= {f"seconds@{number}": run.seconds, f"samples@{number}": run.samples, f"metric@{number}": now}
    curve |= {"seconds": run.seconds, "samples": run.samples, "metric": now}
    return curve | {"processor share": run.processor / run.seconds}


def beside(task: Task, methods: list[Method], seed: int, device: str, quick: bool) -> dict[str, float]:
    """Train with two methods in one process, an epoch of each in turns.

    The drift of a shared machine from one run to the next is larger than a ratio of a few percent.
    """
    one, other = (Training(task, method, seed, device, quick) for method in methods)
    for epoch in range(one.epochs):
        for run in (one, other) if epoch % 2 else (other, one):
            run.run_epoch()
    share = (one.processor + other.processor) / (one.seconds + other.seconds)
    return {"seconds": one.seconds, "other seconds": other.seconds, "processor share": share}


def one_epoch(
    task: Task, loader: Iterable[Any], model: nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> int:
    """Train for one epoch and return the number of samples that went through backward."""
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
    """Return the mean metric of the held-out samples, in evaluation mode."""
    model.eval()
    parts = zip(*(values.split(500) for values in held_out), strict=True)
    values = [task.values(model(inputs.to(device)), targets.to(device)) for inputs, targets in parts]
    return torch.cat(values).mean().item()
