"""Faults, each injected into a healthy training of ``zoo``, and the rules that name their cause.

A fault is a function that changes a ``Job``.  Its first rules name the cause; ``also`` are others that show that
something is wrong without saying what.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .zoo import Job, Transformer, copied, digits, mlp

F = nn.functional


@dataclass(frozen=True)
class Fault:
    inject: Callable[[Job], None]
    kind: str
    """Of the model."""
    named: tuple[str, ...]
    """Rules that name the cause."""
    also: tuple[str, ...] = ()
    """Rules that show that there is one."""


FAULTS: dict[str, Fault] = {}
LOST = ("loss_not_decreasing",)


def fault(kind: str, *named: str, also: tuple[str, ...] = ()) -> Callable[[Callable[[Job], None]], Any]:
    def add(inject: Callable[[Job], None]) -> Callable[[Job], None]:
        FAULTS[inject.__name__] = Fault(inject, kind, named, also)
        return inject

    return add


# -- updates ----------------------------------------------------------------------------------------


@fault("mlp", "gradient_not_zeroed")
def no_zero_grad(job: Job) -> None:
    job.before_backward = lambda optimizer, step: None


@fault("cnn", "gradient_not_zeroed")
def zero_grad_of_another_optimizer(job: Job) -> None:
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    job.before_backward = lambda optimizer, step: other.zero_grad()


@fault("transformer", "detached_loss", also=("missing_update", "unchanged_tensor"))
def zero_grad_after_backward(job: Job) -> None:
    job.before_backward = lambda optimizer, step: None

    def backward(loss: torch.Tensor, step: int) -> None:
        loss.backward()
        job.model.zero_grad()

    job.backward = backward


@fault("mlp", "missing_update", also=LOST)
def no_step(job: Job) -> None:
    job.update = lambda optimizer, step: None


@fault("rnn", "detached_loss", also=("missing_update",))
def no_backward(job: Job) -> None:
    job.backward = lambda loss, step: None


@fault("cnn", "unchanged_tensor", also=LOST)
def learning_rate_zero(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.SGD, lr=0.0)


@fault("mlp", "weight_update_ratio", also=("unchanged_tensor", *LOST))
def learning_rate_lost_in_rounding(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.SGD, lr=1e-9)


@fault("mlp", "weight_update_ratio", also=("loss_spike", "exploding_tensor", *LOST))
def learning_rate_too_large(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.Adam, lr=1.0)


@fault("cnn", "weight_update_ratio", also=("loss_spike", "exploding_tensor", *LOST))
def learning_rate_too_large_for_a_cnn(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.SGD, lr=100.0)


@fault("transformer", "weight_update_ratio", also=("loss_spike", "exploding_tensor", *LOST))
def learning_rate_too_large_for_a_transformer(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.AdamW, lr=0.5)


@fault("rnn", "weight_update_ratio", also=("loss_spike", "exploding_tensor", "saturated_activation", *LOST))
def learning_rate_too_large_for_a_rnn(job: Job) -> None:
    job.optimizer = functools.partial(torch.optim.RMSprop, lr=1.0)


@fault("mlp", "weight_update_ratio")
def half_precision_weights_that_swallow_updates(job: Job) -> None:
    job.model.bfloat16()
    batch = job.batch
    job.batch = lambda step: (batch(step)[0].bfloat16(), batch(step)[1])
    job.optimizer = functools.partial(torch.optim.SGD, lr=1e-5)


@fault("mlp", "initial_loss", also=("exploding_tensor", "weight_update_ratio"))
def loss_with_the_wrong_sign(job: Job) -> None:
    job.criterion = lambda outputs, targets: -F.cross_entropy(outputs, targets)


# -- who holds what ---------------------------------------------------------------------------------


@fault("mlp", "unheld_parameter")
def head_replaced_after_the_optimizer(job: Job) -> None:
    def made() -> tuple[nn.Module, Any]:
        optimizer = job.optimizer(job.model.parameters())
        job.model[-1] = nn.Linear(64, 10)
        return job.model, optimizer

    job.made = made


@fault("cnn", "unheld_parameter")
def optimizer_of_a_copy(job: Job) -> None:
    def made() -> tuple[nn.Module, Any]:
        optimizer = job.optimizer(job.model.parameters())
        job.model = copied(job.model)
        return job.model, optimizer

    job.made = made


@fault("transformer", "unheld_parameter")
def optimizer_of_one_layer(job: Job) -> None:
    job.made = lambda: (job.model, job.optimizer(job.model.layers[1].parameters()))


@fault("rnn", "missing_gradient")
def encoder_cut_off(job: Job) -> None:
    model: Any = job.model
    job.forward = lambda x: model.head(model.act(model.rnn(x)[0][:, -1].detach()))


@fault("cnn", "missing_gradient")
def encoder_under_no_grad(job: Job) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = job.model[:-1](x)
        return job.model[-1](x)

    job.forward = forward


@fault("transformer", "missing_gradient")
def layer_left_out(job: Job) -> None:
    model: Any = job.model
    job.forward = lambda x: model.head(model.norm(model.embed(x))).transpose(1, 2)


@fault("mlp", "detached_loss")
def loss_of_classes(job: Job) -> None:
    zero = torch.zeros(1, requires_grad=True)
    job.criterion = lambda outputs, targets: (outputs.argmax(1) != targets).float().mean() + 0 * zero.sum()


# -- modes ------------------------------------------------------------------------------------------


@fault("mlp", "wrong_mode")
def trained_in_evaluation_mode(job: Job) -> None:
    job.set_mode = lambda model, training: model.eval()


@fault("cnn", "wrong_mode")
def never_turned_back_to_training(job: Job) -> None:
    job.evaluations = 10
    job.set_mode = lambda model, training: None if training else model.eval()


@fault("mlp", "active_in_evaluation")
def dropout_in_evaluation(job: Job) -> None:
    job.evaluations = 10
    job.set_mode = lambda model, training: model.train()


@fault("cnn", "active_in_evaluation")
def batch_norm_trains_in_evaluation(job: Job) -> None:
    job.evaluations = 10
    job.set_mode = lambda model, training: model.train()


# -- losses -----------------------------------------------------------------------------------------


@fault("mlp", "loss_input")
def softmax_before_cross_entropy(job: Job) -> None:
    job.model.append(nn.Softmax(1))


@fault("transformer", "loss_input")
def softmax_before_cross_entropy_of_a_transformer(job: Job) -> None:
    job.forward = lambda x: job.model(x).softmax(1)


@fault("cnn", "loss_input")
def nll_of_logits(job: Job) -> None:
    job.criterion = F.nll_loss


@fault("mlp", "loss_input")
def sigmoid_before_bce_with_logits(job: Job) -> None:
    job.model.append(nn.Sigmoid())
    job.criterion = lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 10).float())


@fault("cnn", "initial_loss", also=("vanishing_gradient", "poor_weight_initialization"))
def last_layer_far_too_large(job: Job) -> None:
    nn.init.normal_(job.model[-1].weight, std=20.0)


@fault("transformer", "initial_loss", also=("vanishing_gradient", "poor_weight_initialization"))
def head_far_too_large(job: Job) -> None:
    nn.init.normal_(job.model.head.weight, std=2.0)


# -- data -------------------------------------------------------------------------------------------


def _data(
    job: Job, change: Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
) -> None:
    batch = job.batch
    job.batch = lambda step: change(*batch(step), step)


@fault("mlp", "input_not_normalized", also=("initial_loss",))
def pixels_up_to_255(job: Job) -> None:
    _data(job, lambda x, y, _: ((x - x.min()) * 50, y))


@fault("rnn", "input_not_normalized", also=("saturated_activation", *LOST))
def pixels_up_to_255_for_a_rnn(job: Job) -> None:
    _data(job, lambda x, y, _: ((x - x.min()) * 50, y))


@fault("cnn", "input_not_normalized", also=LOST)
def images_all_alike(job: Job) -> None:
    _data(job, lambda x, y, _: (torch.zeros_like(x), y))


@fault("mlp", "repeated_batch")
def first_batch_again_and_again(job: Job) -> None:
    kept = job.batch(0)
    job.batch = lambda step: kept


@fault("transformer", "repeated_batch")
def loader_that_does_not_shuffle_four_batches(job: Job) -> None:
    kept = job.batch(0)
    job.batch = lambda step: kept


@fault("mlp", "exploding_tensor")
def nan_in_the_data(job: Job) -> None:
    _data(
        job,
        lambda x, y, step: (x.clone().index_fill_(0, torch.tensor([3]), math.nan) if step == 40 else x, y),
    )


@fault("cnn", *LOST)
def targets_shuffled(job: Job) -> None:
    _data(job, lambda x, y, _: (x, torch.randint(10, y.shape)))


@fault("mlp", "loss_spike", also=("weight_update_ratio",))
def one_batch_far_off(job: Job) -> None:
    _data(job, lambda x, y, step: (x * (300 if step == 50 else 1), y))


# -- numbers ----------------------------------------------------------------------------------------


@fault("mlp", "exploding_tensor")
def logarithm_of_zero(job: Job) -> None:
    job.criterion = lambda out, y: -(out.relu() + 0 * out).log().gather(1, y[:, None]).mean()


@fault("transformer", "exploding_tensor")
def everything_masked(job: Job) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        hidden = Transformer.forward(job.model, x)  # type: ignore[arg-type]
        return hidden + (torch.full_like(hidden, -math.inf) - torch.full_like(hidden, -math.inf)).mul(
            hidden > 1e9
        )

    job.forward = forward


@fault("cnn", "exploding_tensor")
def root_of_zero(job: Job) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        found = job.model(x)
        return found + (found * 0).sum().sqrt()

    job.forward = forward


# -- depth and activations --------------------------------------------------------------------------


def _deep(width: int, depth: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), act())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


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
    for layer in job.model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=5.0)


@fault("rnn", "saturated_activation")
def tanh_of_huge_states(job: Job) -> None:
    model: Any = job.model
    job.forward = lambda x: model.head(model.act(100 * model.rnn(x)[0][:, -1]))


@fault("mlp", "poor_weight_initialization", also=("initial_loss", "loss_spike", "weight_update_ratio"))
def weights_that_grow_from_layer_to_layer(job: Job) -> None:
    job.model = _deep(64, 6, nn.ReLU)
    for layer in job.model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.8)


@fault("mlp", "poor_weight_initialization")
def weights_all_alike(job: Job) -> None:
    job.model = mlp()
    nn.init.constant_(job.model[1].weight, 0.05)


@fault("mlp", "all_zero", also=("poor_weight_initialization", *LOST))
def weights_all_zero(job: Job) -> None:
    for layer in job.model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)


# -- too much of it ---------------------------------------------------------------------------------


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
