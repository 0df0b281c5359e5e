"""Situations with several forward or backward passes an update."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ..parts import F, adamw, cross_entropy, mlp, rows, sgd, train
from ..situation import Run, situation


@situation()
def lbfgs(run: Run) -> None:
    """Train by LBFGS, whose ``step`` calls a closure, through ``forward``."""
    model = run.model(mlp())
    optimizer = torch.optim.LBFGS(model.parameters(), 0.05, max_iter=3)
    step = run.step(model, cross_entropy())
    for batch in rows(6):

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = step.forward(batch)
            loss.backward()
            return loss

        optimizer.step(closure)


@situation()
def lbfgs_passed(run: Run) -> None:
    """Pass LBFGS to the step, which has no closure to call: an error at once, or the right update."""
    model = run.model(mlp())
    optimizer = torch.optim.LBFGS(model.parameters(), 0.05, max_iter=3)
    if run.ours:
        step = run.step(model, cross_entropy(), optimizer)
        for batch in rows(6):
            step(batch)
        return
    for batch in rows(6):

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy()(model(batch[0]), batch[1])
            loss.backward()
            return loss

        run.losses.append(float(optimizer.step(closure).detach()))


@situation(slow=True)
def two_passes(run: Run) -> None:
    """Move the weights uphill and back between two passes of ``forward``, as SAM does."""
    model = run.model(mlp())
    optimizer, step = sgd(model), run.step(model, cross_entropy())
    for batch in rows():
        step.forward(batch).backward()
        uphill = [0.05 * p.grad / p.grad.norm() for p in model.parameters()]
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), uphill, strict=True):
                parameter.add_(change)
        optimizer.zero_grad()
        step.forward(batch).backward()
        with torch.no_grad():
            for parameter, change in zip(model.parameters(), uphill, strict=True):
                parameter.sub_(change)
        optimizer.step()
        optimizer.zero_grad()


@situation(slow=True)
def input_gradient(run: Run) -> None:
    """Train on adversarial inputs, whose gradient the loss computes by ``torch.autograd.grad``."""

    def adversarial(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0].detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), batch[1]), x)
        return F.cross_entropy(model(x.detach() + 0.1 * gradient.sign()), batch[1])

    train(run, mlp(), loss=adversarial)


@situation(slow=True)
def gradient_penalty(run: Run) -> None:
    """Train with the norm of the input's gradient in the loss, which needs a second derivative."""

    def penalised(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0].detach().requires_grad_(True)
        loss = F.cross_entropy(model(x), batch[1])
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + gradient.square().sum()

    train(run, mlp(), loss=penalised)


@situation(slow=True)
def functional_copy(run: Run) -> None:
    """Train through one inner update of ``functional_call``, as MAML does."""

    def outer(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        weights = dict(model.named_parameters())
        inner = F.cross_entropy(torch.func.functional_call(model, weights, (x[:8],)), y[:8])
        gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        moved = {n: w - 0.1 * g for (n, w), g in zip(weights.items(), gradients, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, moved, (x[8:],)), y[8:])

    train(run, mlp(), loss=outer)


@situation(slow=True)
def step_verified_in_the_middle(run: Run) -> None:
    """Call ``prepare``, ``verify`` and ``explain`` in the middle, which train nothing."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), adamw(model))
    for number, batch in enumerate(rows()):
        if run.ours and number in (0, 7):
            kept = copy.deepcopy(model.state_dict())
            step.prepare(batch)
            step.verify(batch)
            step.verify(batch, steps=2)
            str(step.explain())
            assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items())
        step(batch)


@situation()
def vmapped(run: Run) -> None:
    """Train an ensemble by ``vmap`` over stacked weights."""

    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 5, 8) / 3), nn.Parameter(torch.zeros(3, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.func.vmap(F.linear, in_dims=(None, 0, 0))(x, self.weight, self.bias)
            return out.tanh().mean(0)

    train(run, Ensemble())
