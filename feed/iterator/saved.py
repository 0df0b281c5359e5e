"""The point in an epoch that a state describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..protocol import Counters, LaneState
from .lane import LaneRecord
from .replay import RandomPoint, as_bytes, as_tensor


@dataclass(frozen=True, slots=True)
class Saved:
    """The point after a batch that was handed over."""

    point: RandomPoint | None
    """Random states before the epoch; ``None``: the epoch has not begun."""
    first: bool
    """The epoch was the first one of its iterator, which then drew the seed of the workers, too."""
    base_seed: int
    delivered: int
    """Number of the next batch."""
    checksum: int
    """Checksum of the sampler's items before it."""
    next_lane: int
    lanes: list[tuple[bytes | None, LaneState]]
    """Random states of each lane at the start of the epoch, and its state after its last batch that was handed over."""

    def state(self) -> dict[str, Any]:
        """Return plain values and tensors, which ``torch.load(weights_only=True)`` takes."""
        return {
            "point": None if self.point is None else self.point.state(),
            "first": self.first,
            "base_seed": self.base_seed,
            "delivered": self.delivered,
            "checksum": self.checksum,
            "next_lane": self.next_lane,
            "lanes": [
                {
                    "epoch_start": as_tensor(start),
                    "random": as_tensor(state.random),
                    "fetched": state.fetched,
                    "dataset": state.dataset,
                }
                for start, state in self.lanes
            ],
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> Saved:
        """Return the point of a state."""
        lanes = [
            (
                as_bytes(lane["epoch_start"]),
                LaneState(as_bytes(lane["random"]), lane["fetched"], lane["dataset"]),
            )
            for lane in state["lanes"]
        ]
        point = None if state["point"] is None else RandomPoint.of(state["point"])
        numbers = state["base_seed"], state["delivered"], state["checksum"], state["next_lane"]
        return cls(point, state["first"], *numbers, lanes)


@dataclass(slots=True)
class Position:
    """The position of an iterator, which the loader keeps when the iterator is gone."""

    point: RandomPoint
    base_seed: int
    lanes: list[LaneRecord]
    counters: Counters
    first: bool = True
    epoch: int = 0
    """Number of the epoch."""
    set_epoch: int | None = None
    """Number that the user gave the epoch."""
    number: int = 0
    """Number of the next batch."""
    checksum: int = 0
    """Checksum of the sampler's items before it."""
    next_lane: int = 0
    finished: bool = False
    """The end of the epoch was reached."""

    def saved(self) -> Saved:
        """Return the point after the batch that was handed over last."""
        lanes = [(lane.epoch_start, lane.delivered) for lane in self.lanes]
        return Saved(
            self.point, self.first, self.base_seed, self.number, self.checksum, self.next_lane, lanes
        )

    def carried(self) -> Saved:
        """Return the point before the next epoch of persistent workers, whose random streams go on."""
        lanes = [(lane.received.random, LaneState(lane.received.random)) for lane in self.lanes]
        return Saved(None, False, self.base_seed, 0, 0, 0, lanes)
