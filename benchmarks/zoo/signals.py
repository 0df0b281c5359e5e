"""Faults of losses, data and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from .fault import LOST, fault
from .job import Job, Transformer

F = nn.functional


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
    kept = [job.batch(step) for step in range(4)]
    job.batch = lambda step: kept[step % 4]


@fault("mlp", "exploding_tensor")
def nan_in_the_data(job: Job) -> None:
    _data(
        job,
        lambda x, y, step: (x.clone().index_fill_(0, torch.tensor([3]), math.nan) if step == 40 else x, y),
    )


@fault("cnn", "shuffled_targets", *LOST)
def targets_shuffled(job: Job) -> None:
    _data(job, lambda x, y, _: (x, torch.randint(10, y.shape)))


@fault("mlp", "loss_spike", also=("weight_update_ratio",))
def one_batch_far_off(job: Job) -> None:
    _data(job, lambda x, y, step: (x * (300 if step == 50 else 1), y))


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
        output = job.model(x)
        return output + (output * 0).sum().sqrt()

    job.forward = forward
