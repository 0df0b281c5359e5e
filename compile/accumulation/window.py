"""Accumulation of gradients: the batches of an update, their counts, and the average over them.

The gradient of an update is that of ``sum(loss * count) / sum(count)`` over the update's batches, and over those of
all ranks under DDP, as if they were one batch.  Batches without counts count as 1 each.  A batch's loss is multiplied by
its count over ``accumulate`` times a usual count, so that gradients in low precision have their usual size.  At the
update all gradients are multiplied once by the factor that is missing, which is 1 if the counts are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from loopwise.errors import InputError
from loopwise.warnings import warn

from ..losses import count_of
from ..options import foreign_optimizer, holds_parameters
from ..spec import StepSpec, Tell
from ..torch_internals import multiply
from .counts import LabelMonitor, found
from .reduction import add_zeros, average

_STATE = ("batches", "_total", "_counted", "_usual", "_updated")


class Accumulation:
    """Batches whose gradients make one update.

    The caller calls ``begin`` for each batch, then ``backward`` or a replay, then ``add``, and then ``update`` if that is due.

    Args:
        spec: the training step.
        tell: takes a line for ``explain()``.
    """

    def __init__(self, spec: StepSpec, tell: Tell) -> None:
        self.batches = 0
        """Number of batches since the latest update."""
        self._spec, self._tell = spec, tell
        self._total = 0.0  # sum of the counts since the latest update
        self._given: Any = None  # count of the batch in hand as it came, perhaps a tensor on a GPU
        self._count = 1.0  # the same count, once it was read
        self._is_read = False
        self._counted = False  # whether batches have counts, once a batch has told
        self._usual = 0.0  # 0 before the first count
        self._labels = LabelMonitor()
        self._updated = self._left_out = False

    @property
    def first(self) -> bool:
        """``True`` if the batch in hand is the first one of an update."""
        return self.batches == 0

    @property
    def last(self) -> bool:
        """``True`` if the batch in hand is the last one of an update."""
        return self.batches + 1 == self._spec.accumulate

    @property
    def remarks(self) -> list[str]:
        """Lines for ``explain()``."""
        if not self.batches:
            return []
        seen = f"{self.batches} of {self._spec.accumulate} batches"
        return [f"the present update has {seen}: later batches complete it, or flush() makes it now"]

    @property
    def _wrapper(self) -> DistributedDataParallel | None:
        model = self._spec.model
        return model if isinstance(model, DistributedDataParallel) else None

    @property
    def _world(self) -> int:
        return 1 if self._wrapper is None else dist.get_world_size(self._wrapper.process_group)

    @property
    def _is_single(self) -> bool:
        """``True`` if an update has one batch in all, whose count matters only if it is 0."""
        return self._spec.accumulate == 1 and self._world == 1

    # -- one batch ------------------------------------------------------------------------------

    def begin(self, batch: Any, count: Any = None) -> None:
        """Take a batch in hand; ``count`` is the user's, or ``None``.

        Raises:
            InputError: ``count`` is no number from 0 on.
        """
        self._is_read = False
        waits = isinstance(count, Tensor) and count.device.type != "cpu"  # read when the GPU has other work
        self._given = count if count is None or waits else count_of(count)
        if count is None and self._spec.accumulate > 1:
            self._given = found(self._spec.loss, batch)

    def is_regular(self) -> bool:
        """Return whether a recorded step trains right: the batch has the usual weight, and the update the factor 1."""
        if self._given is None:
            return True
        regular = self._weight() is None
        if self._is_single or not self.last:
            return regular
        return regular and self._total + self._count == self._spec.accumulate * self._usual

    def backward(self, loss: Tensor, count: Any = None) -> None:
        """Run the backward pass of the batch in hand; it may be run again after its gradient was dropped.

        Args:
            loss: the batch's loss, shape ().
            count: the count that the loss function returned, or ``None``.

        Raises:
            InputError: this batch has a count and others have none, or the reverse.
        """
        weight = self._weight(count)
        if weight != 0.0:
            self._spec.backward(loss, weight)
        elif self._wrapper is not None and self.last:  # the other ranks wait for gradients of this one
            add_zeros(self._wrapper, loss)

    def _weight(self, returned: Any = None) -> float | None:
        """Return the factor of the batch's loss; ``None`` if it is an equal share of the update."""
        if not self._is_read:
            given = returned if self._given is None else self._given
            self._count, self._is_read = 1.0 if given is None else count_of(given), True
            if not self._is_single:
                self._agree(given is not None)
        if not self._count:
            return 0.0
        if self._is_single or self._count == self._usual:
            return None
        return self._count / (self._usual * self._spec.accumulate)

    def _agree(self, counted: bool) -> None:
        """Fix whether batches have counts, and the usual count, on all ranks alike."""
        alike = True
        if not self._usual:
            ranks, total, positive = self._over_ranks(float(counted), self._count, float(self._count > 0))
            alike, self._counted = ranks in (0.0, self._world), counted
            self._usual = total / positive if positive else 0.0
        if counted != self._counted or not alike:
            raise InputError(
                f"a batch {'with' if counted else 'without'} a count, and others {'without' if counted else 'with'} one",
                "a count for each batch on every rank, or for none",
                "count= was passed for some batches only",
                "pass count= for every batch",
            )

    def add(self, batch: Any) -> bool:
        """Count the batch in hand as trained on; return whether the update is due."""
        self._weight()
        self._total += self._count
        if not self._counted and self._spec.accumulate > 1 and (text := self._labels.add(batch, self.first)):
            self._tell(text)
            warn(f"loopwise.compile: {text}", stacklevel=4)
        self.batches += 1
        return self.batches == self._spec.accumulate

    def _over_ranks(self, *values: float) -> list[float]:
        """Return the sums of the values over the ranks that DDP averages over; each of them has to call this."""
        if self._wrapper is None:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self._spec.device)
        dist.all_reduce(sums, group=self._wrapper.process_group)
        return [float(value) for value in sums.tolist()]

    # -- the update -----------------------------------------------------------------------------

    def update(self, ready: Callable[[], None], keep_gradients: bool = False) -> None:
        """Update the parameters with the batches since the latest update; leave it out if their counts are 0.

        Args:
            ready: function that is called as soon as the gradients are averaged, before they are clipped.
            keep_gradients: fill the gradients with zeros instead of dropping them.
        """
        total, batches = self._total * self._world, float(self.batches * self._world)
        if not self._is_single and (self._counted or self.batches < self._spec.accumulate):
            total, batches = self._over_ranks(self._total, float(self.batches))
        self.forget()
        if total:
            self._average(total, batches)
            ready()
            self._spec.update(keep_gradients)
        elif not self._left_out:
            self._left_out = True
            self._tell("an update was left out: the counts of its batches are 0")

    def reduce(self) -> bool:
        """Prepare an update with the batches that are there; return whether there are any.

        Under DDP every rank has to call this function: the gradients were not averaged over the ranks yet.
        """
        if self._spec.accumulate == 1 or not self._over_ranks(float(self.batches))[0]:
            return False
        if self._wrapper is not None:
            average(self._wrapper)
        return True

    def forget(self) -> None:
        """Begin a new update; a recorded step has made the present one."""
        self.batches, self._total = 0, 0.0

    def _average(self, total: float, batches: float) -> None:
        """Divide the gradients by the sum of counts ``total`` of ``batches``, as far as that was not done."""
        if self._updated and self._is_single:
            return
        optimizer = self._spec.optimizer
        assert optimizer is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not (gradients or self._updated or holds_parameters(optimizer, self._spec.model)):
            raise foreign_optimizer()
        self._updated = True
        if self._is_single:
            return
        factor = self._spec.accumulate * self._world * self._usual / total
        if factor != 1.0:
            multiply(gradients, factor)
        self._usual = total / batches

    # -- copies and pickles ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a copy needs to complete the present update."""
        return {name: getattr(self, name) for name in _STATE}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was returned."""
        for name in _STATE:
            setattr(self, name, state[name])
