"""Calls of a trainer's ``compute_loss`` for scores: without a trace in the trainer, with what it reads from outputs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

MOST = 1000
"""Values of an attribute that are kept; of longer lists the length is kept."""
DATA = ("train_dataset", "eval_dataset")
"""Attributes that no loss changes."""


@contextlib.contextmanager
def without_a_trace(trainer: Any) -> Iterator[None]:
    """Restore the numbers, texts and containers among a trainer's attributes on leaving, and let ``log`` do nothing.

    A ``compute_loss`` that counts, or collects metrics, as TRL's trainers do, would count the scored samples.
    """
    kept = {name: (value, _kept(value)) for name, value in vars(trainer).items() if name not in DATA}
    trainer.log = _log_nothing  # prints and loggers are not reached either
    try:
        yield
    finally:
        for name in [name for name in vars(trainer) if name not in kept and name not in DATA]:
            delattr(trainer, name)
        for name, (value, content) in kept.items():
            _restore(value, content)
            vars(trainer)[name] = value


def _log_nothing(*_: Any, **__: Any) -> None:
    """Take what a loss logs."""


def _kept(value: Any) -> Any:
    """Return what restores a container: its values with what restores these, or the length of a long list."""
    if isinstance(value, (list, deque, dict, set)):
        if len(value) > MOST:
            return len(value)
        if isinstance(value, dict):
            return [(key, item, _kept(item)) for key, item in value.items()]
        if isinstance(value, set):
            return set(value)
        return [(item, _kept(item)) for item in value]
    return None


def _restore(value: Any, content: Any) -> None:
    """Give a container its values back; it stays the same object."""
    if content is None:
        return
    if isinstance(content, int):
        if isinstance(value, list):
            del value[content:]
        return
    value.clear()
    if isinstance(value, set):
        value.update(content)
    elif isinstance(value, dict):
        for key, item, inner in content:
            _restore(item, inner)
            value[key] = item
    else:
        for item, inner in content:
            _restore(item, inner)
            value.append(item)


class RecordedOutputs:
    """Model whose outputs are recorded if they hold the log-probabilities of labels instead of a loss, as in TRL.

    ``torch.nn.functional.nll_loss`` gets them, so that a recorder of torch's losses sees the losses of the tokens.

    Args:
        model: the model that is called.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the model's outputs."""
        outputs = self._model(*args, **options)
        chosen, counted = (getattr(outputs, name, None) for name in ("log_probs", "label_mask"))
        if isinstance(chosen, torch.Tensor) and isinstance(counted, torch.Tensor):
            target = torch.where(counted, 0, -100).reshape(-1)
            functional.nll_loss(chosen.reshape(-1, 1), target.to(chosen.device))
        return outputs
