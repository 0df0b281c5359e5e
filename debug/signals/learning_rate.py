"""Learning rates as updates see them, without knowing the scheduler: what it does shows in the optimizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from numbers import Real
from typing import Any, TypeGuard

import torch
from torch.optim import Optimizer

from ..hooks import optimizers as updates

LOW, HIGH = 1e-3, 0.9
"""Shares of the highest rate: below it has run down, above it has risen again."""
INTERVALS = 16
"""Updates of which it is remembered how often the rate changed before them."""


class Rates(updates.UpdateSubscriber):
    """Follows the learning rates of optimizers at every step.

    Args:
        optimizers: by key.
        guard: what the hooks run in.
        updating: called with an optimizer before each of its updates.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        guard: Callable[[], AbstractContextManager[Any]],
        updating: Callable[[Optimizer], None],
    ) -> None:
        self._guard, self._updating = guard, updating
        self._rates = {id(optimizer): _Rate(key, optimizer) for key, optimizer in optimizers.items()}
        self._optimizers = list(optimizers.values())
        for optimizer in self._optimizers:
            updates.subscribe(optimizer, self)

    def facts(self) -> dict[str, dict[str, Any]]:
        """By the key of each optimizer with a schedule, what a rule wants to know of it: see `_Rate.facts`."""
        return {rate.key: rate.facts() for rate in self._rates.values() if rate.changes}

    def begin(self) -> None:
        """A step begins."""
        for rate in self._rates.values():
            rate.begun += 1
            rate.look()

    def close(self) -> None:
        for optimizer in self._optimizers:
            updates.unsubscribe(optimizer, self)
        self._optimizers.clear()

    def step_called(self, optimizer: Optimizer) -> None:
        with self._guard():
            self._rates[id(optimizer)].update()
            self._updating(optimizer)


class _Rate:
    """The largest rate of an optimizer's groups."""

    def __init__(self, key: str, optimizer: Optimizer) -> None:
        self.key, self._optimizer, self._groups = key, optimizer, optimizer.param_groups
        scheduled = hasattr(optimizer.step, "_wrapped_by_lr_sched")
        self._fresh = scheduled and not optimizer.state and not getattr(optimizer, "_opt_called", False)
        self.begun, self.early = 0, False
        self.changes, self._updates, self._run_down, self._cycles = 0, 0, -1, 0
        self._rate = self._used = self._highest = self._now()
        self._changed: deque[int] = deque(maxlen=INTERVALS)
        self._since = 0
        self._fell = self._climbed = False

    def _now(self) -> float:
        """Numbers and tensors on the CPU: others would have to be waited for."""
        rates = [group.get("lr") for group in self._optimizer.param_groups]  # some find their own
        known = [float(rate) for rate in rates if isinstance(rate, Real) or _is_number(rate)]
        return max(known, default=0.0)

    def look(self) -> None:
        rate = self._now()
        if rate != self._rate:
            self._rate = rate
            self.changes += 1
            self._since += 1

    def update(self) -> None:
        self.look()
        if not self._updates and self.begun == 1 and self._fresh:
            untouched = self._optimizer.param_groups is self._groups and not self._optimizer.state
            self.early = untouched and self.changes > 0
        self._changed.append(self._since)
        self._since = 0
        self._follow()
        self._updates += 1
        self._used = self._rate

    def _follow(self) -> None:
        """Has it run down, and risen again, not in one leap?"""
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
        """Updates, the rate now and the highest; the update at which it had run down (-1: it has not), how often it
        climbed up again; whether it changed before the first update, and in how many of the last intervals
        between updates more than once."""
        return {
            "updates": self._updates,
            "rate": self._rate,
            "highest": self._highest,
            "run_down": self._run_down,
            "cycles": self._cycles,
            "early": self.early,
            "often": sum(n > 1 for n in self._changed) / INTERVALS,
        }


def _is_number(rate: Any) -> TypeGuard[torch.Tensor]:
    is_one = isinstance(rate, torch.Tensor) and rate.numel() == 1 and not rate.is_complex()
    return is_one and rate.device.type == "cpu"
