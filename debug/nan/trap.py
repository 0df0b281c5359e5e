"""Traps the first step whose loss or gradients are not finite, and finds out where that began.

Each optimizer's step is preceded by one reduction over its gradients (of large matrix products a row and a column, which
are not finite where a factor is not).  Where the sum is not finite, the model is called again with the inputs, the
random states and the weights of that step, and each operation is looked at (`replay`).  On the CPU the sum is known
before the update.  On an accelerator it is read before the next one, so that nothing waits; the weights that the step
began with are kept until then, if they are small beside the device's memory.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from loopwise.run import Run
from loopwise.wrappers import is_sharded

from ..hooks import optimizers as updates
from ..hooks.guards import is_capturing
from ..model import names
from ..model.shards import local
from ..monitors.monitor import Scalars
from ..rules import Finding
from .alarm import Alarm, finding
from .blackbox import write
from .calls import Call, Calls
from .finite_check import Flag, edges, products, total
from .origin import Origin
from .replay import not_finite, replay

KEEP = 3
"""Steps in a black box."""
ALARMS = 3
"""Steps of a run that are replayed, and black boxes that are written, at most."""
SHARE = 0.1
"""Of an accelerator's memory that a copy of the weights may take."""
LOSSES = 20
"""Of the last losses those in a finding."""
SCALED = 32
"""Steps between looks at a GradScaler's scale: an accelerator is waited for."""
NO_REPLAY = (nn.SyncBatchNorm,)
"""Modules whose forward pass talks to other ranks."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A sum that is not known yet, and the parameters it is of."""

    step: int
    flag: Flag
    parameters: Sequence[nn.Parameter]


class Trap(updates.UpdateSubscriber):
    """Goes along with a ``Watch``.

    Args:
        models, optimizers: by key, as the ``Watch`` has them.
        run: where black boxes are written.
        scaler: the ``torch.amp.GradScaler``: gradients that overflow are its way to find the scale, until that
            is below 1.
        found: what rules found so far; a critical one and a loss spike write a black box, too.
        counted: what the time in hooks is counted by.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        run: Run,
        scaler: Any = None,
        found: Callable[[], list[Finding]] = list,
        counted: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._models, self._run, self._scaler, self._found = models, run, scaler, found
        self._counted, self._optimizers = counted, optimizers
        self._talks = any(_talks(model) for model in models.values())
        self._deferred = _reads_later(names.device(models), () if self._talks else self._parameters())
        self._calls = Calls(models, KEEP, self._tried)
        for optimizer in optimizers.values():
            updates.subscribe(optimizer, self)
        self._products = products(models.values())
        self._waiting: list[_Waiting] = []
        self._before: list[torch.Tensor] = []
        self._step, self._alarmed, self._copied = 0, -2, -1
        self._seen, self._alarms, self._boxes = 0, 0, 0
        self._known: set[str] = {"loss"}
        self._losses: deque[tuple[int, float]] = deque(maxlen=LOSSES)
        self._lowest = 1.0 if scaler is None else min(1.0, scaler.get_scale())
        self._pending: list[Alarm] = []
        self._findings: list[Finding] = []
        self._error: Exception | None = None

    def begin(self, step: int, mode: str) -> None:
        self._step = step
        self._calls.open = mode == "train" and self._alarms < ALARMS
        self._calls.begin(step)

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        with self._tried():
            self._settle(step)
        if mode == "train" and self._calls.open:
            self._look_at_losses(step, scalars)
            self._look_at_scale(step)
            self._write_box_of_rules(step)
        self._calls.open = False
        self._tell(scalars)

    def findings(self) -> list[Finding]:
        found, self._findings = self._findings, []
        return found

    def close(self) -> None:
        with self._tried():
            self._settle()
        self._tell({})
        for optimizer in self._optimizers.values():
            updates.unsubscribe(optimizer, self)
        self._calls.close()
        self._before.clear()

    # -- asking -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _tried(self) -> Iterator[None]:
        """What fails in a hook ends no training; it is raised where the ``Watch`` expects it."""
        try:
            with self._counted(), torch.no_grad():
                yield
        except Exception as error:
            self._error = error

    def before_update(self, optimizer: Optimizer) -> None:
        """Ask whether the gradients are finite, and keep the weights."""
        if not self._calls.open or self._error is not None or is_capturing():
            return
        with self._tried():
            self._settle(self._step)
            if self._scaler is not None and self._scaler.is_enabled():
                return
            held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            value = total(self._gradients(held))
            if value is not None:
                self._ask(value, held)
            if self._deferred and not self._talks:
                self._keep_weights()

    def _gradients(self, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        """What of their gradients is looked at."""
        known = self._products
        return [
            part
            for p in parameters
            if p.grad is not None
            for part in (edges(local(p.grad), known[id(p)]) if id(p) in known else (p.grad,))
        ]

    def _ask(self, value: torch.Tensor, parameters: Sequence[nn.Parameter]) -> None:
        self._waiting.append(_Waiting(self._step, Flag(value), parameters))
        if not self._deferred:
            self._settle()

    def _settle(self, before: int | None = None) -> None:
        """Read the sums of steps before one, which are known by now; default: all."""
        asked, self._waiting = self._waiting, []
        for each in asked:
            if before is not None and each.step >= before:
                self._waiting.append(each)
                continue
            if each.flag.is_finite():
                continue
            late = each.step != self._step
            gradients = [p.grad for p in each.parameters if p.grad is not None]
            if late or not each.parameters or any(not_finite(local(g)) for g in gradients):
                self._alarm(each.step)

    def _look_at_losses(self, step: int, scalars: Scalars) -> None:
        """Losses too, for what comes of them may be finite all the same; without optimizers also gradients."""
        losses = {name: value for name, value in scalars.items() if "loss" in name}
        later = [v.detach() for v in losses.values() if isinstance(v, torch.Tensor) and not _is_known(v)]
        known = {n: float(v) for n, v in losses.items() if not isinstance(v, torch.Tensor) or _is_known(v)}
        self._losses.extend([(step, value) for value in list(known.values())[:1]])
        bad = {name for name, value in known.items() if not math.isfinite(value)}
        self._known |= known.keys() - bad
        if bad & self._known:  # a best loss may begin with infinity
            self._alarm(step)
        if later and (value := total(later)) is not None:
            self._ask(value, ())
        if not self._optimizers:
            parameters = [
                p for model in self._models.values() for p in model.parameters() if p.grad is not None
            ]
            value = total(self._gradients(parameters))
            if value is not None:
                self._ask(value, parameters)

    def _look_at_scale(self, step: int) -> None:
        """A scale that falls without end: it is not the scale that the gradients are not finite by."""
        if self._scaler is None or step % SCALED or self._scaler.get_scale() >= self._lowest:
            return
        self._lowest = 0.0
        self._alarm(step)

    def _keep_weights(self) -> None:
        """As they are before the first update of a step."""
        if self._copied == self._step:
            return
        self._copied = self._step
        parameters = self._parameters()
        if len(self._before) != len(parameters):
            self._before = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(self._before, parameters)

    def _parameters(self) -> list[torch.Tensor]:
        """What optimizers change."""
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        return [
            p.data for g in groups for p in g["params"]
        ]  # .data: no version bump for a graph that saved it

    # -- finding out ------------------------------------------------------------------------------

    def _alarm(self, step: int) -> None:
        """A step that was not finite; not each of those that follow from it."""
        last, self._alarmed = self._alarmed, step
        if step <= last + 1 or self._alarms >= ALARMS:
            return
        self._alarms += 1
        calls, origin, box, failed = self._calls.of(step), None, "", ""
        with self._as_before(step):
            try:
                origin = None if self._talks else self._origin(calls)
            except Exception as error:  # of the user's model, or no memory: the step is told all the same
                failed = repr(error)
            with contextlib.suppress(Exception):  # storage: said in the finding
                box = write(self._run, step, self._calls, self._models)
        self._pending.append(Alarm(step, origin, calls, self._talks, box, failed))

    @contextlib.contextmanager
    def _as_before(self, step: int) -> Iterator[None]:
        """With the weights that the step began with, where they were kept; without an update they still are."""
        parameters = self._parameters()
        if self._copied != step or len(self._before) != len(parameters):
            yield
            return
        now = [parameter.clone() for parameter in parameters]
        torch._foreach_copy_(parameters, self._before)
        try:
            yield
        finally:
            torch._foreach_copy_(parameters, now)

    def _tell(self, scalars: Scalars) -> None:
        for alarm in self._pending:
            self._findings.append(finding(alarm, list(self._losses), scalars))
        self._pending.clear()

    def _origin(self, calls: Sequence[Call]) -> Origin | None:
        for call in calls:
            origin = replay(self._models[call.model], call)
            if origin is not None:
                return origin.of(call.model)
        return None

    def _write_box_of_rules(self, step: int) -> None:
        """A critical finding, and a loss that leapt: what came before it is worth keeping."""
        found = self._found()
        new, self._seen = found[self._seen :], len(found)
        alarming = [f for f in new if f.severity == "critical" or f.rule == "loss_spike"]
        if any(f.rule != "non_finite" for f in alarming) and self._boxes < ALARMS:
            self._boxes += 1
            write(self._run, step, self._calls, self._models)


def _reads_later(device: torch.device, weights: Sequence[torch.Tensor]) -> bool:
    """Whether sums are read a step later: on an accelerator that has room for another copy of the weights."""
    if device.type != "cuda":
        return False
    return sum(w.nbytes for w in weights) <= SHARE * torch.cuda.get_device_properties(device).total_memory


def _is_known(value: torch.Tensor) -> bool:
    """Whether it costs nothing to read."""
    return value.device.type == "cpu" and value.numel() == 1


def _talks(model: nn.Module) -> bool:
    by_module = any(isinstance(module, NO_REPLAY) for module in model.modules())
    return is_sharded(model) or by_module or any(isinstance(p, DTensor) for p in model.parameters())
