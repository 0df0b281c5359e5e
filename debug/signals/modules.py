"""Facts about the modules of models: modes, frozen norms and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import nn

from ..hooks import calls
from ..hooks.guards import is_capturing
from ..model import names
from ..torch_internals import BATCH_NORMS, DROPOUTS, RUNNING_NORMS

TYPED: tuple[type[nn.Module], ...] = (*RUNNING_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
TYPED += (nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose class rules need."""
HEAVY = 0.9
"""Probability of a Dropout module from which hardly anything passes."""


def types(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Return a dict from modules to the names of their classes, for the classes that rules need.

    Args:
        modules: prefix and module.
    """
    typed = [(prefix, module) for prefix, module in modules if isinstance(module, TYPED)]
    return {prefix.removesuffix("."): type(module).__name__ for prefix, module in typed}


def in_mode(models: Mapping[str, nn.Module], training: bool, trained: Set[int]) -> list[str]:
    """Return the Dropout and BatchNorm modules that are in training mode, or that are in evaluation mode.

    In evaluation mode, only models count that are trained and whose modules are all in evaluation mode.

    Args:
        models: models by key.
        training: the mode to look for.
        trained: identities of the parameters that are trained.
    """
    paths = []
    for key, model in models.items():
        if not training and (model.training or trained.isdisjoint(map(id, model.parameters()))):
            continue
        prefix = f"{key}." if key else ""
        for name, module in model.named_modules():
            if module.training is training and _depends_on_mode(module):
                paths.append(prefix + names.plain(name))
    return paths


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, DROPOUTS):
        return float(module.p) > 0
    return isinstance(module, BATCH_NORMS) and bool(module.track_running_stats)


class ModesAtForward(calls.CallSubscriber):
    """Dropout and BatchNorm modules by their mode in the last forward pass: code may change modes between it and the report.

    Args:
        models: models by key.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._models, self._called = models, False
        self.mode = ""
        """Mode of the step that is saved now; empty if none is."""
        self._last: tuple[int, bool] | None = None
        """The module that the last forward pass called, and its own mode, if that was an evaluation."""
        self._paths: dict[bool, list[str] | None] = {True: None, False: None}
        for model in models.values():
            calls.subscribe(names.root(model), self)

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note the modes; a forward pass without gradients is an evaluation, whose step may be reported later."""
        if is_capturing():
            return
        self._called = True
        last, self._last = self._last, None
        if not torch.is_grad_enabled() or self.mode not in ("train", ""):
            self._last = id(module), module.training
            if last != self._last or self._paths[True] is None:  # one look for all batches of an evaluation
                self._paths[True] = in_mode(self._models, True, set())
        elif self.mode:
            trained = {id(p) for model in self._models.values() for p in model.parameters()}
            self._paths[False] = in_mode(self._models, False, trained)

    def take(self, training: bool, trained: Set[int]) -> list[str]:
        """Return what `in_mode` returned in the last forward pass since this was asked; without any, what it returns now.

        A model whose calls were seen before, and not since, gives no evidence.
        """
        paths, self._paths[training] = self._paths[training], None
        if paths is None:
            return [] if self._called else in_mode(self._models, training, trained)
        return paths

    def close(self) -> None:
        for model in self._models.values():
            calls.unsubscribe(names.root(model), self)


def heavy_dropouts(modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Return the Dropout modules in training mode that leave a tenth of the values, or less."""
    return [
        prefix.removesuffix(".")
        for prefix, module in modules
        if isinstance(module, DROPOUTS) and module.training and HEAVY <= float(module.p) < 1
    ]


def frozen_norms(models: Mapping[str, nn.Module], modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Return the BatchNorm modules in training whose running statistics are unused and still have the initial values.

    The function waits for the device.

    Args:
        models: models by key; those in evaluation mode do not count.
        modules: prefix and module, of all models.
    """
    in_training = {id(m) for model in models.values() if model.training for m in model.modules()}
    norms = [(p, m) for p, m in modules if isinstance(m, BATCH_NORMS) and id(m) in in_training]
    return [prefix.removesuffix(".") for prefix, m in norms if _is_frozen(m) and _is_initial(m)]


def _is_frozen(norm: Any) -> bool:
    weight = norm.weight
    learns = weight is None or weight.grad is not None
    return bool(norm.track_running_stats and learns and (not norm.training or norm.momentum == 0))


def _is_initial(norm: Any) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return not mean.count_nonzero().item() and bool((variance == 1).all())
