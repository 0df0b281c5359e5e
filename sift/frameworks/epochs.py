"""Epochs of a trainer that plans its steps before it starts, over a loader whose passes differ in length."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

from loopwise import ranks
from loopwise.errors import StateError


class EpochLoader:
    """Loader with epochs of a fixed number of batches over the passes of a ``SiftingDataLoader``.

    Trainers read the length once, and plan steps, learning rates and validation by it.  So one of their epochs is
    ``len(self)`` batches: the wrapped loader's number times the share that is kept, and the wrapped loader's number if
    the policy decides the share as it goes.  The next epoch goes on in the pass where the last one stopped.  A loader
    without a length has none here either, and one pass is an epoch.

    Args:
        loader: the ``SiftingDataLoader``.

    Attributes:
        length: number of batches of an epoch, or ``None``.
        done: number of batches of the present epoch that were yielded.
        untrained: number of yielded batches that the trainer has not reported as trained; trainers that fetch batches
            ahead count it down.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.length = _length(loader)
        self.done = self.untrained = 0
        self._start = 0
        self._batches: Generator[Any] = self._passes()
        self._open: Generator[Any] | None = None
        """The pass that is open."""
        loader.batches_per_epoch = self.length

    def __getattr__(self, name: str) -> Any:
        if name == "__len__" or name not in (
            "dataset",
            "batch_size",
            "num_workers",
            "collate_fn",
            "pin_memory",
        ):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader.loader, name)

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError(f"the wrapped {type(self.loader.loader).__name__} has no length")
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.untrained, self.done, self._start = 0, self._start, 0
        if self.length is None:
            self._batches.close()
            self._batches = self._pass()
        for batch in itertools.islice(self._batches, self.length and self.length - self.done):
            self.done += 1
            self.untrained += 1
            yield batch
        if self.length is not None and self.done < self.length:  # a pass without a batch ends the epoch
            self._batches = self._passes()

    def load_state_dict(self, state: dict[str, Any] | None, done: int = 0) -> None:
        """Go on in an epoch whose first ``done`` batches were yielded before.

        Args:
            state: state of the ``SiftingDataLoader``; ``None``: it begins anew.
            done: number of batches.
        """
        self._batches.close()
        if state is not None:
            self.loader.load_state_dict(state)
        self._batches = self._passes()
        self._start = done % self.length if self.length else 0

    def close(self) -> None:
        """End an open pass."""
        self._batches.close()

    def _passes(self) -> Generator[Any]:
        """Yield the batches of one pass after the other, until a whole pass has none."""
        empty = False
        while not empty:
            # a resumed pass perhaps yielded its last batch before it was saved
            empty = not self.loader.running
            opened = self._open = self._pass()
            try:
                for batch in opened:
                    empty = False
                    yield batch
            finally:
                opened.close()  # a trainer that fails, or closes its epochs, leaves no pass open

    def _pass(self) -> Generator[Any]:
        if not self.loader.running:
            self.loader.set_epoch(self.loader.epoch)
        yield from self.loader.one_pass()


class FilledEpochs(EpochLoader):
    """Epochs with ``auto``: as many batches as the wrapped loader has, whatever a pass leaves out.

    A training then has as many steps as a plain one, at the same learning rates, and spends them on the samples that are
    worth more.  With the losses of scoring passes an epoch is a pass: more steps would take longer than a plain loop.
    """

    _opened = 0

    def fills(self, wanted: bool) -> bool:
        """Return whether the next epoch is filled, on all ranks; it has the least number of batches of all ranks."""
        own = _length(self.loader) if wanted else None
        lengths = ranks.gather(own)
        self.length = None if None in lengths else min(lengths)  # type: ignore[type-var]
        self.loader.batches_per_epoch = self.length
        if self.length is None:
            self._batches.close()
            self._batches = self._passes()
        return self.length is not None

    def __iter__(self) -> Iterator[Any]:
        self._opened += 1
        number = self._opened
        try:
            for batch in super().__iter__():
                yield batch
                validate_pass(number == self._opened)
            if self.loader.at_end_of_pass:  # end it now, not when the next epoch begins
                next(self._open or self._pass(), None)
        finally:
            if number == self._opened:
                self.done = 0

    def go_on_after(self, done: int) -> None:
        """Begin after the first ``done`` batches of an epoch, in the pass of a loaded state."""
        self._batches, self._open, self._start = self._passes(), None, done


def validate_pass(current: bool) -> None:
    """Raise an error if another iteration over the loader was begun before this one was over."""
    if not current:
        raise StateError(
            "an iteration over a SiftingDataLoader that goes on after another one was begun",
            "one iteration at a time: each sample is chosen once an epoch",
            "zip(loader, loader), a loop inside a loop over the same loader, or an old iterator that was kept",
            "make a second SiftingDataLoader of the same data, or end the first loop before the second begins",
        )


def same_data(first: Any, second: Any) -> bool:
    """Return whether two loaders have one dataset, or datasets of one class with the same attributes."""
    first, second = getattr(first, "dataset", first), getattr(second, "dataset", second)
    if first is second or type(first) is not type(second):
        return first is second
    ours, theirs = getattr(first, "__dict__", {}), getattr(second, "__dict__", {})
    return bool(ours) and ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in ours)


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if type(first) is tuple and type(second) is tuple and len(first) == len(second):
        return all(map(_same, first, second))
    return (
        type(first) is type(second) and isinstance(first, (bool, int, float, str, bytes)) and first == second
    )


def _length(loader: Any) -> int | None:
    total = loader.batches_without_selection()
    if total is None:
        return None
    keep = loader.keep if isinstance(loader.keep, (int, float)) else getattr(loader.policy, "keep", None)
    share = keep if isinstance(keep, (int, float)) else 1.0
    return max(1, round(total * share)) if total else 0
