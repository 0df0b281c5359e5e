"""Situations with hooks on modules, tensors, optimizers and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..parts import Classifier, F, cross_entropy, mlp, rows, sgd
from ..situation import Run, situation

Add = Callable[[Any, list[str]], Any]
"""Function that adds hooks to a model; they note their calls in the list.  It returns a handle, or ``None``."""


def hooked(run: Run, add: Add, at: int = 0, until: int = 99, net: Callable[[], Any] = mlp) -> None:
    """Train a model with hooks that are added before batch ``at`` and removed before batch ``until``."""
    model, calls, handle = run.model(net()), [], None
    optimizer = sgd(model)
    step = run.step(model, cross_entropy(), optimizer)
    for number, batch in enumerate(rows()):
        if number == at:
            handle = add(model, calls)
        if number == until:
            handle.remove()
        step(batch)
    run.keep(calls=calls)


def noted_output(model: Any, calls: list[str]) -> Any:
    """Add a forward hook that only notes its calls."""
    return model[2].register_forward_hook(lambda *_: calls.append("forward"))


def doubled_output(model: Any, calls: list[str]) -> Any:
    """Add a forward hook that replaces the output."""
    return model[2].register_forward_hook(lambda module, inputs, output: 2 * output)


def shifted_input(model: Any, calls: list[str]) -> Any:
    """Add a forward-pre hook that replaces the input."""

    def shift(module: nn.Module, inputs: Any) -> Any:
        calls.append("before")
        return (inputs[0] + 0.1,)

    return model[3].register_forward_pre_hook(shift)


def weaker_gradient(model: Any, calls: list[str]) -> Any:
    """Add a full backward hook that scales the gradient."""

    def scale(module: nn.Module, before: Any, after: Any) -> Any:
        calls.append("backward")
        return tuple(None if gradient is None else 0.1 * gradient for gradient in before)

    return model[3].register_full_backward_hook(scale)


def half_of_the_rows(model: Any, calls: list[str]) -> Any:
    """Add a tensor hook to a weight that drops a part of its gradient."""

    def drop(gradient: torch.Tensor) -> torch.Tensor:
        calls.append("weight")
        return gradient * (torch.arange(len(gradient)) < 12).to(gradient)[:, None]

    return model[0].weight.register_hook(drop)


@situation(slow=True)
def forward_hook(run: Run) -> None:
    """Note the calls of a module by a forward hook from the start."""
    hooked(run, noted_output)


@situation(slow=True)
def forward_hook_later(run: Run) -> None:
    """Add a forward hook after three batches and remove it after eight."""
    hooked(run, noted_output, 3, 8)


@situation()
def output_replaced_later(run: Run) -> None:
    """Add a forward hook that replaces the output after three batches."""
    hooked(run, doubled_output, 3)


@situation(slow=True)
def forward_pre_hook(run: Run) -> None:
    """Replace the input of a module by a forward-pre hook, which is removed after eight batches."""
    hooked(run, shifted_input, 0, 8)


@situation(slow=True)
def forward_pre_hook_later(run: Run) -> None:
    """Add a forward-pre hook after three batches."""
    hooked(run, shifted_input, 3)


@situation()
def backward_hook(run: Run) -> None:
    """Scale a gradient by a full backward hook from the start."""
    hooked(run, weaker_gradient)


@situation(slow=True)
def backward_hook_later(run: Run) -> None:
    """Add a full backward hook after three batches and remove it after eight."""
    hooked(run, weaker_gradient, 3, 8)


@situation()
def weight_hook(run: Run) -> None:
    """Drop a part of a weight's gradient by a tensor hook from the start."""
    hooked(run, half_of_the_rows)


@situation()
def weight_hook_later(run: Run) -> None:
    """Add a tensor hook to a weight after three batches and remove it after eight."""
    hooked(run, half_of_the_rows, 3, 8)


@situation()
def activation_hook(run: Run) -> None:
    """Scale the gradient of an activation by a tensor hook that ``forward`` registers."""

    class Weaker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.silu(x)
            if y.requires_grad:
                y.register_hook(lambda gradient: 0.5 * gradient)
            return y

    hooked(run, lambda model, calls: None, net=lambda: Classifier(Weaker()))


@situation(slow=True)
def taps_in_a_dictionary(run: Run) -> None:
    """Keep activations by forward hooks in a dictionary, from which the loss takes a penalty."""
    model, taps = run.model(mlp()), {}
    for number in (0, 3):
        model[number].register_forward_hook(lambda _, __, out, key=number: taps.__setitem__(key, out))

    def penalised(model: nn.Module, batch: Any) -> torch.Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss + 0.01 * sum(out.square().mean() for out in taps.values())

    step = run.step(model, penalised, sgd(model))
    for batch in rows():
        step(batch)


@situation()
def optimizer_in_backward(run: Run) -> None:
    """Update each weight by its own optimizer in a post-accumulate hook; the step gets no optimizer's work."""
    model, updates = run.model(mlp()), []
    own = {weight: torch.optim.SGD([weight], 0.05, 0.9) for weight in model.parameters()}

    def update(weight: torch.Tensor) -> None:
        updates.append(1)
        own[weight].step()
        own[weight].zero_grad()

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(update)
    step = run.step(model, cross_entropy())
    for batch in rows():
        step.forward(batch).backward()
    run.keep(updates=len(updates))


@situation()
def accumulate_hook_later(run: Run) -> None:
    """Add post-accumulate hooks that clip each weight's gradient after three batches."""

    def clip(weight: torch.Tensor) -> None:
        weight.grad.clamp_(-0.01, 0.01)

    def add(model: Any, calls: list[str]) -> Any:
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(clip)

    hooked(run, add, 3)


@situation()
def optimizer_hooks(run: Run) -> None:
    """Add noise to gradients by a hook before the update and count updates by one after it."""
    model, updates = run.model(mlp()), []
    optimizer = sgd(model)

    def noise(optimizer: Any, *_: Any) -> None:
        for weight in model.parameters():
            weight.grad.add_(0.01 * torch.randn_like(weight))

    optimizer.register_step_pre_hook(noise)
    step = run.step(model, cross_entropy(), optimizer)
    for number, batch in enumerate(rows()):
        if number == 3:
            optimizer.register_step_post_hook(lambda *_: updates.append(1))
        step(batch)
    run.keep(updates=len(updates))


@situation(slow=True)
def hooks_on_all_modules(run: Run) -> None:
    """Add a global forward hook after three batches and remove it after six."""
    model, calls = run.model(mlp()), []
    step = run.step(model, cross_entropy(), sgd(model))
    for number, batch in enumerate(rows()):
        if number == 3:
            add = nn.modules.module.register_module_forward_hook
            handle = add(
                lambda module, *_: calls.append(type(module).__name__) if module is model[2] else None
            )
        if number == 6:
            handle.remove()
        step(batch)
    run.keep(calls=calls)
