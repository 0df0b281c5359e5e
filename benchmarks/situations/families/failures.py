"""Situations with graph breaks, recompilations, exceptions, copies and files in the middle of training."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from ..parts import Classifier, F, cross_entropy, mlp, rows, sgd, train
from ..situation import Run, situation


@situation(slow=True)
def printed(run: Run) -> None:
    """Print in the middle of the model, which breaks the graph."""

    class Printing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            print("mean", x.mean())
            return F.silu(x)

    train(run, Classifier(Printing()))


@situation(slow=True)
def read_by_item(run: Run) -> None:
    """Branch on a number that ``item()`` reads from a tensor."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.taken = nn.Linear(16, 16), nn.Linear(16, 16), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = x.mean().item() > 0.12
            self.taken.append(first)
            return self.a(x) if first else self.b(x).tanh()

    model = train(run, Classifier(Branching()))
    run.keep(taken=model.body.taken)


@situation(slow=True)
def logged_losses(run: Run) -> None:
    """Append ``loss.item()`` to a list of the model inside the loss."""

    def logged(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        model.log.append(loss.item())
        return loss

    net = mlp()
    net.log = []
    model = train(run, net, loss=logged)
    run.keep(log=torch.tensor(model.log))


@situation()
def through_numpy(run: Run) -> None:
    """Compute a part of the forward pass without gradients by NumPy."""

    class Outside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            order = torch.from_numpy(x.detach().numpy().argsort(1).copy())
            return x.gather(1, order) * 0.5 + x

    train(run, Classifier(Outside()))


@situation()
def recompile_limit(run: Run) -> None:
    """Read a number that differs in each pass from an attribute, so that Dynamo gives up."""

    class Annealed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.rate / 7 * x.tanh()

    model = run.model(Classifier(Annealed()))
    step = run.step(model, cross_entropy(), sgd(model))
    with torch._dynamo.config.patch(recompile_limit=3):
        for number, batch in enumerate(rows()):
            model.body.rate = number
            step(batch)


@situation()
def exception_in_the_middle(run: Run) -> None:
    """Train on after a batch whose width fails and one whose loss raises."""
    model, fails = run.model(mlp()), [False]

    def failing(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if fails[0]:
            raise ValueError("the user's own")
        return loss

    step, caught = run.step(model, failing, sgd(model)), []
    for number, (x, y) in enumerate(rows()):
        fails[0] = number == 6
        try:
            step((x[:, :5] if number == 3 else x, y))
        except (RuntimeError, ValueError) as error:
            caught.append(isinstance(error, ValueError))
    run.keep(caught=caught)


@situation()
def exception_in_backward(run: Run) -> None:
    """Train on after a hook raised in the backward pass, half of the gradients being there."""
    model, fails = run.model(mlp()), [False]

    def hook(gradient: torch.Tensor) -> None:
        if fails[0]:
            raise ValueError("the user's own")

    model[3].weight.register_hook(hook)
    step, caught = run.step(model, cross_entropy(), sgd(model)), 0
    for number, batch in enumerate(rows()):
        fails[0] = number == 6
        try:
            step(batch)
        except ValueError:
            caught += 1
    run.keep(caught=caught)


@situation()
def loss_is_not_finite(run: Run) -> None:
    """Skip batches whose loss is not finite by an optimizer hook's guard, and train on."""
    model = run.model(mlp())
    optimizer = sgd(model)

    def guard(optimizer: Any, *_: Any) -> None:
        for parameter in model.parameters():
            parameter.grad.nan_to_num_(0, 0, 0)

    optimizer.register_step_pre_hook(guard)
    step = run.step(model, cross_entropy(), optimizer)
    for number, (x, y) in enumerate(rows()):
        step((x * float("nan") if number in (5, 11) else x, y))


@situation(slow=True)
def step_copied(run: Run) -> None:
    """Copy a step with model and optimizer after five batches, and train both on."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for batch in rows(5):
        step(batch)
    second = copy.deepcopy(step)
    twin = second.spec.model if run.ours else second.model
    for a, b in zip(rows(8, seed=3), rows(8, seed=4), strict=True):
        step(a)
        second(b)
    run.keep(**{f"twin {name}": value.detach() for name, value in twin.named_parameters()})


@situation()
def module_holds_its_step(run: Run) -> None:
    """Copy a module that holds its step before any batch, and train the copy only."""

    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.step = run.step(self.net, cross_entropy())

    owner = Owner()
    fold = copy.deepcopy(owner)
    run.model(fold.net)
    run.keep(original=owner.net[0].weight.detach())
    optimizer = sgd(fold.net)
    for batch in rows():
        optimizer.zero_grad()
        fold.step.forward(batch).backward()
        optimizer.step()
    assert owner.net[0].weight.grad is None


@situation()
def step_pickled(run: Run) -> None:
    """Pickle a step with its model after five batches, and train the one that was read."""
    first = mlp()
    step = run.step(first, cross_entropy(), sgd(first))
    for batch in rows(5):
        step(batch)
    again = pickle.loads(pickle.dumps(step))
    run.model(again.spec.model if run.ours else again.model)
    for batch in rows(15, seed=3):
        again(batch)


@situation(slow=True)
def model_saved_whole(run: Run) -> None:
    """Save the whole model by ``torch.save`` in the middle, and go on with the one that was read."""
    model = train(run, mlp(), rows(10))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    second = run.model(torch.load(file, weights_only=False))
    step = run.step(second, cross_entropy(), sgd(second))
    for batch in rows(10, seed=3):
        step(batch)
