"""Faults of the training loop: updates, parameters of the optimizer, modes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from .fault import LOST, fault
from .job import Job, copied

F = nn.functional


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
