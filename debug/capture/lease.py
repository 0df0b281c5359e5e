"""Staging buffer of the current step, leased from the writer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from ..model.vocabulary import SCALARS
from ..store.host_buffer import HostBuffer
from .step import PendingStep
from .writer import Lease, Writer


class StagingBuffer:
    """Buffer that is leased for a step's first tensor, and submitted or given back when the step ends.

    Args:
        writer: owner of the buffers; ``None``: this rank writes nothing.
        on_backlog: one of ``ON_BACKLOG``.
        counts: counter of the steps that were saved without raw tensors.
        say: function that is called with a message.
    """

    def __init__(
        self, writer: Writer | None, on_backlog: str, counts: Counter[str], say: Callable[[str], None]
    ) -> None:
        self._writer, self._on_backlog, self._counts, self._say = writer, on_backlog, counts, say
        self._lease: Lease | None = None
        self._raw = False

    def begin(self, step: PendingStep) -> None:
        """Note whether a step has raw tensors, which need a large buffer."""
        self.lose()
        self._raw = any(c.raw and c.name not in SCALARS for c in step.all)

    def take(self) -> tuple[HostBuffer, bool] | None:
        """Return the step's buffer and whether raw tensors may go into it; ``None`` if this rank writes nothing."""
        if self._writer is None:
            return None
        if self._lease is None:
            self._lease = self._writer.lease(self._raw)
            if not self._lease.raw:
                kind = "reduced" if self._on_backlog == "reduce" else "dropped"
                self._counts[kind] += 1
                self._say(f"storage is slower than training: raw tensors of some steps are {kind}")
        return self._lease.buffer, self._lease.raw

    @property
    def is_taken(self) -> bool:
        """True if the step has a buffer."""
        return self._lease is not None

    def submit(self, step: PendingStep, devices: Iterable[torch.device]) -> None:
        """Hand a complete step to the writer, which waits until ``devices`` have filled the buffer."""
        step.record["time"] = time.time()
        for device in devices:
            if device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(device))
                step.events.append(event)
        lease, self._lease = self._lease, None
        if self._writer is not None and lease is not None:
            self._writer.submit(step, lease)

    def lose(self) -> None:
        """Forget the buffer of a step that an interrupt ended, since it may be half filled; the writer makes another one."""
        self._lease = None

    def give_back(self) -> None:
        """Return the buffer of a step that is discarded."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back()
