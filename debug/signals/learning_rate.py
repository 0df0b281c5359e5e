"""Learning rates at each update, read from the optimizer, so that any scheduler can be used."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch.optim import Optimizer

from ..hooks import optimizers as updates
from ..torch_internals import has_scheduler

LOW, HIGH = 1e-3, 0.9
"""Shares of the highest rate: a schedule has run down below the first, and has risen again above the second."""
INTERVALS = 16
"""Updates for which the number of rate changes before each is remembered."""


def largest(optimizer: Optimizer) -> float | None:
    """Return the largest learning rate of an optimizer's groups; ``None`` if none can be read.

    Tensors on an accelerator are ignored, because reading one would wait for the device.
    """
    groups = optimizer.param_groups
    if (
        len(groups) == 1 and type(rate := groups[0].get("lr")) is float
    ):  # the usual case, three times in a step
        return rate
    rates = [group.get("lr") for group in groups]  # some optimizers have none
    readable = [float(rate) for rate in rates if isinstance(rate, Real) or _is_number(rate)]
    return max(readable, default=None)


class Rates(updates.UpdateSubscriber):
    """Learning rates of optimizers, followed at every step.

    Args:
        optimizers: optimizers by key.
        guard: context that the hooks run in.
        updating: function that is called with an optimizer before each of its updates.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        guard: AbstractContextManager[Any],
        updating: Callable[[Optimizer], None],
    ) -> None:
        self._guard, self._updating = guard, updating
        self._rates: dict[int, _Rate] = {}
        self._count = 0
        for key, optimizer in optimizers.items():
            self._follow(key, optimizer)
            updates.subscribe(optimizer, self)

    def _follow(self, key: str, optimizer: Optimizer) -> None:
        """Follow an optimizer as long as the script has it: a loop may make a new one for each epoch, or step."""
        rates, place = self._rates, id(optimizer)
        self._count += 1
        rates[place] = _Rate(key, weakref.ref(optimizer, lambda _: rates.pop(place, None)))

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return facts by the key of each optimizer with a schedule; see `_Rate.facts`."""
        return {rate.key: rate.facts() for rate in list(self._rates.values()) if rate.changes}

    def begin(self) -> None:
        """Begin a step."""
        for rate in list(self._rates.values()):
            rate.steps += 1
            rate.read()

    def close(self) -> None:
        updates.unsubscribe_all(self)

    def joined(self, optimizer: Optimizer) -> None:
        self._follow(f"optimizer {self._count + 1}", optimizer)

    def step_called(self, optimizer: Optimizer) -> None:
        with self._guard:
            self._rates[id(optimizer)].update()
            self._updating(optimizer)


class _Rate:
    """The largest learning rate of an optimizer's groups.

    Attributes:
        steps: steps so far.
        early: whether the rate changed before the first update of a new optimizer.
        changes: number of changes of the rate.
    """

    def __init__(self, key: str, reference: weakref.ref[Optimizer]) -> None:
        optimizer: Any = reference()
        self.key, self._optimizer, self._groups = key, reference, optimizer.param_groups
        self._is_new = (
            has_scheduler(optimizer) and not optimizer.state and not getattr(optimizer, "_opt_called", False)
        )
        self.steps, self.early = 0, False
        self.changes, self._updates, self._run_down, self._cycles = 0, 0, -1, 0
        self._rate = self._used = self._highest = self._now()
        self._changes_before: deque[int] = deque(maxlen=INTERVALS)
        self._changes_since = 0
        self._fell = self._climbed = False

    def _now(self) -> float:
        optimizer = self._optimizer()
        rate = None if optimizer is None else largest(optimizer)
        return 0.0 if rate is None else rate

    def read(self) -> None:
        """Count a change of the rate."""
        rate = self._now()
        if rate != self._rate:
            self._rate = rate
            self.changes += 1
            self._changes_since += 1

    def update(self) -> None:
        """Count an update."""
        self.read()
        if not self._updates and self.steps == 1 and self._is_new:
            optimizer: Any = self._optimizer()
            untouched = optimizer.param_groups is self._groups and not optimizer.state
            self.early = untouched and self.changes > 0
        self._changes_before.append(self._changes_since)
        self._changes_since = 0
        self._follow()
        self._updates += 1
        self._used = self._rate

    def _follow(self) -> None:
        """Remember whether the rate has run down, and whether it rose again in more than one step."""
        self._highest = max(self._highest, self._rate)
        if self._rate < LOW * self._highest:
            self._run_down = self._updates if self._run_down < 0 else self._run_down
            self._fell, self._climbed = True, False
            return
        self._run_down = -1
        if not self._fell:
            return
        if self._rate >= HIGH * self._highest:
            self._cycles += self._climbed
            self._fell = False
        elif self._rate > self._used:
            self._climbed = True

    def facts(self) -> dict[str, Any]:
        """Return the facts that rules need.

        Returns:
            ``updates``: number of updates; ``rate``: the present rate; ``highest``: the highest rate; ``run_down``: the
            update at which the rate had run down (-1: it has not); ``cycles``: number of times that it climbed up
            again; ``early``: see the class; ``often``: share of the last intervals between updates with more
            than one change.
        """
        return {
            "updates": self._updates,
            "rate": self._rate,
            "highest": self._highest,
            "run_down": self._run_down,
            "cycles": self._cycles,
            "early": self.early,
            "often": sum(changes > 1 for changes in self._changes_before) / INTERVALS,
        }


def _is_number(rate: Any) -> TypeGuard[torch.Tensor]:
    """Return whether the rate is a real tensor of one element on the CPU."""
    is_single = isinstance(rate, torch.Tensor) and rate.numel() == 1 and not rate.is_complex()
    return is_single and rate.device.type == "cpu"
