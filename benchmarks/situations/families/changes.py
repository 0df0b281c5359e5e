"""Situations in which the model, the optimizer or the mode changes in the middle of training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..parts import Classifier, adamw, batchnorm, cross_entropy, images, mlp, rows, sgd
from ..situation import Run, situation


def changed(
    run: Run,
    change: Callable[[Any, Any], None],
    at: int = 8,
    net: Callable[[], Any] = mlp,
    data: Callable[[], list[Any]] = rows,
    make: Any = sgd,
) -> Any:
    """Train a model that ``change(model, optimizer)`` changes before batch ``at``."""
    model = run.model(net())
    optimizer = make(model)
    step = run.step(model, cross_entropy(), optimizer)
    for number, batch in enumerate(data()):
        if number == at:
            change(model, optimizer)
        step(batch)
    return model


@situation()
def frozen_layers(run: Run) -> None:
    """Train a model whose first layers are frozen from the start."""

    def net() -> Any:
        model = mlp()
        model[:2].requires_grad_(False)
        return model

    changed(run, lambda model, optimizer: None, net=net)


@situation()
def frozen_later(run: Run) -> None:
    """Freeze layers in the middle."""
    changed(run, lambda model, optimizer: model[:2].requires_grad_(False))


@situation(slow=True)
def unfrozen_later(run: Run) -> None:
    """Unfreeze layers in the middle, as in gradual fine-tuning."""

    def net() -> Any:
        model = mlp()
        model[:4].requires_grad_(False)
        return model

    changed(run, lambda model, optimizer: model.requires_grad_(True), net=net)


@situation(slow=True)
def group_added_later(run: Run) -> None:
    """Unfreeze layers and pass them to the optimizer as another group in the middle."""

    def unfreeze(model: Any, optimizer: Any) -> None:
        model[:4].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[:4].parameters()), "lr": 0.01})

    def net() -> Any:
        model = mlp()
        model[:4].requires_grad_(False)
        return model

    changed(run, unfreeze, net=net, make=lambda model: sgd(model[4:]))


@situation()
def head_replaced(run: Run) -> None:
    """Replace the output layer in the middle; the optimizer gets the new weights."""

    def replace(model: Any, optimizer: Any) -> None:
        model[5] = nn.Linear(24, 5)
        optimizer.add_param_group({"params": list(model[5].parameters())})

    changed(run, replace)


@situation(slow=True)
def activation_replaced(run: Run) -> None:
    """Replace an activation in the middle."""
    changed(run, lambda model, optimizer: model.__setitem__(2, nn.Tanh()))


@situation(slow=True)
def layer_added(run: Run) -> None:
    """Append a layer to a ``ModuleList`` in the middle, as progressive growing does."""

    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(16, 16)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x).tanh()
            return x

    def grow(model: Any, optimizer: Any) -> None:
        model.body.layers.append(nn.Linear(16, 16))
        optimizer.add_param_group({"params": list(model.body.layers[1].parameters())})

    changed(run, grow, net=lambda: Classifier(Growing()))


@situation(slow=True)
def forward_replaced(run: Run) -> None:
    """Replace the method ``forward`` of one module in the middle."""

    def replace(model: Any, optimizer: Any) -> None:
        inner = model[3].forward
        model[3].forward = lambda x: inner(x) * 0.5

    changed(run, replace)


@situation()
def dropout_changed(run: Run) -> None:
    """Raise the share of a dropout in the middle."""

    def net() -> Any:
        return Classifier(nn.Dropout(0.1))

    changed(run, lambda model, optimizer: setattr(model.body, "p", 0.5), net=net)


@situation(slow=True)
def eval_mode_later(run: Run) -> None:
    """Bring BatchNorm to eval mode in the middle and train on."""
    changed(run, lambda model, optimizer: model[1].eval(), net=batchnorm, data=images)


@situation(slow=True)
def evaluations_between(run: Run) -> None:
    """Evaluate in eval mode without gradients after every third batch."""
    model = run.model(batchnorm())
    step = run.step(model, cross_entropy(), sgd(model))
    scores = []
    for number, (x, y) in enumerate(images()):
        step((x, y))
        if number % 3 == 2:
            model.eval()
            with torch.no_grad():
                scores.append(cross_entropy()(model(x), y))
            model.train()
    run.keep(scores=torch.stack(scores))


@situation()
def weights_loaded(run: Run) -> None:
    """Save model and optimizer after five batches and load them after twelve."""
    model = run.model(mlp())
    optimizer = adamw(model)
    step, saved = run.step(model, cross_entropy(), optimizer), None
    for number, batch in enumerate(rows()):
        if number == 5:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            run.keep(keys=list(saved[0]), state=sorted(saved[1]["param_groups"][0]))
        if number == 12:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        step(batch)


@situation("channels_last")
def weights_loaded_channels_last(run: Run) -> None:
    """Load the state of model and optimizer, saved in plain layout, in the middle of a channels_last plan."""
    model = run.model(batchnorm())
    optimizer = adamw(model)
    step = run.step(model, cross_entropy(), optimizer)
    first = copy.deepcopy(model.state_dict())
    for number, batch in enumerate(images()):
        if number == 12:
            model.load_state_dict(first)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        step(batch)


@situation()
def data_assigned(run: Run) -> None:
    """Assign other tensors to ``.data`` in the middle, as quantisation and weight surgery do."""

    def assign(model: Any, optimizer: Any) -> None:
        for parameter in model.parameters():
            parameter.data = (parameter.data * 64).round() / 64

    changed(run, assign)


@situation(slow=True)
def optimizer_replaced(run: Run) -> None:
    """Make a new optimizer and a new step in the middle, as training in two phases does."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, batch in enumerate(rows()):
        if number == 10:
            step = run.step(model, nn.CrossEntropyLoss(label_smoothing=0.1), adamw(model[3:]))
        step(batch)


@situation(slow=True)
def loss_replaced(run: Run) -> None:
    """Change an attribute of the criterion in the middle."""
    model, criterion = run.model(mlp()), nn.CrossEntropyLoss()
    step = run.step(model, criterion, sgd(model))
    for number, batch in enumerate(rows()):
        if number == 8:
            criterion.label_smoothing = 0.3
        step(batch)
