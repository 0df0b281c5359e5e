"""Registry of training situations, and the object through which a situation trains by one form of the step.

A situation is a function of a ``Run``.  It builds models, optimizers and batches as a user would, and gets from the
run what differs between forms: ``run.model`` (weights that a nudged run moves) and ``run.step`` (the usual loop's step,
or a ``TrainStep``).  What it trained, and what it passes to ``run.keep``, is compared between the forms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .usual import Recorded, UsualStep

EAGER, NUDGED, OURS = "eager", "nudged", "ours"
"""Forms of a run: the usual loop, the usual loop with weights moved by a few last places, and our step."""
LAST_PLACES = 4
"""Units in the last place by which a nudge moves float32 and float64 weights; weights of lower precision move by one."""


@dataclass(frozen=True)
class Situation:
    """A training, and the plan that our step trains it by."""

    train: Callable[[Run], None]
    family: str
    plan: str
    """A key of ``plans()``."""
    ranks: int
    """Processes that train together."""
    slow: bool
    """``True``: Inductor compiles, a framework is imported, or Dynamo captures much; the tests leave such a one out."""

    @property
    def description(self) -> str:
        """First line of the function's docstring."""
        return (self.train.__doc__ or "").splitlines()[0]


SITUATIONS: dict[str, Situation] = {}
"""Situations by name."""


def situation(
    plan: str = "captured", ranks: int = 1, slow: bool = False, name: str = ""
) -> Callable[..., Any]:
    """Register a training under its function's name, or under ``name``."""

    def add(train: Callable[[Run], None]) -> Callable[[Run], None]:
        family = train.__module__.rpartition(".")[2]
        key = name or train.__name__
        assert key not in SITUATIONS, key
        SITUATIONS[key] = Situation(train, family, plan, ranks, slow)
        return train

    return add


def plans() -> dict[str, dict[str, Any]]:
    """Return the arguments of ``TrainStep`` that stand for each plan."""
    from loopwise.compile import Plan
    from loopwise.compile.graph.passes import USUAL

    captured = Plan(graph="captured", passes=USUAL)
    return {
        "captured": {"plan": captured},
        "fused": {"plan": captured.changed(optimizer="fused")},
        "foreach": {"plan": captured.changed(optimizer="foreach")},
        "channels_last": {"plan": Plan(layout="channels_last")},
        "channels_last captured": {"plan": captured.changed(layout="channels_last")},
        "channels_last fused": {"plan": captured.changed(layout="channels_last", optimizer="fused")},
        "inductor": {"plan": Plan(graph="inductor", passes=USUAL, regions=True)},
        "inductor channels_last": {"plan": Plan(graph="inductor", layout="channels_last", optimizer="fused")},
        "inductor computed again": {"plan": Plan(graph="inductor", passes=USUAL, budget=0.0)},
        "off": {"autotune": "off"},
        "default": {"autotune": "default"},
    }


@dataclass
class Run:
    """One training by one form of the step."""

    form: str
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``TrainStep``."""
    seed: int = 0
    """Seed of a nudge."""
    start: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights before training."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Numbers and tensors to compare."""
    losses: list[float] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    """The ``TrainStep`` objects of the run."""
    ways: list[str] = field(default_factory=list)
    """Other ways by which the run compiled."""
    modules: list[nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    @property
    def ours(self) -> bool:
        return self.form == OURS

    def model(self, module: nn.Module, multiplies: torch.dtype | None = None) -> Any:
        """Return a module whose weights and buffers are compared at the end, nudged if the run is.

        Args:
            module: the module.
            multiplies: dtype of the multiplications, if it is lower than that of the weights.
        """
        self.modules.append(module)
        if self.form == NUDGED:
            nudge(module, 100 * self.seed + len(self.modules), multiplies)
        self.start |= tensors(module, len(self.modules) - 1)
        return module

    def step(self, model: nn.Module, loss: Any, optimizer: Any = None, **options: Any) -> Any:
        """Return the training step of the run's form."""
        if not self.ours:
            return self.usual(model, loss, optimizer, **options)
        from loopwise.compile import TrainStep

        self.steps.append(TrainStep(model, loss, optimizer, **(self.options | options)))
        return Recorded(self.steps[-1], self.losses)

    def usual(self, model: nn.Module, loss: Any, optimizer: Any = None, **options: Any) -> Any:
        """Return the usual loop's step, whatever the form."""
        return Recorded(UsualStep(model, loss, optimizer, **options), self.losses)

    def optimize(self, target: Any) -> Any:
        """Return what ``optimize`` makes of a model or function, or the target itself in the usual form."""
        if not self.ours:
            return target
        from loopwise.compile import optimize

        self.ways.append("optimize")
        return optimize(target, plan=self.options["plan"])

    def keep(self, **values: Any) -> None:
        """Compare these numbers and tensors too."""
        self.kept |= values

    def result(self) -> dict[str, Any]:
        """Return everything that is compared, by name."""
        found: dict[str, Any] = {"losses": torch.tensor(self.losses)}
        for number, module in enumerate(self.modules):
            found |= tensors(module, number)
        return found | {f"kept {name}": value for name, value in self.kept.items()}


def nudge(module: nn.Module, seed: int, multiplies: torch.dtype | None = None) -> None:
    """Move each weight a few last places up or down at random; the places are those of ``multiplies``, if given."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        data = torch.view_as_real(parameter.data) if parameter.is_complex() else parameter.data
        unit = torch.finfo(multiplies or data.dtype).eps
        places = LAST_PLACES if unit < 1e-6 else 1
        signs = torch.randint(0, 2, data.shape, generator=draws) * 2 - 1
        data.mul_((1 + places * unit * signs.double()).to(data.dtype))


def tensors(module: nn.Module, number: int) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers by name."""
    named: Iterable[tuple[str, torch.Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    return {f"{number}.{name}": tensor.detach().clone() for name, tensor in named}
