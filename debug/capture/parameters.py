"""Weights, gradients and optimizer state, taken right before the optimizer changes them.

At that moment gradients are what the update uses: averaged by DDP, reduced by FSDP2, summed over
accumulated batches, unscaled.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..model import shards
from .collection import Collection
from .step import UPDATES, Names, Saving

Put = Callable[[str, Names, Sequence[torch.Tensor]], None]


class Group:
    """The parameters of one optimizer, or all of a model, with their names."""

    def __init__(self, parameters: list[nn.Parameter], names: Mapping[int, str]) -> None:
        self.parameters = parameters
        named = [(p, names[id(p)]) for p in parameters if id(p) in names]
        self.biases = _pairs((p, n) for p, n in named if is_bias(n))
        self.weights = _pairs((p, n) for p, n in named if not is_bias(n))
        self.gradients = _pairs((p, f"gradient/{n}") for p, n in named)

    def is_of(self, parameters: list[nn.Parameter]) -> bool:
        return len(parameters) == len(self.parameters) and all(
            a is b for a, b in zip(parameters, self.parameters, strict=True)
        )

    def hand_on(self, kinds: Iterable[str], put: Put, optimizer: Optimizer | None, gather: bool) -> None:
        """Hand the tensors of ``kinds`` to ``put``."""
        for kind in kinds:
            if kind == "gradient":
                names, found = _with_gradients(*self.gradients)
                found = _unscaled(found, optimizer)
            elif kind == "optimizer_state":
                names, found = _state(*self.weights, optimizer)
                more, beside = _state(*self.biases, optimizer)
                names, found = names + more, [*found, *beside]
            else:
                names, parameters = self.weights if kind == "weight" else self.biases
                found = list(parameters)
            if names:
                put(kind, names, shards.gathered(found) if gather else found)


def is_bias(name: str) -> bool:
    return name.endswith("bias")


def _pairs(named: Iterable[tuple[nn.Parameter, str]]) -> tuple[Names, list[nn.Parameter]]:
    both = list(named)
    return tuple(name for _, name in both), [parameter for parameter, _ in both]


def _with_gradients(names: Names, parameters: list[nn.Parameter]) -> tuple[Names, list[torch.Tensor]]:
    found = [parameter.grad for parameter in parameters]
    if all([gradient is not None for gradient in found]):
        return names, found  # type: ignore[return-value]  # none is None
    some = [(name, gradient) for name, gradient in zip(names, found, strict=True) if gradient is not None]
    return tuple([name for name, _ in some]), [gradient for _, gradient in some]


def _unscaled(gradients: list[torch.Tensor], optimizer: Optimizer | None) -> list[torch.Tensor]:
    """Divided by GradScaler's factor where a fused optimizer is to do that itself."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None or not gradients:
        return gradients
    return [gradient / scale.to(gradient.device) for gradient in gradients]


def _state(
    names: Names, parameters: list[nn.Parameter], optimizer: Optimizer | None
) -> tuple[Names, list[torch.Tensor]]:
    state = {} if optimizer is None else optimizer.state
    some = [
        (f"optimizer/{key}/{name}", value)
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    ]
    return tuple([name for name, _ in some]), [value for _, value in some]


class Groups:
    """``Group`` by optimizer, made anew when its parameters or the model's change."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._trained: list[str] = []
        self._parameters: list[nn.Parameter] = []
        self._interest: dict[Collection, tuple[str, ...]] = {}
        self._known: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()

    def name(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """These are the models' parameters now."""
        pairs = list(named)
        names = {id(parameter): name for name, parameter in pairs}
        if names != self._names:
            self._names = names
            self._parameters = [parameter for _, parameter in pairs]
            self._trained = [name for name, parameter in pairs if parameter.requires_grad]
            self._known.clear()
            self._interest.clear()

    @property
    def trained(self) -> Iterable[str]:
        """Names of the parameters that want a gradient."""
        return self._trained

    def interest(self, collection: Collection) -> tuple[str, ...]:
        """The kinds that the collection wants of any parameter."""
        if collection not in self._interest:
            self._interest[collection] = ()  # also where the user's predicate fails
            self._interest[collection] = tuple(
                kind
                for kind in UPDATES
                if any(_wants(collection, kind, name) for name in self._names.values())
            )
        return self._interest[collection]

    def hand_on(self, saving: Saving, optimizer: Optimizer | None, trained: bool, gather: bool) -> None:
        """Put what a step's collections want of an optimizer's parameters, or of all (``None``), into it.

        Args:
            trained: gradients count.
        """
        wanted: set[str] = set()
        for collection in saving.all:
            try:
                wanted.update(self.interest(collection))
            except Exception as error:  # the user's own predicate
                saving.failed(collection, error)
        if not trained:
            wanted.discard("gradient")
        if wanted:
            kinds = [kind for kind in UPDATES if kind in wanted]
            self.of(optimizer).hand_on(kinds, saving.put, optimizer, gather)

    def of(self, optimizer: Optimizer | None) -> Group:
        """The parameters of an optimizer, or of all models (``None``)."""
        owner: Groups | Optimizer = self
        parameters = self._parameters
        if optimizer is not None:
            owner, parameters = optimizer, [p for group in optimizer.param_groups for p in group["params"]]
        group = self._known.get(owner)
        if group is None or not group.is_of(parameters):
            group = self._known[owner] = Group(parameters, self._names)
        return group


def _wants(collection: Collection, kind: str, name: str) -> bool:
    if kind == "gradient":
        return collection.wants(kind, f"gradient/{name}")
    if kind == "optimizer_state":
        return collection.wants(kind, f"optimizer/exp_avg/{name}") or any(
            "optimizer" in p.pattern for p in collection.patterns
        )
    return kind == ("bias" if is_bias(name) else "weight") and collection.wants(kind, name)
