"""DataLoader's iterator without workers, with a position that can be saved."""

from __future__ import annotations

from typing import Any

from ..protocol import Counters
from ..torch_internals import SingleProcessIterator
from .replay import Draws, RandomPoint
from .saved import Position, Saved


class SingleIterator(SingleProcessIterator):  # type: ignore[misc]  # torch's class has no annotations
    """Iterator that loads in this process.

    Args:
        loader: the loader.
        saved: the point from which to go on, if the loader was given a state.  Random numbers that samples draw come from the
            generators of this process, which the program restores itself.
    """

    def __init__(self, loader: Any, saved: Saved | None) -> None:
        present = RandomPoint(loader)
        point = present if saved is None or saved.point is None else saved.point
        if saved is not None:
            point.restore(loader)
        super().__init__(loader)
        self._draws = Draws()
        self.position = Position(point, self._base_seed, [], Counters())
        self.position.epoch, self.position.set_epoch = loader.next_epoch()
        if saved is not None:
            if loader.iterable:
                for _ in range(saved.delivered):
                    super()._next_data()
            else:
                self._draws.replay(self._sampler_iter, saved.delivered, saved.checksum)
            self._num_yielded = saved.delivered
            self._note()
            present.restore_global()

    def _next_index(self) -> Any:
        indices = super()._next_index()
        self._draws.add(indices)
        return indices

    def _next_data(self) -> Any:
        try:
            batch = super()._next_data()
        except StopIteration:
            self.position.finished = True
            raise
        self._note()
        return batch

    def _note(self) -> None:
        self.position.number, self.position.checksum = self._draws.count, self._draws.checksum
