"""Faults in the setup of a training for the benchmark of ``preflight``, planted into drawn healthy setups."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from .preflight_setups import Called, Drawn, drawn

F = nn.functional
PLAIN = ("vectors", "regression", "labels", "images", "recurrent", "autoencoder")
CLASSES = ("vectors", "zero_head", "images", "recurrent", "residual")
FEATURES = ("vectors", "regression", "labels", "autoencoder")


class Planted(NamedTuple):
    """Fault, the setups that can have it, and the rules that name it."""

    plant: Callable[[Drawn, random.Random], None]
    setups: tuple[str, ...]
    named: tuple[str, ...]


PLANTED: dict[str, Planted] = {}


def planted(setups: tuple[str, ...], *named: str) -> Callable[[Any], Any]:
    """Register a function that plants a fault."""

    def add(plant: Callable[[Drawn, random.Random], None]) -> Any:
        PLANTED[plant.__name__] = Planted(plant, setups, named)
        return plant

    return add


def faulty(name: str, seed: int) -> Drawn:
    """Return a drawn setup with the fault."""
    setup, rng = _sound(name, seed)
    PLANTED[name].plant(setup, rng)
    return setup


def sound(name: str, seed: int) -> Drawn:
    """Return the setup of ``faulty`` without the fault."""
    return _sound(name, seed)[0]


def _sound(name: str, seed: int) -> tuple[Drawn, random.Random]:
    rng = random.Random(f"{name} {seed}")
    return drawn(rng.choice(PLANTED[name].setups), rng.getrandbits(30)), rng


def _around(setup: Drawn, run: Callable[..., Any]) -> None:
    setup.model = Called(lambda m, *inputs: run(m.inner, *inputs), inner=setup.model)


def _exchange(setup: Drawn, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Apply a function to the outputs."""
    _around(setup, lambda inner, *inputs: run(inner(*inputs)))


@planted(PLAIN, "unsuitable_learning_rate", "weight_update_ratio")
def learning_rate_far_too_large(setup: Drawn, rng: random.Random) -> None:
    setup.held = setup.made()
    for group in setup.held.param_groups:
        group["lr"] *= 10 ** rng.uniform(3, 4)


@planted(PLAIN, "unsuitable_learning_rate", "weight_update_ratio", "unchanged_tensor")
def learning_rate_far_too_small(setup: Drawn, rng: random.Random) -> None:
    setup.held = setup.made()
    for group in setup.held.param_groups:
        group["lr"] *= 10 ** -rng.uniform(4, 5)


@planted(PLAIN, "optimizer_does_not_learn")
def weight_decay_far_too_large(setup: Drawn, rng: random.Random) -> None:
    decay = rng.uniform(1, 3)
    setup.optimizer = lambda parameters: torch.optim.SGD(parameters, 0.1, weight_decay=10 * decay)


@planted(CLASSES, "unheld_parameter")
def layer_replaced_after_the_optimizer(setup: Drawn, rng: random.Random) -> None:
    setup.held = setup.made()
    linears = [(n, m) for n, m in setup.model.named_modules() if type(m) is nn.Linear]
    name, last = linears[-1]
    parent, _, leaf = name.rpartition(".")
    setattr(setup.model.get_submodule(parent), leaf, nn.Linear(last.in_features, last.out_features))


@planted(PLAIN, "unheld_parameter")
def optimizer_of_an_earlier_copy(setup: Drawn, rng: random.Random) -> None:
    setup.held = setup.made()
    setup.model = copy.deepcopy(setup.model)


@planted(PLAIN, "missing_gradient")
def layer_that_is_never_called(setup: Drawn, rng: random.Random) -> None:
    setup.model.spare = nn.Linear(8, 8)
    if isinstance(setup.model, nn.Sequential):
        setup.model = Called(lambda m, x: m.inner(x), inner=setup.model[:-1], spare=setup.model[-1])


@planted(("vectors", "images", "labels", "zero_head"), "missing_gradient")
def trunk_cut_off(setup: Drawn, rng: random.Random) -> None:
    layers = setup.model
    setup.model = Called(lambda m, x: m.head(m.body(x).detach()), body=layers[:-1], head=layers[-1])


@planted(CLASSES, "loss_input")
def softmax_in_the_model(setup: Drawn, rng: random.Random) -> None:
    if rng.random() < 0.5:
        _exchange(setup, lambda x: x.softmax(1))
    else:
        _exchange(setup, lambda x: x.exp() / x.exp().sum(1, keepdim=True))


@planted(CLASSES, "loss_input")
def logits_for_nll(setup: Drawn, rng: random.Random) -> None:
    setup.criterion = F.nll_loss


@planted(("labels",), "loss_input")
def sigmoid_twice(setup: Drawn, rng: random.Random) -> None:
    _exchange(setup, torch.sigmoid)


@planted(CLASSES, "samples_mixed")
def softmax_over_the_batch(setup: Drawn, rng: random.Random) -> None:
    _exchange(setup, lambda x: x.softmax(0))


@planted(("recurrent",), "samples_mixed")
def batch_taken_for_time(setup: Drawn, rng: random.Random) -> None:
    setup.model.rnn.batch_first = False


@planted(CLASSES, "initial_loss", "cannot_overfit_one_batch")
def wrong_sign(setup: Drawn, rng: random.Random) -> None:
    setup.criterion = lambda outputs, target: -F.cross_entropy(outputs, target)


@planted(FEATURES, "ignored_input")
def features_that_are_sliced_away(setup: Drawn, rng: random.Random) -> None:
    count = setup.inputs[0].shape[1] // rng.choice((2, 3))
    _around(setup, lambda inner, x: inner(torch.cat([x[:, :-count], x[:, -count:] * 0], 1)))


@planted(("attention",), "ignored_input")
def mask_that_is_ignored(setup: Drawn, rng: random.Random) -> None:
    _around(setup, lambda inner, ids, mask: inner(ids, torch.ones_like(mask)))


@planted(("denoiser", "table"), "ignored_input")
def second_input_ignored(setup: Drawn, rng: random.Random) -> None:
    _around(setup, lambda inner, x, other: inner(x, torch.zeros_like(other)))


@planted(PLAIN, "output_ignores_input", "loss_not_depending_on_input")
def input_overwritten(setup: Drawn, rng: random.Random) -> None:
    _around(setup, lambda inner, x: inner(torch.ones_like(x)))


@planted(PLAIN, "output_not_repeatable")
def dropout_that_stays_on(setup: Drawn, rng: random.Random) -> None:
    _around(setup, lambda inner, x: F.dropout(inner(x), 0.2))


@planted(FEATURES, "loss_not_scalar")
def loss_without_a_reduction(setup: Drawn, rng: random.Random) -> None:
    criterion: Any = setup.criterion
    setup.criterion = lambda outputs, target: criterion(outputs, target, reduction="none")


@planted(("regression",), "bad_targets")
def targets_that_broadcast(setup: Drawn, rng: random.Random) -> None:
    setup.target = setup.target.squeeze(1)


@planted(CLASSES, "bad_targets")
def classes_counted_from_one(setup: Drawn, rng: random.Random) -> None:
    setup.target = setup.target + 1


@planted(("regression", "autoencoder"), "output_scale")
def targets_of_another_scale(setup: Drawn, rng: random.Random) -> None:
    setup.criterion = F.mse_loss
    setup.target = setup.target * 1e-3 if rng.random() < 0.5 else 300 + setup.target


@planted(FEATURES, "input_not_normalized")
def inputs_far_too_large(setup: Drawn, rng: random.Random) -> None:
    setup.inputs = (setup.inputs[0] * rng.uniform(100, 1000),)


@planted(CLASSES, "one_class_batch")
def sorted_data(setup: Drawn, rng: random.Random) -> None:
    setup.target = torch.zeros_like(setup.target)


@planted(("vectors", "images", "recurrent"), "initial_loss")
def head_far_too_large(setup: Drawn, rng: random.Random) -> None:
    last = [m for m in setup.model.modules() if type(m) is nn.Linear][-1]
    nn.init.normal_(last.weight, std=rng.uniform(5, 15))


@planted(("vectors", "labels"), "poor_weight_initialization")
def weights_that_are_all_equal(setup: Drawn, rng: random.Random) -> None:
    nn.init.constant_(setup.model[0].weight, rng.uniform(0.02, 0.1))


@planted(("vectors", "labels", "regression"), "dead_relu", "all_zero")
def relus_that_never_open(setup: Drawn, rng: random.Random) -> None:
    nn.init.constant_(setup.model[0].bias, -rng.uniform(50, 100))
    setup.model[1] = nn.ReLU()


@planted(FEATURES, "wrong_gradient")
def backward_written_wrongly(setup: Drawn, rng: random.Random) -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 2 * ctx.saved_tensors[0] ** 2 * grad

    _exchange(setup, lambda x: x + Cube.apply(x))
    setup.expected["gradcheck"] = True


@planted(("frozen_trunk",), "frozen_parameter_changes")
def trunk_that_is_not_frozen(setup: Drawn, rng: random.Random) -> None:
    setup.model.requires_grad_(True)
    setup.expected["frozen"] = ["0"]


@planted(PLAIN, "frozen_parameter_changes")
def frozen_parameter_written_to(setup: Drawn, rng: random.Random) -> None:
    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        if m.training:
            m.gain.data.mul_(0.999)
        return m.inner(x * m.gain)

    setup.model = Called(run, inner=setup.model)
    setup.model.gain = nn.Parameter(torch.ones(()), requires_grad=False)


@planted(("vectors", "images", "recurrent"), "unexpected_output", "step_fails", "bad_targets")
def head_of_another_size(setup: Drawn, rng: random.Random) -> None:
    classes = int(setup.target.max()) + 1
    linears = [(n, m) for n, m in setup.model.named_modules() if type(m) is nn.Linear]
    name, last = linears[-1]
    parent, _, leaf = name.rpartition(".")
    setattr(setup.model.get_submodule(parent), leaf, nn.Linear(last.in_features, classes + 7))
    setup.expected["output_shape"] = (None, classes)


@planted(FEATURES, "exploding_tensor", "non_finite")
def root_of_zero(setup: Drawn, rng: random.Random) -> None:
    _exchange(setup, lambda x: x + (x * 0).sum().sqrt())
