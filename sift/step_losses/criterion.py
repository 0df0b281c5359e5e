"""Record each sample's loss in the loop's own criterion, whatever the form of the batches."""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import sample_losses, validate
from loopwise.errors import InputError
from loopwise.preserve import inside, preserve

from ..loss_history import LossHistory
from .checksums import Fingerprint, rows
from .forward import AHEAD, deferred
from .settling import PATIENCE

WITH_A_STEP = (
    "with a TrainStep: its loss returns one number a sample, and after each step(batch) comes "
    "loader.record_losses(step.losses)"
)
"""Fix for loops whose loss is computed in a training step."""

_Candidates = dict[tuple[int, bool], Fingerprint]
"""(number of the batch's tensor, whether its first column is left out) -> fingerprint."""


class Recorder:
    """Records each sample's loss in the calls of the loop's own criterion.

    The target that a call receives must be a tensor of the batch that the loader yielded, with all rows in order: as it
    is, flattened, of another dtype, or without its first column (a language model's shifted tokens).  Then the losses
    are those of the batch's samples; for several losses a sample (tokens, pixels) their mean over targets other than
    ``ignore_index``.  Only the first call for a batch records; a second one of the same output, with the target's rows in
    another order, is mixup and refused.  Calls without gradient, as in a validation, and calls when no batch waits for
    its losses pass through.

    Args:
        criterion: the loop's own criterion.
        per_sample: the same criterion, called with the same arguments, that returns one or more losses for each sample;
            default: the criterion with ``reduction="none"``.
        history: receives the losses.
    """

    def __init__(
        self, criterion: Callable[..., Any], per_sample: Callable[..., Any] | None, history: LossHistory
    ) -> None:
        validate.function(
            "criterion", criterion, "the loop's criterion", "loader.criterion(nn.CrossEntropyLoss())"
        )
        self._criterion = criterion
        self._per_sample = _unreduced(criterion) if per_sample is None else per_sample
        self._torchs_own = _is_torchs(criterion if per_sample is None else per_sample)
        self.history = history
        self._pending: deque[tuple[torch.Tensor, _Candidates]] = deque(maxlen=AHEAD)
        self._places: set[tuple[int, bool]] | None = None
        self._deferred: list[torch.Tensor] = []
        self._last: list[Fingerprint] = []
        self._last_output: weakref.ref[torch.Tensor] | None = None
        self._last_given: list[weakref.ref[torch.Tensor]] = []
        self._repeats = False
        self.expected = self.recorded = 0
        self.compiled = False
        self._module: weakref.ref[nn.Module] | None = None
        self._gives = False
        """A compiled training step gives the arguments of the criterion's calls."""

    def follow(self, module: nn.Module) -> None:
        """Let a compiled training step give the calls of a module, which ``recording`` returned, if one trains it."""
        self._module = weakref.ref(module)
        sample_losses.subscribe(module, self)

    def recording(self) -> Callable[..., Any]:
        """Return the criterion in a form that records: of a subclass of its class, or a function."""
        criterion = self._criterion
        if not isinstance(criterion, nn.Module):

            @functools.wraps(criterion)
            def call(*args: Any, **kwargs: Any) -> Any:
                self.record(args, kwargs)
                return criterion(*args, **kwargs)

            return call
        recording = copy.copy(criterion)
        recording.__class__ = _recording_class(type(criterion))
        recording.__dict__["recorder"] = self
        return recording

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the losses of a call with these arguments, if it is a training step's."""
        if self._gives:
            return
        if torch.compiler.is_compiling():
            self.compiled = True
        elif not inside():
            self.receive_output(args, kwargs, None)

    def receive(self, batch: Any, losses: torch.Tensor | None) -> None:
        """Leave the losses of a step alone, whose criterion is another one."""

    def receive_output(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Record the losses of a call of a training step."""
        if torch.is_grad_enabled():
            given = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.Tensor)]
            if self._last_output is not None and self._last_output() is _output(args, kwargs):
                self._validate_order(given)
            if self._pending and not self._repeated(given):
                self._record(args, kwargs, given)

    def expect(self, indices: torch.Tensor, batch: Any) -> None:
        """Wait for the losses of a batch of the samples ``indices``."""
        self.expected += 1
        module = self._module() if self._module is not None else None
        self._gives = module is not None and sample_losses.announced(module)
        tensors = rows(batch, len(indices))
        candidates: _Candidates = {}
        for number, tensor in enumerate(tensors):
            for shifted in (False, True):
                place = number, shifted
                if (self._places is None or place in self._places) and (not shifted or tensor.ndim == 2):
                    candidates[place] = Fingerprint(tensor[:, 1:] if shifted else tensor, len(indices))
        self._pending.append((indices, candidates))

    def cancel(self) -> None:
        """Wait for no batch."""
        self._pending.clear()

    def fetch(self) -> None:
        """Fetch comparisons that were left on an accelerator.

        Raises:
            InputError: a target was not that of the batch handed out.
        """
        comparisons, self._deferred = self._deferred, []
        if comparisons and not bool(torch.stack(comparisons).all()):
            raise _foreign_target("targets of the last epoch")

    def validate_recorded(self, last: bool) -> None:
        """Raise an error if the first batches, or with ``last`` the first epoch, went by without a loss."""
        if self.recorded or not (last or self.expected >= PATIENCE or self.compiled):
            return
        raise InputError(
            f"no call of loader.criterion(...) in {self.expected} training steps that could record losses",
            "one call with gradient, in eager mode, for each batch",
            "the call is inside a compiled function"
            if self.compiled
            else "the loop calls another criterion, or has no gradient, as an evaluation",
            "call it outside of the compiled function, or pass losses to loader.record_losses(losses); evaluate with a "
            f"plain DataLoader, which yields all samples; {WITH_A_STEP}",
        )

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[torch.Tensor]) -> None:
        for position, (indices, candidates) in enumerate(self._pending):
            equal = {
                place: torch.stack(found).any()
                for place, fingerprint in candidates.items()
                if (found := _compared(fingerprint.equals, len(indices), given))
            }
            on_cpu = all(same.device.type == "cpu" for same in equal.values())
            if on_cpu or self._repeats or self.recorded < PATIENCE:
                equal = {place: same for place, same in equal.items() if bool(same)}
            elif equal:
                self._deferred.append(torch.stack(list(equal.values())).any())
            if equal:
                self._last = [candidates[place] for place in equal]
                self._places = (
                    set(equal) if self._places is None else self._places & set(equal) or self._places
                )
                output = _output(args, kwargs)
                self._last_output = None if output is None else weakref.ref(output)
                self._last_given = [weakref.ref(value) for value in given]
                self._add(indices, args, kwargs, given)
                for _ in range(position + 1):
                    self._pending.popleft()
                return
        if not self._equals_last(given):
            raise _foreign_target(f"a target of the form {batches.describe(given)}")
        self._repeats = True

    def _repeated(self, given: list[torch.Tensor]) -> bool:
        """Return whether the last recorded call received the same tensors: the loop calls the criterion twice.

        It matters where the next batch is fetched ahead, which may have the same targets.
        """
        same = [last() for last in self._last_given]
        if len(same) != len(given) or any(a is not b for a, b in zip(same, given, strict=True)):
            return False
        return self._equals_last(given)  # a tensor may have been filled anew

    def _equals_last(self, given: list[torch.Tensor]) -> bool:
        return any(bool(same) for last in self._last for same in _compared(last.equals, last.size, given))

    def _validate_order(self, given: list[torch.Tensor]) -> None:
        """Raise an error if an output's second target has the rows of its first in another order: mixup."""
        for same in [same for last in self._last for same in _compared(last.permuted, last.size, given)]:
            if deferred(same) and self.recorded >= PATIENCE:
                self._deferred.append(~same)
            elif bool(same):
                raise _foreign_target("a second target, in another order than the first,")

    @torch.no_grad()
    def _add(
        self, indices: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[torch.Tensor]
    ) -> None:
        detached = batches.map_tensors(torch.Tensor.detach, list(args))
        modules = (self._per_sample,) if isinstance(self._per_sample, nn.Module) else ()
        with nullcontext() if self._torchs_own else preserve(*modules):  # it may draw, or count its calls
            losses, size = self._per_sample(*detached, **kwargs), len(indices)
        if not isinstance(losses, torch.Tensor) or not losses.ndim or losses.numel() % size:
            raise InputError(
                f"per-sample losses of the form {batches.describe(losses)} for a batch of {size}",
                f"a Tensor with one or more losses for each of the {size} samples",
                "the criterion has no reduction='none', or per_sample= averages over the batch",
                "pass per_sample=, the criterion without its mean over the batch",
            )
        losses = losses.reshape(size, -1)
        ignored = kwargs.get("ignore_index", getattr(self._criterion, "ignore_index", None))
        counted = [t for t in given if t.numel() == losses.numel() and not t.is_floating_point()]
        if ignored is None or not counted:
            losses = losses.mean(1)
        else:
            mask = (counted[0] != ignored).reshape(size, -1)
            losses = (losses * mask).sum(1) / mask.sum(1).clamp_min(1)
        self.history.add_losses(indices, losses)
        self.recorded += 1


def _recording_class(base: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a criterion's class whose calls are recorded, and whose copies and pickles are plain."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.recorder.record(args, kwargs)
        return base.forward(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        plain = base.__new__(base)
        plain.__dict__.update({name: value for name, value in vars(self).items() if name != "recorder"})
        return plain.__reduce_ex__(1)  # a later protocol insists on the object's own class

    return type(f"Recording{base.__name__}", (base,), {"forward": forward, "__reduce_ex__": reduce})


def _compared(
    compare: Callable[[torch.Tensor], torch.Tensor | None], size: int, given: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the results of ``compare`` for the tensors of ``given`` that may have ``size`` rows: bool, 0-dimensional."""
    shaped = [tensor.reshape(size, -1) for tensor in given if tensor.ndim and tensor.numel() % size == 0]
    return [result for tensor in shaped if (result := compare(tensor)) is not None]


def _output(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the first tensor of a call, which is the model's output."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def _unreduced(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """Return the criterion with reduction='none'."""
    if isinstance(criterion, nn.Module) and hasattr(criterion, "reduction"):
        unreduced = copy.copy(criterion)
        unreduced.reduction = "none"  # type: ignore[assignment]
        return unreduced
    try:
        named = "reduction" in inspect.signature(criterion).parameters
    except (TypeError, ValueError):
        named = False
    if named:
        return functools.partial(criterion, reduction="none")
    raise InputError(
        f"a criterion without reduction: {criterion!r}",
        "one of torch's criteria, or a function with a parameter named reduction",
        "a criterion of your own",
        "pass per_sample= as well: the same criterion, returning one loss for each sample",
    )


def _is_torchs(criterion: Callable[..., Any]) -> bool:
    """Return whether a criterion is one of torch's, which have no state and draw nothing."""
    owner = type(criterion) if isinstance(criterion, nn.Module) else criterion
    return str(getattr(owner, "__module__", "")).startswith("torch.nn.")


def _foreign_target(seen: str) -> InputError:
    return InputError(
        f"{seen} that is no tensor of the batch that the loader yielded",
        "the target of that batch, all rows in order, perhaps flattened, of another dtype or without its first column",
        "the loop reorders, mixes or splits the batch, makes its target itself, or trains on other samples first",
        "do that in the collate function; or pass one loss for each sample to loader.record_losses(losses)",
    )
