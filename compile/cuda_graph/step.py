"""The whole training step as one CUDA graph: forward, backward, clipping and update, recorded once and replayed.

A recording has addresses and numbers of the moment in it.  So batches are copied to where the recorded one lies,
learning rates are read from the GPU, gradients of accumulated batches stay where they are, and everything else that
a recording cannot follow is looked at before each replay: what differs is recorded anew.  PyTorch's own graph
trees record forward and backward alone and overwrite gradients that are still being accumulated
(https://github.com/pytorch/pytorch/issues/96693).
"""

from __future__ import annotations

import contextlib
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise import random_state

from ..graph.backend import first_line
from ..search.candidates import TIE
from ..search.measure import seconds
from ..search.optimizers import distance
from ..search.variants import shape_of
from .recorder import Recorder, Replay
from .state import Kept, buffers_of, hooked, modules_of, parameters_of, plain_of, signature

WARM = 3
"""Ordinary updates before a recording: libraries choose their algorithms, the optimizer makes its state."""
MOST = 3
"""Recordings; a step that changes more often stays ordinary."""
TOLERANCE = 1e-4
"""How far weights may be from those of ordinary steps, relative to what these changed; or four times as far as
these are from each other."""
NOISE = 0.01
"""Where ordinary steps are further than this from each other they tell nothing about a recording."""


class Step(Protocol):
    """What recording needs to know of a training step."""

    model: nn.Module
    loss: Any
    optimizer: Optimizer | None
    device: torch.device
    accumulate: int
    scaler: Any
    outer: Any

    def backward(self, batch: Any) -> Tensor: ...

    def apply(self, keep_gradients: bool) -> None: ...


@dataclass
class _Recorded:
    signature: Any
    form: str
    """The batch's containers, and what else is in them."""
    parameters: list[Tensor]
    gradients: list[Tensor | None]
    """Of the parameters, before each replay: where it adds to them, or none."""
    batch: Any
    """Where the recorded step reads its batch."""
    rates: list[Tensor]
    """Where it reads the learning rates."""
    replays: dict[bool, tuple[Replay, Tensor]]
    """Last batch of an update? -> what runs it, and where its losses are then."""


class WholeStep:
    """Replays a training step where that is possible, right and faster, and says so once where it is not.

    Args:
        step: the training step.
        usual: shapes of the batches that are replayed, as ``shape_of`` gives them.
        recorder: of its device.
        tell: takes one line for ``explain()``.
    """

    def __init__(self, step: Step, usual: Any, recorder: Recorder, tell: Callable[[str], None]) -> None:
        self.off = ""
        """Why the step stays ordinary."""
        self._step, self._usual = step, usual
        self._recorder, self._tell = recorder, tell
        self._recorded: _Recorded | None = None
        self._past: deque[Any] = deque(maxlen=WARM)
        self._ordinary = self._tries = 0

    @property
    def keeps_gradients(self) -> bool:
        """Whether a recording adds to gradients: they must be set to zero where they are, instead of being made anew."""
        return self._recorded is not None and self._accumulates

    @property
    def _accumulates(self) -> bool:
        return self._step.accumulate > 1

    def __call__(self, batch: Any, first: bool, last: bool) -> Tensor | None:
        """The losses of a batch that was trained on, or ``None``: the step is to be made the ordinary way.

        Args:
            batch: the batch.
            first: whether it is the first one since an update.
            last: whether it is the last one before an update.
        """
        if self.off or shape_of(batch) != self._usual:
            return None
        recorded = self._recorded
        if recorded is not None:
            added = self._added(recorded)
            if added and not self._accumulates:
                return None
            if added or recorded.signature != signature(self._step):
                self._forget(recorded, first)
                recorded = None
        if recorded is None:
            if not first or self._ordinary < WARM:
                self._past.append(batch)
                self._ordinary += last
                return None
            recorded = self._try(batch)
        if recorded is None or _form(batch) != recorded.form:
            return None
        return self._replay(recorded, batch, last)

    def _added(self, recorded: _Recorded) -> bool:
        """Whether gradients are elsewhere than the recording reads them, as after a backward pass of the user's own."""
        both = zip(recorded.parameters, recorded.gradients, strict=True)
        return any(parameter.grad is not grad for parameter, grad in both)

    def _forget(self, recorded: _Recorded, first: bool) -> None:
        """It does not hold any more; gradients are as after an ordinary update where there was one."""
        self._recorded, self._ordinary = None, 0
        for parameter, grad in zip(recorded.parameters, recorded.gradients, strict=True):
            if first and grad is not None and parameter.grad is grad and not grad.any():
                parameter.grad = None
        self._tell("CUDA graph: recorded anew, the model, its mode or the optimizer are not what they were")

    @torch.no_grad()
    def _replay(self, recorded: _Recorded, batch: Any, last: bool) -> Tensor:
        """Run the recording for a batch; its losses."""
        for place, value in zip(batches.leaves(recorded.batch), batches.leaves(batch), strict=True):
            place.copy_(value, non_blocking=True)
        assert self._step.optimizer is not None
        for rate, group in zip(recorded.rates, self._step.optimizer.param_groups, strict=True):
            if rate is not group["lr"]:
                rate.fill_(float(group["lr"]))
        replay, losses = recorded.replays[last]
        replay()
        return losses.clone()

    # -- recording ------------------------------------------------------------------------------

    def _try(self, batch: Any) -> _Recorded | None:
        """Record and compare; everything is as before afterwards."""
        self._tries += 1
        try:
            self.off = self._refusal(batch)
            if not self.off:
                self._recorded, self.off = self._tried(batch)
        except Exception as error:  # training goes on, as if it had not been tried
            self.off = first_line(error)
        if self.off:
            self._recorded = None
            self._tell(f"CUDA graph: left off, {self.off}")
        self._past.clear()
        return self._recorded

    def _refusal(self, batch: Any) -> str:
        """Why this step cannot be recorded, if so."""
        step, optimizer, kind = self._step, self._step.optimizer, self._step.device.type
        if optimizer is None:
            return "there is no optimizer"
        groups = optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        modules = modules_of(step)
        parameters = parameters_of(modules, optimizer)
        caching = torch.is_autocast_enabled(kind) and torch.is_autocast_cache_enabled()
        others = [x for x in batches.leaves(batch) if not isinstance(x, Tensor) or x.device != step.device]
        for wrong, why in (
            (self._tries > MOST, f"the step changed after each of {MOST} recordings"),
            (others, f"the batch holds other things than tensors on {step.device}"),
            (
                any(p.requires_grad and id(p) not in held for p in parameters),
                "the optimizer does not have all parameters that need a gradient",
            ),
            (
                not all(group.get("fused") or group.get("capturable") for group in groups),
                "the optimizer is neither fused nor capturable",
            ),
            (step.scaler is not None, "a GradScaler waits for the GPU at each step"),
            (step.outer is not optimizer, "a framework's wrapper of the optimizer does more than its step"),
            (caching, "autocast around the step keeps casts of the weights; precision='mixed' does not"),
            (
                hooked(modules, parameters, optimizer),
                "hooks of the model or the optimizer would not be called",
            ),
        ):
            if wrong:
                return why
        return ""

    def _tried(self, batch: Any) -> tuple[_Recorded | None, str]:
        """A recording that makes the same steps faster, or why there is none."""
        kept = Kept(self._step)
        good = False
        try:
            recorded = self._record(batch, kept)
            why = self._wrong(recorded, kept) or self._slow(recorded)
            good = not why
            return (recorded if good else None), why
        except BaseException:
            self._recorder.settle()
            raise
        finally:
            kept.restore(gradients=not (good and self._accumulates))

    def _record(self, batch: Any, kept: Kept) -> _Recorded:
        step = self._step
        place = batches.map_tensors(lambda tensor: tensor.detach().clone(), batch)
        outside = _outside(step.device)
        self._recorder.warm(lambda: self._cycle(place))
        if _outside(step.device) != outside:
            raise RuntimeError("the step draws random numbers that are not the GPU's")
        if plain_of(kept.modules) != kept.plain:
            raise RuntimeError("numbers that are attributes of the model change at each step")

        def final() -> Tensor:
            losses = step.backward(place)
            step.apply(self._accumulates)
            return losses

        with self._rates(capturable=True) as rates:
            replays = {True: self._recorder.record(final)}
            if self._accumulates:
                replays[False] = self._recorder.record(lambda: step.backward(place))
        gradients = [parameter.grad for parameter in kept.parameters]
        return _Recorded(signature(step), _form(batch), kept.parameters, gradients, place, rates, replays)

    def _cycle(self, batch: Any) -> list[Tensor]:
        """All batches of an update, made the ordinary way."""
        losses = [self._step.backward(batch).clone() for _ in range(self._step.accumulate)]
        self._step.apply(self._accumulates)
        return losses

    def _replayed(self, recorded: _Recorded, batch: Any) -> list[Tensor]:
        count = self._step.accumulate
        return [self._replay(recorded, batch, number == count - 1) for number in range(count)]

    @contextlib.contextmanager
    def _rates(self, capturable: bool) -> Iterator[list[Tensor]]:
        """The learning rates as float32 on the device; the user's are put back on leaving."""
        assert self._step.optimizer is not None
        groups, rates = self._step.optimizer.param_groups, []
        names = ("lr", "capturable")
        kept: list[dict[str, Any]] = [{n: group[n] for n in names if n in group} for group in groups]
        try:
            for group in groups:
                rate, device = group["lr"], self._step.device
                there = isinstance(rate, Tensor) and rate.device == device
                rates.append(rate if there else torch.tensor(float(rate), dtype=torch.float32, device=device))
                group["lr"] = rates[-1]
                if capturable and "capturable" in group:
                    group["capturable"] = True
            yield rates
        finally:
            for group, own in zip(groups, kept, strict=True):
                group.update(own)

    # -- judging --------------------------------------------------------------------------------

    def _wrong(self, recorded: _Recorded, kept: Kept) -> str:
        """How replayed steps on the last batches differ from ordinary ones, if they do."""

        def made(run: Callable[[Any], list[Tensor]]) -> dict[str, list[Tensor]]:
            kept.restore(gradients=False)
            losses = [loss for batch in self._past for loss in run(batch)]
            state = {"weights": kept.parameters, "buffers": buffers_of(kept.modules)}
            return {"losses": losses} | {name: [t.detach().clone() for t in ts] for name, ts in state.items()}

        before = {"weights": kept.of(kept.parameters), "buffers": kept.of(kept.buffers)}
        with self._rates(capturable=False):  # rounded as in the recording: Adam makes much of a last place
            expected, again = made(self._cycle), made(self._cycle)
        replayed = made(lambda batch: self._replayed(recorded, batch))
        # losses are compared with their own size, the rest with what the steps changed
        before["losses"] = [torch.zeros_like(loss) for loss in expected["losses"]]
        for what, wanted in expected.items():
            apart, noise = (distance(run[what], wanted, before[what]) for run in (replayed, again))
            if not noise <= NOISE:
                return f"ordinary steps do not repeat themselves, their {what} are {noise:.2g} apart"
            if not apart <= max(TOLERANCE, 4 * noise):
                return f"wrong: its {what} are off by {apart:.2g}"
        return ""

    def _slow(self, recorded: _Recorded) -> str:
        batch = self._past[-1]
        forms = {
            "ordinary": lambda: self._cycle(batch),
            "graph": lambda: (signature(self._step), self._replayed(recorded, batch)),
        }
        times = {name: statistics.median(t) for name, t in seconds(forms, self._step.device).items()}
        text = f"{1e3 * times['graph']:.2f} ms instead of {1e3 * times['ordinary']:.2f} ms an update"
        if times["graph"] >= times["ordinary"] * (1 - TIE):
            return text
        self._tell(f"CUDA graph: the whole step is one, {text}")
        return ""


def _form(batch: Any) -> str:
    """Its containers in their order, and all in them that is no tensor."""
    mark: Any = "tensor"
    return repr(batches.map_tensors(lambda tensor: mark, batch))


def _outside(device: torch.device) -> Any:
    """Random states that a replay does not draw from, to compare."""
    states = random_state.get()
    own = () if device.type == "cpu" else (states["torch"].tolist(),)
    return states["python"], states["numpy"][1].tolist(), states["numpy"][2:], *own
