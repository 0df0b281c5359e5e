"""Losses of samples, which the training step of one part gives to the loader of another."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import nn

from loopwise.wrappers import unwrap


class Receiver(Protocol):
    """Object that takes the losses of a model's training."""

    def receive(self, batch: Any, losses: torch.Tensor | None) -> None:
        """Take the losses of a batch, shape (batch,); ``None``: the step has one loss for the whole batch."""

    def receive_output(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take the arguments of a forward pass of the model, and its output."""


_steps: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
_receivers: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()


def announce(model: nn.Module, step: object) -> None:
    """Say that a step trains the model and will give its losses, as long as the step lives."""
    _steps.setdefault(unwrap(model), weakref.WeakSet()).add(step)


def withdraw(model: nn.Module, step: object) -> None:
    """Say that a step trains the model no more; nothing happens if it did not."""
    _steps.get(unwrap(model), weakref.WeakSet()).discard(step)


def announced(model: nn.Module) -> bool:
    """Return whether a step that gives its losses trains the model."""
    return bool(_steps.get(unwrap(model)))


def receives(model: nn.Module) -> bool:
    """Return whether somebody takes the losses of a model's training."""
    return bool(_receivers.get(unwrap(model)))


def subscribe(model: nn.Module, receiver: Receiver) -> None:
    """Pass the losses of the model's training to a receiver from now on, as long as the receiver lives."""
    receivers = _receivers.get(unwrap(model))
    if receivers is None:  # called for every batch
        receivers = _receivers[unwrap(model)] = weakref.WeakSet()
    receivers.add(receiver)


def unsubscribe(model: nn.Module, receiver: Receiver) -> None:
    """Pass no losses to a receiver any more; nothing happens if it gets none."""
    _receivers.get(unwrap(model), weakref.WeakSet()).discard(receiver)


def give(model: nn.Module, batch: Any, losses: torch.Tensor | None) -> None:
    """Pass the losses of a batch, as it was trained on, to all that subscribed.

    Args:
        model: the model in training.
        batch: the batch that the step was given.
        losses: detached, shape (batch,); ``None``: the step has one loss for the whole batch.
    """
    for receiver in list(_receivers.get(unwrap(model), ())):
        receiver.receive(batch, losses)


def give_output(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Pass a forward pass of a training step to all that subscribed, if the step cannot tell each sample's loss.

    Args:
        model: the model in training, or a part of it.
        args: the arguments of the pass.
        kwargs: those with names.
        output: what it returned; with its autograd graph, the gradient that it gets is looked at as well.
    """
    for receiver in list(_receivers.get(unwrap(model), ())):
        receiver.receive_output(args, kwargs, output)
