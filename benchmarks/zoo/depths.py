"""Faults of initialisation, activations and length of training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .fault import LOST, fault
from .job import Job, digits, mlp

F = nn.functional


def _deep(width: int, depth: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), act())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def _initialize(model: nn.Module, init: Callable[..., Any], **how: float) -> None:
    """Initialize the weights of all linear layers by ``init``."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            init(layer.weight, **how)


@fault("mlp", "vanishing_gradient", also=LOST)
def deep_sigmoids(job: Job) -> None:
    job.model = _deep(64, 14, nn.Sigmoid)


@fault("mlp", "dead_relu", also=("all_zero", *LOST))
def relus_that_never_open(job: Job) -> None:
    nn.init.constant_(job.model[1].bias, -100.0)


@fault("cnn", "dead_relu", also=("all_zero", *LOST))
def relus_of_a_cnn_that_never_open(job: Job) -> None:
    nn.init.constant_(job.model[2].bias, -30.0)


@fault("mlp", "saturated_activation", also=("poor_weight_initialization", "vanishing_gradient"))
def tanh_at_its_limits(job: Job) -> None:
    job.model = _deep(64, 3, nn.Tanh)
    _initialize(job.model, nn.init.normal_, std=5.0)


@fault("rnn", "saturated_activation")
def tanh_of_huge_states(job: Job) -> None:
    model: Any = job.model
    job.forward = lambda x: model.head(model.act(100 * model.rnn(x)[0][:, -1]))


@fault("mlp", "poor_weight_initialization", also=("initial_loss", "loss_spike", "weight_update_ratio"))
def weights_that_grow_from_layer_to_layer(job: Job) -> None:
    job.model = _deep(64, 6, nn.ReLU)
    _initialize(job.model, nn.init.normal_, std=0.8)


@fault("mlp", "poor_weight_initialization")
def weights_all_alike(job: Job) -> None:
    job.model = mlp()
    nn.init.constant_(job.model[1].weight, 0.05)


@fault("mlp", "all_zero", also=("poor_weight_initialization", *LOST))
def weights_all_zero(job: Job) -> None:
    _initialize(job.model, nn.init.zeros_)


@fault("mlp", "overfit", also=("overtraining",))
def few_samples_for_many_steps(job: Job) -> None:
    job.samples, job.evaluations, job.steps = 60, 10, 300
    job.optimizer = functools.partial(torch.optim.Adam, lr=1e-2)


@fault("cnn", "overtraining", also=("overfit",))
def evaluations_without_progress(job: Job) -> None:
    job.evaluations, job.steps = 4, 200
    job.optimizer = functools.partial(torch.optim.SGD, lr=1e-7)


@fault("mlp", "overfit", also=("overtraining",))
def wrong_targets_learnt_by_heart(job: Job) -> None:
    job.samples, job.evaluations, job.steps = 100, 10, 300
    (x, y), _ = digits()
    wrong = torch.where(
        torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.5, (y[:100] + 1) % 10, y[:100]
    )

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(100, (32,), generator=job._draws)
        return x[chosen], wrong[chosen]

    job.batch = batch
    job.optimizer = functools.partial(torch.optim.Adam, lr=5e-3)
