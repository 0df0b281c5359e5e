"""Batch sampler of an epoch that is planned ahead: samples are left out before they are loaded."""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from loopwise.errors import InputError

Choice = Callable[[torch.Tensor], torch.Tensor]
"""Function from the indices of an epoch's samples, in order, to those that are loaded."""


class PlannedBatches(Sampler[list[int]]):
    """Batch sampler over the chosen indices of the user's sampler; remembers the batches that it yielded.

    If samples are left out, the rest comes in full batches.  The indices at the end that fill no batch are not yielded:
    the pipeline lets them wait for the next epoch.
    """

    def __init__(self, sampler: Any, batch_size: Any, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.choose: Choice | None = None
        self.skip = 0
        self.total = 0
        """Number of samples in the current epoch, including those left out; 0: unknown."""
        self.chosen: torch.Tensor | None = None
        """Indices of the samples that were chosen for the current epoch, in order; ``None``: all."""
        self.thinned = False
        """True if the chosen samples are not those of the user's sampler."""
        self.yielded: deque[list[Any]] = deque()
        self._stream: Iterator[Any] | None = None

    @property
    def length(self) -> int:
        """Number of batches of chosen samples in the current epoch."""
        count = 0 if self.chosen is None else len(self.chosen)
        return number_of_batches(count, self.batch_size, self.drop_last, self.thinned)

    def plan(self) -> None:
        """Run through the user's sampler and choose, now instead of at the first batch."""
        sampler = iter(self.sampler)
        limit = 4 * len(self.sampler) + 1000
        order = list(itertools.islice(sampler, limit))
        self.total, self.chosen = len(order), None
        if self.choose is None:
            self._stream = itertools.chain(order, sampler)
            self._skip()
            return
        if len(order) == limit:
            raise InputError(
                f"a sampler {type(self.sampler).__name__} of length {len(self.sampler)} that goes on after {limit} samples",
                "a sampler that ends, as each epoch is planned ahead by remembered losses",
                "a sampler that never ends, for training by steps instead of epochs",
                "pass score_every=1, which scores the samples as they come, or a sampler that ends",
            )
        indices = _whole_numbers(order, self.sampler)
        self.chosen = self.choose(indices)
        self.thinned = not torch.equal(indices, self.chosen)
        self._stream = iter(self.chosen[: self.length * self.batch_size].tolist())
        self._skip()

    def _skip(self) -> None:
        """Leave out the batches that were yielded before the training was stopped."""
        deque(itertools.islice(self._stream or (), self.skip * (self.batch_size or 1)), maxlen=0)

    def forget(self) -> None:
        """Forget the plan and the batches of the last epoch."""
        self._stream, self.chosen, self.total = None, None, 0
        self.yielded.clear()

    def __iter__(self) -> Iterator[list[Any]]:
        if self._stream is None:
            self.plan()
        stream, self._stream = self._stream, None
        assert stream is not None
        while indices := list(itertools.islice(stream, self.batch_size)):
            if len(indices) < self.batch_size and self.drop_last:
                return
            self.yielded.append(indices)
            yield indices


def number_of_batches(samples: int, batch_size: int, drop_last: bool, thinned: bool) -> int:
    """Return the number of batches that ``samples`` samples of an epoch give.

    If it is ``thinned`` to chosen samples, all batches are full, except that too few samples for one batch give a short
    one.  It never holds a single sample of several, on which BatchNorm could not train.
    """
    if not thinned:
        return samples // batch_size if drop_last else -(-samples // batch_size)
    short = 1 < samples < batch_size and not drop_last
    return 1 if short else samples // batch_size


def _whole_numbers(order: list[Any], sampler: Any) -> torch.Tensor:
    try:
        return torch.tensor([operator.index(index) for index in order], dtype=torch.int64)
    except TypeError:
        raise InputError(
            f"a sampler {type(sampler).__name__} that yields {order[0]!r}",
            "whole numbers: the indices of samples in the dataset",
            "a sampler that gives the dataset more than an index",
            "pass score_every=1, which needs no indices",
        ) from None
