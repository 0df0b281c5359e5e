"""NaN trap: a monitor that finds the first step whose loss or gradients are not finite, and the operation that made it so.

Before each update, the trap tests the gradients, on the CPU by one call of a function in C if there is a compiler, and
otherwise by one sum over them; of large matrix products it reads a row and a column, which are not finite if a factor of
the product is not.  If a gradient is not finite, the model is called again with the inputs, random states and weights of
that step, and each operation is inspected (`replay`).  On the CPU the result is read before the update.  On an accelerator the sum is read before the next update, so that no step waits; a copy of the weights
from the beginning of the step is kept until then, if it is small compared with the device's memory.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.run import Run
from loopwise.wrappers import is_shard, is_sharded

from ..hooks import optimizers as updates
from ..hooks.guards import Guarded, Stopwatch, is_capturing
from ..model import names
from ..model.shards import local
from ..monitors.monitor import Scalars
from ..rules import Finding
from .alarm import Alarm, finding_of
from .blackbox import write
from .calls import Call, Calls
from .finite_check import Flag, finite_by_kernel, not_finite, parts, products, total
from .loss_code import Returned, explain
from .origin import Origin
from .replay import output, replay
from .weights import WeightCopy

KEEP = 3
"""Steps in a black box."""
ALARMS = 3
"""Largest number of steps of a run that are replayed, and of black boxes that other findings cause."""
LOSSES = 20
"""Number of last losses in a finding."""
SCALE_EVERY = 32
"""Steps between two readings of a GradScaler's scale, each of which waits for the accelerator."""
NO_REPLAY = (nn.SyncBatchNorm,)
"""Modules whose forward pass communicates with other ranks."""


class _PendingSum(NamedTuple):
    """A sum that was not read yet, and the parameters of its gradients."""

    step: int
    flag: Flag
    parameters: Sequence[nn.Parameter]


class Trap(updates.UpdateSubscriber):
    """The NaN trap.

    Args:
        models, optimizers: models and optimizers by key, as the ``Watch`` has them.
        run: run that black boxes are written into.
        scaler: the ``torch.amp.GradScaler``; gradients that overflow are how it finds its scale, so that they count only
            once the scale is below 1.
        findings: returns the findings of the rules; a critical one and a loss spike cause a black box, too.
        stopwatch: stopwatch that counts the time in hooks.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        run: Run,
        scaler: Any = None,
        findings: Callable[[], list[Finding]] = list,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self._models, self._run, self._scaler = models, run, scaler
        self._has_optimizers = bool(optimizers)
        self._rule_findings = findings
        self._guard = Guarded(lambda error: setattr(self, "_error", error), lambda: None, stopwatch)
        """Context that keeps an error, which must not end the training in a hook, until the end of the step."""
        self._communicates = any(_communicates(model) for model in models.values())
        self._weights = WeightCopy(optimizers)
        device = names.device(models)
        self._deferred = device.type == "cuda" if self._communicates else self._weights.fits(device)
        self._calls = Calls(models, KEEP, self._guard)
        for optimizer in optimizers.values():
            updates.subscribe(optimizer, self)
        self._products = products(models.values())
        self._sums: list[_PendingSum] = []
        self._step, self._alarm_step = 0, -2
        self._alarm_count = self._box_count = self._known_findings = 0
        self._finite_losses: set[str] = {"loss"}
        self._losses: deque[tuple[int, float]] = deque(maxlen=LOSSES)
        self._lowest_scale = 1.0 if scaler is None else min(1.0, scaler.get_scale())
        self._alarms: list[Alarm] = []
        self._returned: list[Returned] = []
        """What the models returned in the step of the last alarm, if they returned finite values."""
        self._findings: list[Finding] = []
        self._error: Exception | None = None

    def begin(self, step: int, mode: str) -> None:
        self._step = step
        self._calls.open = mode == "train" and self._alarm_count < ALARMS
        self._calls.begin(step)

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._sums:
            with self._guard:
                self._read_sums(step)
        if mode == "train" and self._calls.open:
            self._inspect_losses(step, scalars)
            if self._scaler is not None:
                self._inspect_scale(step)
            self._write_box_for_rules(step)
        self._calls.open = False
        if self._alarms:
            self._make_findings(scalars)

    def findings(self) -> list[Finding]:
        findings, self._findings = self._findings, []
        return findings

    def close(self) -> None:
        with self._guard:
            self._read_sums()
        self._make_findings({})
        updates.unsubscribe_all(self)
        self._calls.close()
        self._weights.clear()

    # -- sums of gradients, losses and the scale ---------------------------------------------------

    def before_update(self, optimizer: Optimizer) -> None:
        """Compute the sum of the gradients, and copy the weights."""
        if not self._calls.open or self._error is not None or is_capturing():
            return
        with self._guard:
            if self._sums:
                self._read_sums(self._step)
            if self._scaler is not None and self._scaler.is_enabled():
                return
            self._sum_gradients([p for group in optimizer.param_groups for p in group["params"]])
            if self._deferred and not self._communicates:
                self._weights.save(self._step)

    def _sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        finite = None if self._deferred else finite_by_kernel(parameters, self._products)
        if finite is None:
            self._add_sum(total(parts(parameters, self._products)), parameters)
        elif not finite:
            self._add_sum(math.nan, parameters)

    def _add_sum(self, value: torch.Tensor | float, parameters: Sequence[nn.Parameter]) -> None:
        if isinstance(value, torch.Tensor) or not math.isfinite(value):
            self._sums.append(_PendingSum(self._step, Flag(value), parameters))
            if not self._deferred:
                self._read_sums()

    def _read_sums(self, before: int | None = None) -> None:
        """Read the sums of the steps before ``before``, which the device has computed by now; default: all."""
        sums, self._sums = self._sums, []
        for pending in sums:
            if before is not None and pending.step >= before:
                self._sums.append(pending)
            elif not pending.flag.is_finite() and self._is_confirmed(pending):
                self._alarm(pending.step)

    def _is_confirmed(self, pending: _PendingSum) -> bool:
        """Return whether values are not finite; a sum of finite gradients, if they are still there, may overflow."""
        gradients = [p.grad for p in pending.parameters if p.grad is not None]
        is_late = pending.step != self._step
        return is_late or not pending.parameters or any(not_finite(local(g)) for g in gradients)

    def _inspect_losses(self, step: int, scalars: Scalars) -> None:
        """Inspect the losses, whose gradients may be finite all the same, and without optimizers also gradients."""
        known: dict[str, float] = {}
        later: list[torch.Tensor] = []
        for name, value in scalars.items():
            if "loss" not in name:
                continue
            if not isinstance(value, torch.Tensor):
                known[name] = float(value)
            elif _is_cheap(value):
                known[name] = value.item()
            elif value.is_floating_point():
                later.append(value.detach())
        if known:
            self._losses.append((step, next(iter(known.values()))))
        if math.isfinite(sum(known.values())):
            self._finite_losses |= known.keys()
        else:
            bad = {name for name, value in known.items() if not math.isfinite(value)}
            self._finite_losses |= known.keys() - bad
            if bad & self._finite_losses:  # a best loss so far may begin with infinity
                self._alarm(step)
        if later:
            self._add_sum(total(later), ())
        if not self._has_optimizers:
            self._sum_gradients([p for model in self._models.values() for p in model.parameters()])

    def _inspect_scale(self, step: int) -> None:
        """Raise an alarm if the scale falls below 1: then overflow is not the reason why gradients are not finite."""
        if step % SCALE_EVERY or self._scaler.get_scale() >= self._lowest_scale:
            return
        self._lowest_scale = 0.0
        self._alarm(step)

    # -- alarms -----------------------------------------------------------------------------------

    def _alarm(self, step: int) -> None:
        """Replay a step and write its black box, unless the step before was not finite either."""
        last, self._alarm_step = self._alarm_step, step
        if step <= last + 1 or self._alarm_count >= ALARMS:
            return
        self._alarm_count += 1
        calls, origin, box, failed = self._calls.of(step), None, "", ""
        with self._weights.restored(step):
            try:
                origin = None if self._communicates else self._origin(calls)
            except Exception as error:  # an error of the user's model, or too little memory
                failed = repr(error)
            with contextlib.suppress(Exception):  # the finding says that the batch could not be written
                box = write(self._run, step, self._calls, self._models)
            if not failed and not self._communicates and (origin is None or origin.where == "loss"):
                with contextlib.suppress(Exception):  # the finding then names the loss as a whole
                    self._returned = [
                        Returned(names.root(m := self._models[c.model]), output(m, c)) for c in calls
                    ]
        self._alarms.append(Alarm(step, origin, calls, self._communicates, box, failed))

    def _origin(self, calls: Sequence[Call]) -> Origin | None:
        origins = ((call, replay(self._models[call.model], call)) for call in calls)
        return next((origin.of(call.model) for call, origin in origins if origin is not None), None)

    def _make_findings(self, scalars: Scalars) -> None:
        alarms, self._alarms = self._alarms, []
        returned, self._returned = self._returned, []
        for alarm in alarms:
            if (
                returned
                and alarm.step == self._step
                and (origin := self._in_loss(scalars, returned)) is not None
            ):
                alarm = replace(alarm, origin=origin)
            self._findings.append(finding_of(alarm, list(self._losses), scalars))

    def _in_loss(self, scalars: Scalars, returned: Sequence[Returned]) -> Origin | None:
        """Return the origin in the code that computed a loss of this step, whose variables are still there."""
        tensors = [v for name, v in scalars.items() if "loss" in name and isinstance(v, torch.Tensor)]
        bad = [value for value in tensors if value.grad_fn is not None and not_finite(value)]
        return explain(bad[0], sys._getframe(), returned) if bad else None

    def _write_box_for_rules(self, step: int) -> None:
        """Write a black box after a critical finding or a loss spike."""
        findings = self._rule_findings()
        if len(findings) == self._known_findings:
            return
        new, self._known_findings = findings[self._known_findings :], len(findings)
        alarming = [f for f in new if f.severity == "critical" or f.rule == "loss_spike"]
        if any(f.rule != "non_finite" for f in alarming) and self._box_count < ALARMS:
            self._box_count += 1
            write(self._run, step, self._calls, self._models)


def _is_cheap(value: torch.Tensor) -> bool:
    """Return whether reading the value does not wait for a device."""
    return value.device.type == "cpu" and value.numel() == 1


def _communicates(model: nn.Module) -> bool:
    """Return whether the model's forward pass communicates with other ranks."""
    by_module = any(isinstance(module, NO_REPLAY) for module in model.modules())
    return is_sharded(model) or by_module or any(is_shard(p) for p in model.parameters())
