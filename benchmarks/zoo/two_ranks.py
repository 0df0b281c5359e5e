"""Training in two processes under DistributedDataParallel, and faults of such trainings."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .fault import FAULTS, LOST, fault
from .job import Batch, Job

WORLD = 2
CHILD = "import sys; from benchmarks.zoo import two_ranks; two_ranks.main(*sys.argv[1:])"


class Parallel:
    """``Job`` of each rank.

    Faults change it in the ranks' own processes, before the model is wrapped; ``run`` only starts the processes.
    """

    def __init__(self, seed: int, steps: int = 40) -> None:
        self.seed, self.steps = seed, steps
        self.name = ""
        self.rank = int(os.environ.get("RANK", "0"))
        self.job = Job("mlp", seed, steps=steps)
        self.wrap: Callable[[nn.Module], nn.Module] = nn.parallel.DistributedDataParallel
        self.synchronised: Callable[[Any, int], Any] = lambda model, step: contextlib.nullcontext()
        self.wrapped: Callable[[nn.Module], None] = lambda model: None
        self.data_rank = self.rank

    def batch(self, step: int) -> Batch:
        return self.job.batch(step)

    def run(self, folder: str) -> Any:
        """Train in two processes under a ``Watch``, and return the findings of rank 0."""
        from loopwise.debug import open_run

        with tempfile.TemporaryDirectory() as store:
            command = [sys.executable, "-c", CHILD, self.name, str(self.seed)]
            command += [str(self.steps), folder, f"{store}/store"]
            root = Path(__file__).parents[2]
            ranks = [
                subprocess.Popen(
                    command, cwd=root, env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(WORLD)}
                )
                for rank in range(WORLD)
            ]
            try:
                codes = [rank.wait(120) for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        return SimpleNamespace(findings=open_run(folder).findings(), counts={})

    def train(self, folder: str, store: str) -> None:
        """Train as one rank."""
        import torch.distributed as dist

        from loopwise.debug import Watch, every

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=self.rank, world_size=WORLD)
        model = self.wrap(self.job.model)
        self.wrapped(model)
        self.job._draws.manual_seed(1000 * self.seed + self.data_rank)
        optimizer = self.job.optimizer(model.parameters())
        plain = {"trap": False, "profile": False, "on_finding": lambda _: None}
        with Watch(model, optimizer, run=folder, save=every(1), **plain) as watch:
            for step in range(self.steps):
                x, y = self.batch(step)
                with self.synchronised(model, step):
                    self.job.before_backward(optimizer, step)
                    loss = self.job.criterion(model(x), y)
                    loss.backward()
                self.job.update(optimizer, step)
                watch.step(loss=loss)
            dist.barrier()  # so that what the other rank said has come
        dist.barrier()
        dist.destroy_process_group()


@fault("ddp", "same_batch_on_ranks")
def no_distributed_sampler(job: Parallel) -> None:
    job.data_rank = 0


@fault("ddp", "replicas_differ")
def no_sync_left_on(job: Parallel) -> None:
    job.synchronised = lambda model, step: model.no_sync()


@fault("ddp", "replicas_differ")
def head_made_anew_after_wrapping(job: Parallel) -> None:
    def wrapped(model: nn.Module) -> None:
        torch.manual_seed(job.rank)
        nn.init.normal_(job.job.model[-1].weight, std=0.1)

    job.wrapped = wrapped


@fault("ddp", "replicas_differ")
def model_not_wrapped(job: Parallel) -> None:
    job.wrap = lambda model: model


@fault("ddp", "replicas_differ")
def the_inner_model_is_called(job: Parallel) -> None:
    """Call the inner model, so that DDP does not average the gradients."""

    class Past(nn.parallel.DistributedDataParallel):
        def forward(self, *args: Any) -> Any:
            return self.module(*args)

    job.wrap = Past


@fault("ddp", "missing_gradient", also=LOST)
def parameters_that_are_not_used(job: Parallel) -> None:
    inner = job.job.model
    inner.append(nn.Identity())
    inner[-1].unused = nn.Linear(4, 4)
    job.wrap = lambda model: nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def main(name: str, seed: str, steps: str, folder: str, store: str) -> None:
    job = Parallel(int(seed), int(steps))
    if name:
        FAULTS[name].inject(job)
    job.train(folder, store)
