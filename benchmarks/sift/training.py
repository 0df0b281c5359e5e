"""Train a task by a method for a given number of samples, and measure seconds and the held-out metric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from ..tasks.task import Pair, Task, as_is

THREADS = 1
"""Threads of torch in each run.  With one thread for each of two cores, a run beside any other program took 10 to 40
times as long, as OpenMP's threads wait for each other; with one thread it took at most twice as long."""
QUICK_SHARE, QUICK_EPOCHS = 10, 3


@dataclass(slots=True)
class Budget:
    """Samples that a training sends through backward, the same for every method, and those that it has sent."""

    total: int
    updates: int
    """Number of updates of the whole training, with batches of the task's size."""
    used: int = 0

    @property
    def progress(self) -> float:
        """Share of the training that is done, from 0 to 1."""
        return min(self.used / self.total, 1.0)


Method = Callable[[Task, DataLoader[Any], nn.Module, Budget, int], Iterable[Any]]
"""From task, plain loader, model, budget and seed to the batches of a pass."""


class Training:
    """Training of a task with a method, pass by pass, with the seconds of its passes.

    The model, its initial weights and the order of the samples depend on the seed only, not on the method.  The learning
    rate falls to 0 by a cosine, update by update.  A rate that is constant within a pass would favour methods with
    fewer and longer passes.

    Args:
        task: the task, with the passes of the plain loader.
        method: maker of the batches of a pass.
        seed: seed of everything random.
        device: device of the model.
        quick: train for a few passes over a part of the data.
        budget: samples through backward, as a share of the plain loader's.
        rate: factor of the task's peak learning rate.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        seed: int,
        device: str,
        quick: bool,
        budget: float = 1.0,
        rate: float = 1.0,
    ) -> None:
        torch.set_num_threads(THREADS)
        self.task, self.device, self.data = task, device, task.data()
        samples = self.data.train
        samples = samples.first(len(samples) // QUICK_SHARE) if quick else samples
        self.epochs = QUICK_EPOCHS if quick else task.epochs
        total = round(budget * self.epochs * len(samples))
        self.budget = Budget(total, math.ceil(total / task.batch_size))
        torch.manual_seed(seed)
        self.model = task.model().to(device)
        self.optimizer = task.optimizer(self.model.parameters())
        self.peak = rate * self.optimizer.param_groups[0]["lr"]
        order = RandomSampler(samples, generator=torch.Generator().manual_seed(seed))
        plain = DataLoader(samples, task.batch_size, sampler=order, collate_fn=as_is)
        self.loader = method(task, plain, self.model, self.budget, seed)
        self.seconds = self.processor = 0.0
        self.passes = 0

    def run_pass(self, whole: bool = False) -> None:
        """Train on one pass of the method's loader; end it with the budget, or ``whole``, by the number of passes."""
        self.model.train()
        start, start_processor = time.perf_counter(), time.process_time()
        observe = getattr(self.loader, "observe", None)
        batches = len(self.loader) if whole else 0  # type: ignore[arg-type]
        for number, (inputs, targets, *weights) in enumerate(self.loader):
            done = (self.passes + number / batches) / self.epochs if whole else self.budget.progress
            self._update(inputs, targets, weights, min(done, 1.0), observe)
            if not whole and self.budget.used >= self.budget.total:
                break
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        self.processor += time.process_time() - start_processor
        self.passes += 1

    def train(self, part: str) -> dict[str, float]:
        """Train for the budget, and return seconds, samples and the metric on a part of the data."""
        while self.budget.used < self.budget.total:
            self.run_pass()
        value = metric(self.task, self.model, getattr(self.data, part), self.device)
        return {"metric": value, "samples": self.budget.used, "seconds": self.seconds}

    def set_rate(self, done: float) -> None:
        """Set the learning rate for a share of the training that is done."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak * (1 + math.cos(math.pi * done)) / 2

    def _update(self, inputs: Any, targets: Any, weights: list[Any], done: float, observe: Any) -> None:
        self.set_rate(done)
        losses = self.task.losses(self.model(inputs.to(self.device)), targets.to(self.device))
        loss = (losses * weights[0].to(self.device)).mean() if weights else losses.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.budget.used += len(inputs)
        if observe is not None:
            observe(losses.detach())


def train(
    task: Task,
    method: Method,
    seed: int,
    device: str,
    quick: bool,
    part: str,
    budget: float = 1.0,
    rate: float = 1.0,
) -> dict[str, float]:
    """Train on ``budget`` times the samples of the plain loader, and return seconds and the final metric.

    The seconds do not count the measurement of the metric on ``part`` (``valid`` or ``test``) of the data.
    """
    run = Training(task, method, seed, device, quick, budget, rate)
    found = run.train(part)
    return found | {"passes": run.passes, "processor share": run.processor / run.seconds}


def in_turns(one: Training, other: Training) -> Iterator[tuple[int, Training]]:
    """Yield the number of each pass and the training that makes it, the first one alternately."""
    for number in range(one.epochs):
        for run in (one, other) if number % 2 else (other, one):
            yield number, run


def beside(task: Task, methods: list[Method], seed: int, device: str, quick: bool) -> dict[str, float]:
    """Train with two methods in one process for as many passes each, a pass of each in turns.

    The drift of a shared machine from one run to the next is larger than a ratio of a few percent.
    """
    one, other = (Training(task, method, seed, device, quick) for method in methods)
    for _, run in in_turns(one, other):
        run.run_pass(whole=True)
    share = (one.processor + other.processor) / (one.seconds + other.seconds)
    return {
        "metric": metric(task, one.model, one.data.test, device),
        "other metric": metric(task, other.model, other.data.test, device),
        "samples": one.budget.used,
        "seconds": one.seconds,
        "other seconds": other.seconds,
        "processor share": share,
    }


@torch.no_grad()
def metric(task: Task, model: nn.Module, held_out: Pair, device: str) -> float:
    """Return the mean metric of the held-out samples, in evaluation mode."""
    model.eval()
    parts = zip(*(values.split(500) for values in held_out), strict=True)
    values = [task.values(model(inputs.to(device)), targets.to(device)) for inputs, targets in parts]
    return torch.cat(values).mean().item()
