"""Situations with optimizer state that is older than our step: resumed runs of convolution nets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..parts import conv, cross_entropy, images, mlp, rows, sgd
from ..situation import Run, situation

Make = Callable[[Any], torch.optim.Optimizer]


def resumed(run: Run, make: Make, net: Any = conv, data: Any = images, loaded: bool = False) -> None:
    """Train half of the batches by the usual loop and the others by the run's form.

    Args:
        run: the run.
        make: makes the optimizer.
        net: makes the model.
        data: makes the batches.
        loaded: continue in new objects that load the ``state_dict`` of both.
    """
    model = run.model(net())
    optimizer, halves = make(model), data()
    first = run.usual(model, cross_entropy(), optimizer)
    for batch in halves[:10]:
        first(batch)
    if loaded:
        states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        model = run.model(net())
        optimizer = make(model)
        model.load_state_dict(states[0])
        optimizer.load_state_dict(states[1])
    step = run.step(model, cross_entropy(), optimizer)
    for batch in halves[10:]:
        step(batch)
    for number, state in enumerate(optimizer.state.values()):
        run.keep(**{f"{key} {number}": value for key, value in state.items()})


def optimizer(kind: str, **options: Any) -> Make:
    """Return a function that makes an optimizer of a model."""
    return lambda model: getattr(torch.optim, kind)(model.parameters(), **{"lr": 2e-3, **options})


@situation("channels_last")
def adamw_resumed(run: Run) -> None:
    """Resume AdamW's moments under a channels_last plan."""
    resumed(run, optimizer("AdamW"), loaded=True)


@situation("channels_last fused", slow=True)
def adamw_resumed_fused_plan(run: Run) -> None:
    """Resume AdamW's moments under a plan with channels_last and the fused update."""
    resumed(run, optimizer("AdamW"), loaded=True)


@situation("channels_last")
def adamw_fused_by_user(run: Run) -> None:
    """Resume the moments of ``AdamW(fused=True)`` under a channels_last plan."""
    resumed(run, optimizer("AdamW", fused=True), loaded=True)


@situation("channels_last captured", slow=True)
def adamw_foreach_by_user(run: Run) -> None:
    """Resume the moments of ``AdamW(foreach=True)`` under a captured channels_last plan."""
    resumed(run, optimizer("AdamW", foreach=True))


@situation("channels_last fused")
def sgd_momentum_resumed(run: Run) -> None:
    """Resume SGD's momentum under a plan with channels_last and the fused update."""
    resumed(run, sgd)


@situation("channels_last")
def sgd_fused_by_user(run: Run) -> None:
    """Resume the momentum of ``SGD(fused=True, nesterov=True)`` under a channels_last plan."""
    resumed(run, optimizer("SGD", lr=0.05, momentum=0.9, nesterov=True, fused=True))


@situation("channels_last fused", slow=True)
def adagrad_resumed(run: Run) -> None:
    """Resume Adagrad's sums, which exist before the first update, under a channels_last plan."""
    resumed(run, optimizer("Adagrad", lr=0.01))


@situation("channels_last fused", slow=True)
def amsgrad_maximised(run: Run) -> None:
    """Train by ``AdamW(amsgrad=True, maximize=False)`` from scratch under channels_last and fused."""
    model = run.model(conv())
    step = run.step(model, cross_entropy(), optimizer("AdamW", amsgrad=True)(model))
    for batch in images():
        step(batch)


@situation("channels_last fused", slow=True)
def odd_shapes(run: Run) -> None:
    """Resume moments of convolutions with one input channel and with kernels of 1 x 1."""

    def net() -> torch.nn.Module:
        layers = [torch.nn.Conv2d(3, 6, 1), torch.nn.SiLU(), torch.nn.Conv2d(6, 6, 3, groups=6)]
        return torch.nn.Sequential(*layers, *conv()[4:5], torch.nn.Flatten(), torch.nn.Linear(24, 5))

    resumed(run, optimizer("AdamW"), net)


@situation("foreach", slow=True)
def rmsprop_foreach_plan(run: Run) -> None:
    """Resume RMSprop with momentum and centring under a foreach plan."""
    resumed(run, optimizer("RMSprop", momentum=0.9, centered=True), mlp, rows)


@situation("fused", slow=True)
def dense_fused_plan(run: Run) -> None:
    """Resume Adam under a fused plan, with two parameter groups of other rates."""

    def grouped(model: Any) -> torch.optim.Optimizer:
        groups = [{"params": model[:3].parameters()}, {"params": model[3:].parameters(), "lr": 1e-2}]
        return torch.optim.Adam(groups, 2e-3, weight_decay=0.01)

    resumed(run, grouped, mlp, rows, loaded=True)


@situation()
def rate_in_a_tensor(run: Run) -> None:
    """Train by Adam with its rate in a tensor, which the loop changes in place."""
    model, rate = run.model(mlp()), torch.tensor(2e-3)
    step = run.step(model, cross_entropy(), torch.optim.Adam(model.parameters(), rate, foreach=False))
    for batch in rows():
        step(batch)
        rate.mul_(0.95)


@situation("fused", slow=True)
def rate_in_a_tensor_fused(run: Run) -> None:
    """Train by AdamW with its rate in a tensor under a fused plan."""
    model, rate = run.model(mlp()), torch.tensor(2e-3)
    step = run.step(model, cross_entropy(), torch.optim.AdamW(model.parameters(), rate))
    for batch in rows():
        step(batch)
        rate.mul_(0.95)


@situation()
def optimizer_of_the_user(run: Run) -> None:
    """Train by an optimizer of the user's own, which counts in an attribute and keeps slow weights."""

    class Lookahead(torch.optim.SGD):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.updates = 0
            self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            self.updates += 1
            if self.updates % 5 == 0:
                parameters = [p for group in self.param_groups for p in group["params"]]
                for parameter, slow in zip(parameters, self.slow, strict=True):
                    parameter.data.copy_(slow.lerp_(parameter.data, 0.5))
            return result

    model = run.model(mlp())
    optimizer = Lookahead(model.parameters(), 0.05, 0.9)
    step = run.step(model, cross_entropy(), optimizer)
    for batch in rows():
        step(batch)
    run.keep(updates=optimizer.updates)
