"""State of a loader as plain values and tensors, and the refusal of states that cannot be continued exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loopwise.errors import InputError, StateError

from .iterator.replay import generators
from .iterator.saved import Position, Saved
from .protocol import LaneState

VERSION = 1
SAME = ("num_workers", "seeding", "batch_size", "drop_last", "iterable", "persistent_workers")
"""Attributes that the loader of a state and the loader that goes on have in common."""
REASONS = {
    "num_workers": "with seeding='worker' each of the num_workers random streams belongs to certain batches",
    "seeding": "the samples get other random numbers",
    "batch_size": "the position counts batches",
    "drop_last": "the position counts batches",
    "iterable": "the state of another dataset",
    "persistent_workers": "persistent workers draw no new seed for an epoch, so that the order differs",
}
"""Likely causes, by attribute."""


def taken(loader: Any, position: Position | None, epoch: int, set_epoch: int | None) -> dict[str, Any]:
    """Return the state of a loader whose latest iterator is or was at ``position``; ``None``: there was none."""
    described: dict[str, Any] = {name: getattr(loader, name) for name in SAME}
    described |= {"version": VERSION, "in_order": loader.in_order, "epoch": epoch, "set_epoch": set_epoch}
    described |= {"generators": [generator.get_state() for generator in generators(loader)], "position": None}
    if position is not None and not position.finished:
        described |= {"epoch": position.epoch, "set_epoch": position.set_epoch}
        described["position"] = position.saved().state()
    elif position is not None and loader.persistent_workers:
        described["position"] = position.carried().state()
    return described


def restored(loader: Any, state: Any) -> Saved | None:
    """Return the point of a state after comparing the state with the loader; ``None``: a new epoch begins.

    The generators of the loader and its samplers are set; resuming in an epoch sets them once more.
    """
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise InputError(
            "a value that is no state of RemoteDataLoader",
            f"a state of version {VERSION}, from state_dict()",
            "the state of another loader, or of another version of loopwise",
            "pass the result of state_dict()",
        )
    position = state["position"]
    for name in SAME:
        seen, here = state[name], getattr(loader, name)
        if name == "num_workers" and loader.seeding == "sample" and seen and here:
            continue
        if seen != here:
            raise InputError(
                f"a state of a loader with {name}={seen!r}, for one with {name}={here!r}",
                f"the same {name}",
                REASONS[name],
                f"make the loader with {name}={seen!r}, or begin a new epoch without the state",
            )
    if position is not None and position["delivered"] and not (state["in_order"] and loader.in_order):
        raise StateError(
            "a position in an epoch of a loader with in_order=False",
            "batches in the order of the sampler",
            "with in_order=False the batches that were delivered are not the first ones",
            "use in_order=True, or take the state between epochs",
        )
    for generator, saved in zip(generators(loader), state["generators"], strict=False):
        generator.set_state(saved)
    if position is None:
        return None
    saved = Saved.of(position)
    if len(saved.lanes) != loader.num_workers:  # seeded by samples: lanes carry nothing
        turn = saved.delivered % loader.num_workers
        lanes: list[tuple[bytes | None, LaneState]] = [(None, LaneState())] * loader.num_workers
        saved = replace(saved, lanes=lanes, next_lane=turn)
    return saved
