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
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise import random_state
from loopwise.ranks import world_size

from .backend import first_line
from .measure import seconds
from .recorder import Recorder, Replay
from .state import Kept, hooked, signature
from .trials import TIE

WARM = 3
"""Ordinary updates before a recording: libraries choose their algorithms, the optimizer makes its state."""
MOST = 3
"""Recordings; a step that changes more often stays ordinary."""
TOLERANCE = 1e-4
"""How far weights may be from those of ordinary steps, relative to what these changed; or four times as far as
these are from each other."""


class Step(Protocol):
    """What recording needs to know of a training step."""

    model: nn.Module
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
        shape_of: shapes and dtypes of a batch.
        recorder: of its device.
        tell: takes one line for ``explain()``.
    """

    def __init__(
        self,
        step: Step,
        usual: Any,
        shape_of: Callable[[Any], Any],
        recorder: Recorder,
        tell: Callable[[str], None],
    ) -> None:
        self.off = ""
        """Why the step stays ordinary."""
        self._step, self._usual, self._shape_of = step, usual, shape_of
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
        if self.off or self._shape_of(batch) != self._usual:
            return None
        if self._recorded is not None and self._recorded.signature != signature(self._step):
            self._recorded, self._ordinary = None, 0
            self._tell(
                "CUDA graph: recorded anew, the model, its mode or the optimizer are not what they were"
            )
        if self._recorded is None:
            if not first or self._ordinary < WARM:
                self._past.append(batch)
                self._ordinary += last
                return None
            self._try(batch)
        return None if self._recorded is None else self._replay(self._recorded, batch, last)

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

    def _try(self, batch: Any) -> None:
        """Record and compare; everything is as before afterwards."""
        self._tries += 1
        self.off = self._refusal(batch)
        if not self.off:
            try:
                self._recorded, self.off = self._tried(batch)
            except Exception as error:  # training goes on, as if it had not been tried
                self.off = first_line(error)
        if self.off:
            self._recorded = None
            self._tell(f"CUDA graph: left off, {self.off}")
        self._past.clear()

    def _refusal(self, batch: Any) -> str:
        """Why this step cannot be recorded, if so."""
        step, optimizer = self._step, self._step.optimizer
        if optimizer is None:
            return "there is no optimizer"
        groups = optimizer.param_groups
        held = {p for group in groups for p in group["params"]}
        leaves = batches.leaves(batch)
        for wrong, why in (
            (self._tries > MOST, f"the step changed after each of {MOST} recordings"),
            (
                any(not isinstance(leaf, Tensor) or leaf.device != step.device for leaf in leaves),
                f"the batch holds other things than tensors on {step.device}",
            ),
            (
                any(p.requires_grad and p not in held for p in step.model.parameters()),
                "the optimizer does not have all parameters that need a gradient",
            ),
            (
                not all(group.get("fused") or group.get("capturable") for group in groups),
                "the optimizer is neither fused nor capturable",
            ),
            (step.scaler is not None, "a GradScaler waits for the GPU at each step"),
            (step.outer is not optimizer, "a framework's wrapper of the optimizer does more than its step"),
            (world_size() > 1 or isinstance(step.model, DistributedDataParallel), "there are several ranks"),
            (
                hooked(list(step.model.modules()), optimizer),
                "hooks of the model or the optimizer would not be called",
            ),
        ):
            if wrong:
                return why
        return ""

    def _tried(self, batch: Any) -> tuple[_Recorded | None, str]:
        """A recording that makes the same steps faster, or why there is none."""
        assert self._step.optimizer is not None
        kept = Kept(self._step.model, self._step.optimizer)
        good = False
        try:
            recorded = self._record(batch)
            why = self._wrong(recorded, kept) or self._slow(recorded)
            good = not why
            return (recorded if good else None), why
        except BaseException:
            self._recorder.settle()
            raise
        finally:
            kept.restore(gradients=not (good and self._accumulates))

    def _record(self, batch: Any) -> _Recorded:
        step = self._step
        place = batches.map_tensors(lambda tensor: tensor.detach().clone(), batch)
        outside = _outside(step.device)
        self._recorder.warm(lambda: self._cycle(place))
        if _outside(step.device) != outside:
            raise RuntimeError("the step draws random numbers that are not the GPU's")

        def final() -> Tensor:
            losses = step.backward(place)
            step.apply(self._accumulates)
            return losses

        with self._rates(capturable=True) as rates:
            replays = {True: self._recorder.record(final)}
            if self._accumulates:
                replays[False] = self._recorder.record(lambda: step.backward(place))
        return _Recorded(signature(step), place, rates, replays)

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
        parameters = list(self._step.model.parameters())

        def made(run: Callable[[Any], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
            kept.restore(gradients=False)
            losses = [loss for batch in self._past for loss in run(batch)]
            return losses, [p.detach().clone() for p in parameters]

        with self._rates(capturable=False):  # rounded as in the recording: Adam makes much of a last place
            expected, again = made(self._cycle), made(self._cycle)
        replayed, before = made(lambda batch: self._replayed(recorded, batch)), kept.of(parameters)
        for number, what in enumerate(("losses", "weights")):
            # losses are compared with their own size, weights with what the steps changed in them
            starts = before if number else [torch.zeros_like(loss) for loss in expected[0]]
            apart, noise = (_apart(run[number], expected[number], starts) for run in (replayed, again))
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


def _apart(found: list[Tensor], wanted: list[Tensor], before: list[Tensor]) -> float:
    """Distance of ``found`` from ``wanted``, relative to that of ``before``; infinite where they differ and nothing moved."""
    apart, moved = (
        sum(float((a.double() - b.double()).square().sum()) for a, b in zip(wanted, others, strict=True))
        for others in (found, before)
    )
    return (apart / moved) ** 0.5 if moved else float("inf" if apart else 0)


def _outside(device: torch.device) -> Any:
    """Random states that a replay does not draw from, to compare."""
    states = random_state.get()
    own = () if device.type == "cpu" else (states["torch"].tolist(),)
    return states["python"], states["numpy"][1].tolist(), states["numpy"][2:], *own
