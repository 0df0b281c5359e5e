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
from ..store.group import Names
from .collection import Collection
from .step import UPDATES, PendingStep

Put = Callable[[str, Names, Sequence[torch.Tensor]], None]


class Group:
    """Parameters of one optimizer, or of all models, with their names."""

    def __init__(self, parameters: list[nn.Parameter], names: Mapping[int, str]) -> None:
        self.parameters = parameters
        named = [(p, names[id(p)]) for p in parameters if id(p) in names]
        self.biases = _unzipped((p, n) for p, n in named if is_bias(n))
        self.weights = _unzipped((p, n) for p, n in named if not is_bias(n))
        self.gradients = _unzipped((p, f"gradient/{n}") for p, n in named)

    def consists_of(self, parameters: list[nn.Parameter]) -> bool:
        """Return whether these are the group's parameters, in order."""
        return len(parameters) == len(self.parameters) and all(
            a is b for a, b in zip(parameters, self.parameters, strict=True)
        )

    def put(self, kinds: Iterable[str], put: Put, optimizer: Optimizer | None, gather: bool) -> None:
        """Pass the tensors of ``kinds`` to the function ``put``."""
        for kind in kinds:
            tensors: list[torch.Tensor]
            if kind == "gradient":
                names, gradients = _with_gradients(*self.gradients)
                tensors = _unscaled(gradients, optimizer)
            elif kind == "optimizer_state":
                names, tensors = _state(*self.weights, optimizer)
                names_of_biases, of_biases = _state(*self.biases, optimizer)
                names, tensors = names + names_of_biases, [*tensors, *of_biases]
            else:
                names, parameters = self.weights if kind == "weight" else self.biases
                tensors = list(parameters)
            if names:
                put(kind, names, shards.gathered(tensors) if gather else tensors)


def is_bias(name: str) -> bool:
    """Return whether a parameter's name is that of a bias."""
    return name.endswith("bias")


def _unzipped(named: Iterable[tuple[nn.Parameter, str]]) -> tuple[Names, list[nn.Parameter]]:
    pairs = list(named)
    return tuple(name for _, name in pairs), [parameter for parameter, _ in pairs]


def _with_gradients(names: Names, parameters: list[nn.Parameter]) -> tuple[Names, list[torch.Tensor]]:
    """Return the names and gradients of the parameters that have one."""
    gradients = [parameter.grad for parameter in parameters]
    if all([gradient is not None for gradient in gradients]):
        return names, gradients  # type: ignore[return-value]  # none is None
    pairs = [(name, grad) for name, grad in zip(names, gradients, strict=True) if grad is not None]
    return tuple([name for name, _ in pairs]), [gradient for _, gradient in pairs]


def _unscaled(gradients: list[torch.Tensor], optimizer: Optimizer | None) -> list[torch.Tensor]:
    """Return gradients divided by GradScaler's factor, if a fused optimizer is to do that itself."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None or not gradients:
        return gradients
    return [gradient / scale.to(gradient.device) for gradient in gradients]


def _state(
    names: Names, parameters: list[nn.Parameter], optimizer: Optimizer | None
) -> tuple[Names, list[torch.Tensor]]:
    """Return the names and tensors of an optimizer's state."""
    state = {} if optimizer is None else optimizer.state
    pairs = [
        (f"optimizer/{key}/{name}", value)
        for name, parameter in zip(names, parameters, strict=True)
        for key, value in state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    ]
    return tuple([name for name, _ in pairs]), [value for _, value in pairs]


class Groups:
    """A ``Group`` for each optimizer, made anew if its parameters or the models' change."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._all: set[str] = set()
        self._trained: list[str] = []
        self._parameters: list[nn.Parameter] = []
        self._interest: dict[Collection, tuple[str, ...]] = {}
        self._by_owner: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()

    def rename(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Take over the names and parameters that the models have now."""
        pairs = list(named)
        names = {id(parameter): name for name, parameter in pairs}
        if names != self._names:
            self._names, self._all = names, set(names.values())
            self._parameters = [parameter for _, parameter in pairs]
            self._trained = [name for name, parameter in pairs if parameter.requires_grad]
            self._by_owner.clear()
            self._interest.clear()

    def has(self, name: str) -> bool:
        """Return whether a parameter, or its gradient, has this name."""
        return name.removeprefix("gradient/") in self._all

    @property
    def trained(self) -> Iterable[str]:
        """Names of the parameters that require a gradient."""
        return self._trained

    def interest(self, collection: Collection) -> tuple[str, ...]:
        """Return the kinds of tensors that the collection wants of any parameter."""
        if collection not in self._interest:
            self._interest[collection] = ()  # also if the user's function raises
            self._interest[collection] = tuple(
                kind
                for kind in UPDATES
                if any(_wants(collection, kind, name) for name in self._names.values())
            )
        return self._interest[collection]

    def save(self, step: PendingStep, optimizer: Optimizer | None, trained: bool, gather: bool) -> None:
        """Put the tensors that a step's collections want into it.

        Args:
            step: the step.
            optimizer: owner of the parameters; ``None``: the parameters of all models.
            trained: whether gradients count.
            gather: put shards of FSDP2 together.
        """
        wanted: set[str] = set()
        for collection in step.all:
            try:
                wanted.update(self.interest(collection))
            except Exception as error:  # in the user's function
                step.failed(collection, error)
        if not trained:
            wanted.discard("gradient")
        if wanted:
            kinds = [kind for kind in UPDATES if kind in wanted]
            self.of(optimizer).put(kinds, step.put, optimizer, gather)

    def of(self, optimizer: Optimizer | None) -> Group:
        """Return the parameters of an optimizer, or of all models (``None``)."""
        owner: Groups | Optimizer = self
        parameters = self._parameters
        if optimizer is not None:
            owner, parameters = optimizer, [p for group in optimizer.param_groups for p in group["params"]]
        group = self._by_owner.get(owner)
        if group is None or not group.consists_of(parameters):
            group = self._by_owner[owner] = Group(parameters, self._names)
        return group


def _wants(collection: Collection, kind: str, name: str) -> bool:
    """Return whether the collection wants a kind of tensor of the parameter ``name``."""
    if kind == "gradient":
        return collection.wants(kind, f"gradient/{name}")
    if kind == "optimizer_state":
        return collection.wants(kind, f"optimizer/exp_avg/{name}") or any(
            "optimizer" in p.pattern for p in collection.patterns
        )
    return kind == ("bias" if is_bias(name) else "weight") and collection.wants(kind, name)
