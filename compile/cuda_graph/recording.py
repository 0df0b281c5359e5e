"""Record a training step as a CUDA graph, compare it with ordinary steps, and time both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise import random_state

from ..losses import scalar_loss, split_loss
from ..search.candidates import TIE
from ..search.measure import median, seconds
from ..spec import Compute, StepSpec
from ..torch_internals import has_hooks
from ..verify.errors import update_error
from .recorder import Recorder, Replay
from .state import SavedState, buffers_of, modules_of, parameters_of, plain_attributes, signature

TOLERANCE = 1e-4
"""Largest relative error allowed after replayed steps.

If two runs of ordinary steps differ by more than a quarter of it, four times that difference is allowed."""
REPEATABLE = 0.01
"""Largest relative error between ordinary steps; if it is larger, they cannot show whether a recording is right."""


@dataclass
class Recording:
    """A recorded step and the addresses that it reads and writes."""

    signature: Any
    structure: str
    """Structure of the batch: containers, and values that are no tensors."""
    parameters: list[Tensor]
    gradients: list[Tensor | None]
    """Gradients that each replay adds to, by parameter; ``None`` if a replay makes the gradient."""
    batch: Any
    """Tensors that the recorded step reads its batch from."""
    rates: list[Tensor]
    """Tensors that the recorded step reads the learning rates from."""
    replays: dict[bool, tuple[Replay, Tensor]]
    """Key: true for the last batch of an update.  Value: the replay, and the tensor that holds its losses."""

    def gradients_moved(self) -> bool:
        """Return whether a gradient was replaced since the recording, for instance by a backward pass of the user."""
        pairs = zip(self.parameters, self.gradients, strict=True)
        return any(parameter.grad is not grad for parameter, grad in pairs)

    def drop_zero_gradients(self) -> None:
        """Drop the gradients that the recording kept and that hold zeros, as an ordinary update would have done."""
        for parameter, grad in zip(self.parameters, self.gradients, strict=True):
            if grad is not None and parameter.grad is grad and not grad.any():
                parameter.grad = None

    @torch.no_grad()
    def replay(self, batch: Any, last: bool, optimizer: Optimizer) -> Tensor:
        """Run the recorded step on a batch and return its losses."""
        for place, value in zip(batches.leaves(self.batch), batches.leaves(batch), strict=True):
            place.copy_(value, non_blocking=True)
        for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
            if rate is not group["lr"]:
                rate.fill_(float(group["lr"]))
        replay, losses = self.replays[last]
        replay()
        return losses.clone()


def structure_of(batch: Any) -> str:
    """Return the containers of a batch in their order, and all values in them that are no tensors."""
    placeholder: Any = "tensor"
    return repr(batches.map_tensors(lambda tensor: placeholder, batch))


def refusal(spec: StepSpec, batch: Any) -> str:
    """Return the reason why a step cannot be recorded, or an empty text."""
    optimizer, kind = spec.optimizer, spec.device.type
    if optimizer is None:
        return "there is no optimizer"
    groups = optimizer.param_groups
    modules = modules_of(spec)
    parameters = parameters_of(modules, optimizer)
    updated = {id(p) for group in groups for p in group["params"]}
    forgotten = any(p.requires_grad and id(p) not in updated for p in parameters)
    recordable = all(group.get("fused") or group.get("capturable") for group in groups)
    caching = torch.is_autocast_enabled(kind) and torch.is_autocast_cache_enabled()
    others = [x for x in batches.leaves(batch) if not isinstance(x, Tensor) or x.device != spec.device]
    reasons = {
        f"the batch holds other things than tensors on {spec.device}": bool(others),
        "the optimizer does not have all parameters that need a gradient": forgotten,
        "the optimizer is neither fused nor capturable": not recordable,
        "a GradScaler waits for the GPU at each step": spec.scaler is not None,
        "a framework's wrapper of the optimizer does more than its step": spec.wrapper is not optimizer,
        "autocast around the step keeps casts of the weights; precision='mixed' does not": caching,
        "hooks of the model or the optimizer would not be called": has_hooks(modules, parameters, optimizer),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class Attempt:
    """Attempt to record a step; the training's state is restored afterwards.

    Args:
        spec: the training step.
        compute: the computation of its loss.
        recorder: recorder of the step's device.
        recent: latest batches; replays are compared with ordinary steps on them.
    """

    def __init__(self, spec: StepSpec, compute: Compute, recorder: Recorder, recent: Sequence[Any]) -> None:
        assert spec.optimizer is not None
        self._spec, self._compute, self._recorder, self._recent = spec, compute, recorder, recent
        self._optimizer: Optimizer = spec.optimizer
        self._accumulates = spec.accumulate > 1
        self.timing = ""
        """Text with the milliseconds of both kinds of step; empty before they are timed."""

    def run(self, batch: Any) -> tuple[Recording | None, str]:
        """Return a recording that makes the same steps faster; or ``None``, and the reason."""
        saved, recording = SavedState(self._spec), None
        try:
            made = self._record(batch, saved)
            reason = self._difference(made, saved) or self._slower(made)
            recording = None if reason else made
            return recording, reason
        except BaseException:
            self._recorder.settle()
            raise
        finally:
            saved.restore(gradients=not (recording is not None and self._accumulates))

    def _record(self, batch: Any, saved: SavedState) -> Recording:
        """Run the step once outside of a recording, and record it."""
        spec = self._spec
        place = batches.map_tensors(lambda tensor: tensor.detach().clone(), batch)
        other_draws = _other_random_states(spec.device)
        self._recorder.warm(lambda: self._ordinary(place))
        if _other_random_states(spec.device) != other_draws:
            raise RuntimeError("the step draws random numbers that are not the GPU's")
        if plain_attributes(saved.modules) != saved.plain:
            raise RuntimeError("numbers that are attributes of the model change at each step")

        def last_batch() -> Tensor:
            losses = self._backward(place)
            spec.update(self._accumulates)
            return losses

        with self._rates_on_device(capturable=True) as rates:
            replays = {True: self._recorder.record(last_batch)}
            if self._accumulates:
                replays[False] = self._recorder.record(lambda: self._backward(place))
        gradients = [parameter.grad for parameter in saved.parameters]
        fixed = signature(spec)
        return Recording(fixed, structure_of(batch), saved.parameters, gradients, place, rates, replays)

    def _backward(self, batch: Any) -> Tensor:
        """Run forward and backward of a batch; return its losses."""
        losses, count = split_loss(self._compute(batch))
        if count is not None:
            raise RuntimeError("the loss returns a count, and a recording gives each batch the same weight")
        self._spec.backward(scalar_loss(losses))
        return losses.detach()  # type: ignore[no-any-return]

    def _ordinary(self, batch: Any) -> list[Tensor]:
        """Train on one batch for a whole update by ordinary steps; return the losses."""
        losses = [self._backward(batch).clone() for _ in range(self._spec.accumulate)]
        self._spec.update(self._accumulates)
        return losses

    def _replayed(self, recording: Recording, batch: Any) -> list[Tensor]:
        """Train on one batch for a whole update, by replays; return the losses."""
        count = self._spec.accumulate
        return [recording.replay(batch, number == count - 1, self._optimizer) for number in range(count)]

    @contextlib.contextmanager
    def _rates_on_device(self, capturable: bool) -> Iterator[list[Tensor]]:
        """Turn the learning rates into float32 tensors on the device; restore the user's on leaving."""
        groups, device = self._optimizer.param_groups, self._spec.device
        names = ("lr", "capturable")
        users: list[dict[str, Any]] = [{n: group[n] for n in names if n in group} for group in groups]
        try:
            for group in groups:
                rate = group["lr"]
                if not isinstance(rate, Tensor) or rate.device != device:
                    group["lr"] = torch.tensor(float(rate), dtype=torch.float32, device=device)
                if capturable and "capturable" in group:
                    group["capturable"] = True
            yield [group["lr"] for group in groups]
        finally:
            for group, values in zip(groups, users, strict=True):
                group.update(values)

    def _difference(self, recording: Recording, saved: SavedState) -> str:
        """Return the difference of replayed from ordinary steps on the recent batches, or an empty text."""

        def trained(run: Callable[[Any], list[Tensor]]) -> dict[str, list[Tensor]]:
            saved.restore(gradients=False)
            losses = [loss for batch in self._recent for loss in run(batch)]
            state = {"weights": saved.parameters, "buffers": buffers_of(saved.modules)}
            return {"losses": losses} | {name: [t.detach().clone() for t in ts] for name, ts in state.items()}

        before = {"weights": saved.copies_of(saved.parameters), "buffers": saved.copies_of(saved.buffers)}
        # float32 rates as in the recording, because Adam enlarges a difference in the last digit
        with self._rates_on_device(capturable=False):
            expected, again = trained(self._ordinary), trained(self._ordinary)
        replayed = trained(lambda batch: self._replayed(recording, batch))
        # losses are compared with their own size, the rest with the change that the steps made
        before["losses"] = [torch.zeros_like(loss) for loss in expected["losses"]]
        for name, tensors in expected.items():
            error, noise = (update_error(run[name], tensors, before[name]) for run in (replayed, again))
            if not noise <= REPEATABLE:
                return (
                    f"two runs of the ordinary steps give different {name} (relative difference {noise:.2g})"
                )
            if not error <= max(TOLERANCE, 4 * noise):
                return f"wrong: its {name} are off by {error:.2g}"
        return ""

    def _slower(self, recording: Recording) -> str:
        """Time replayed and ordinary steps; return both times if the replayed one is not faster."""
        batch = self._recent[-1]
        steps = {
            "ordinary": lambda: self._ordinary(batch),
            "graph": lambda: (signature(self._spec), self._replayed(recording, batch)),
        }
        times = {name: median(t) for name, t in seconds(steps, self._spec.device).items()}
        self.timing = f"{1e3 * times['graph']:.2f} ms instead of {1e3 * times['ordinary']:.2f} ms an update"
        return self.timing if times["graph"] >= times["ordinary"] * (1 - TIE) else ""


def _other_random_states(device: torch.device) -> Any:
    """Return the random states that a replay does not draw from, as values that can be compared."""
    states = random_state.get()
    of_torch = () if device.type == "cpu" else (states["torch"].tolist(),)
    return states["python"], states["numpy"][1].tolist(), states["numpy"][2:], *of_torch
