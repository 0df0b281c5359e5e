"""State before a batch, kept while a compiled form does the batch, so that another form can do it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from loopwise import random_state
from loopwise.torch_internals import buffers
from loopwise.wrappers import unwrap

from ..torch_internals import copy_all
from .places import TensorPlace
from .reachable import is_of_batch, of_batch
from .sandbox import Sandbox

_State = tuple[list[Any], dict[str, Any] | None]


class Undo:
    """Saved state of the places that a pass changes, taken before a batch, to do the batch again by another form.

    Args:
        sandbox: the sandbox whose first pass showed which places change.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        changing, model = sandbox.changing or frozenset(), unwrap(sandbox.spec.model)
        self._places = [p for p in sandbox.reachable.places if p.name in changing and not is_of_batch(p)]
        numbers = {id(p.tensor): n for n, p in enumerate(self._places) if isinstance(p, TensorPlace)}
        owners = [(own, key) for module in model.modules() for own in [buffers(module)] for key in own]
        self._buffers = [(own, key, numbers[id(own[key])]) for own, key in owners if id(own[key]) in numbers]
        self._drew = sandbox.drew
        self._batch_changes = any(
            is_of_batch(place) for place in sandbox.reachable.places if place.name in changing
        )
        self._now = self._places
        self._before: _State = ([], None)

    def take(self, batch: Any) -> None:
        """Save the state before a pass on ``batch``."""
        self._follow_buffers()
        self._now = self._places
        if self._batch_changes:
            self._now = self._places + of_batch(batch)
            self._before = self._save()
        else:
            self._before = self._save_again(self._before[0])

    def _follow_buffers(self) -> None:
        """Take a buffer's place for the buffer that is there now: loading a checkpoint may replace the tensor."""
        for own, key, number in self._buffers:
            place, buffer = self._places[number], own.get(key)
            if isinstance(place, TensorPlace) and place.tensor is not buffer and buffer is not None:
                self._places[number] = TensorPlace(place.name, buffer)

    def restore(self) -> None:
        """Restore the state that was saved."""
        self._put(self._before)

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Restore the state before the pass inside the context, and the state after the pass on leaving."""
        after = self._save()
        self.restore()
        try:
            yield
        finally:
            self._put(after)

    def _save(self) -> _State:
        return [place.save() for place in self._now], random_state.get() if self._drew else None

    def _save_again(self, earlier: list[Any]) -> _State:
        """Save as before, tensors into the memory of an earlier save, all at once: copies one by one take far longer."""
        if len(earlier) != len(self._now):
            return self._save()
        states, copies, values = [], [], []
        for place, saved in zip(self._now, earlier, strict=True):
            if isinstance(place, TensorPlace) and place.holds(saved):
                copies.append(saved[3])
                values.append(saved[0])
                states.append(saved)
            else:
                states.append(place.save())
        if copies:
            copy_all(copies, values)
        return states, random_state.get() if self._drew else None

    def _put(self, state: _State) -> None:
        for place, saved in zip(self._now, state[0], strict=True):
            place.restore(saved)
        if state[1] is not None:
            random_state.set(state[1])
