"""Faults around the update: schedules, accumulation, clipping, and parameters that do not learn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from .fault import LOST, fault
from .job import Job, accumulated, scheduled

F = nn.functional


@fault("mlp", "scheduler_order")
def schedule_of_epochs_stepped_per_batch(job: Job) -> None:
    job.steps = 120
    scheduled(job, lambda optimizer: lr_scheduler.StepLR(optimizer, 5, gamma=0.1))


@fault("rnn", "scheduler_order")
def cosine_of_epochs_stepped_per_batch(job: Job) -> None:
    job.steps = 120
    scheduled(job, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=15))


@fault("transformer", "scheduler_order")
def linear_schedule_that_ends_early(job: Job) -> None:
    job.steps = 120
    scheduled(job, lambda optimizer: lr_scheduler.PolynomialLR(optimizer, total_iters=30))


@fault("cnn", "scheduler_order")
def scheduler_before_the_optimizer(job: Job) -> None:
    scheduled(
        job,
        lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.98),
        lambda optimizer, schedule, step: (schedule.step(), optimizer.step()),
    )


@fault("mlp", "scheduler_order")
def scheduler_stepped_per_accumulated_batch(job: Job) -> None:
    job.steps = 160
    accumulated(job, 4)
    update = job.update

    def both(optimizer: Any, schedule: Any, step: int) -> None:
        update(optimizer, step)
        schedule.step()

    scheduled(job, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=160), both)


@fault("mlp", "accumulation_not_divided")
def accumulation_of_whole_losses(job: Job) -> None:
    accumulated(job, 4, divided=False)


@fault("transformer", "accumulation_not_divided")
def accumulation_of_whole_losses_of_a_transformer(job: Job) -> None:
    accumulated(job, 8, divided=False)


def _scaled(job: Job, clip: Callable[[Any, Any], None]) -> None:
    """Train with a GradScaler, and clip the gradients before the update."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    job.backward = lambda loss, step: scaler.scale(loss).backward()

    def update(optimizer: Any, step: int) -> None:
        clip(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()

    job.update = update


@fault("mlp", "clipping_order", also=("weight_update_ratio", *LOST))
def clip_before_unscale(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    _scaled(job, lambda scaler, optimizer: nn.utils.clip_grad_norm_(job.model.parameters(), 1.0))


@fault("cnn", "clipping_order", also=("weight_update_ratio", *LOST))
def clip_before_unscale_of_a_cnn(job: Job) -> None:
    _scaled(job, lambda scaler, optimizer: nn.utils.clip_grad_norm_(job.model.parameters(), 0.5))


@fault("cnn", "frozen_batchnorm")
def batch_norm_without_momentum(job: Job) -> None:
    for module in job.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0


@fault("cnn", "frozen_batchnorm", also=("loss_spike",))
def batch_norm_in_evaluation_mode(job: Job) -> None:
    def set_mode(model: nn.Module, training: bool) -> None:
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    job.set_mode = set_mode


@fault("mlp", "loss_not_depending_on_input", also=LOST)
def mean_over_the_batch(job: Job) -> None:
    job.model = nn.Sequential(_Averaging(), *(m for m in job.model if not isinstance(m, nn.Dropout)))


class _Averaging(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0, keepdim=True).expand_as(x)


@fault("rnn", "loss_not_depending_on_input", also=LOST)
def states_that_are_not_read(job: Job) -> None:
    model: Any = job.model

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(torch.ones_like(x))

    job.model = Blind()


@fault("mlp", "shuffled_targets", also=LOST)
def targets_of_another_order(job: Job) -> None:
    batch = job.batch
    job.steps = 130

    def shuffled(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch(step)
        return x, y[torch.randperm(len(y), generator=job._draws)]

    job.batch = shuffled


@fault("cnn", "frozen_parameter")
def layers_that_stay_frozen(job: Job) -> None:
    job.model[1].requires_grad_(False)


@fault("mlp", "softmax_axis", also=("loss_input", *LOST))
def softmax_over_the_batch(job: Job) -> None:
    job.model = nn.Sequential(*job.model, nn.LogSoftmax(0))
    job.criterion = nn.functional.nll_loss


@fault("mlp", "target_scale", also=("weight_update_ratio", *LOST))
def targets_in_thousands(job: Job) -> None:
    job.model[-1] = nn.Linear(64, 1)
    job.criterion = lambda output, y: nn.functional.mse_loss(output, 1000.0 * y[:, None])


@fault("mlp", "over_regularization", also=("weight_update_ratio", *LOST))
def weight_decay_of_thirty(job: Job) -> None:
    job.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=30.0)


@fault("cnn", "constant_input", also=LOST)
def channel_that_was_overwritten(job: Job) -> None:
    batch, layers = job.batch, list(job.model)
    job.model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers[2:])

    def of_three(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = batch(step)
        return torch.stack([x, torch.full_like(x, -0.5), x.flip(1)], 1), y

    job.batch = of_three
