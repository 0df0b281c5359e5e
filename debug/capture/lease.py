"""Host memory for the step in the making, lent by the writer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from ..store.host_buffer import Snapshot
from .step import Saving
from .writer import Lease, Writer


class Loan:
    """Taken when the first tensor comes, handed to the writer or given back when the step ends.

    Args:
        writer: ``None``: nothing is written by this rank.
        policy: one of ``POLICIES``.
        counts: where steps that went without raw tensors are counted.
        say: called with what has to be said.
    """

    def __init__(
        self, writer: Writer | None, policy: str, counts: Counter[str], say: Callable[[str], None]
    ) -> None:
        self._writer, self._policy, self._counts, self._say = writer, policy, counts, say
        self._lease: Lease | None = None
        self._raw = False

    def begin(self, saving: Saving) -> None:
        """A step begins: does it want raw tensors?"""
        self._raw = any(c.raw and c.name not in ("losses", "metrics") for c in saving.all)

    def take(self) -> tuple[Snapshot, bool] | None:
        """The step's memory, and whether raw tensors may go into it."""
        if self._writer is None:
            return None
        if self._lease is None:
            self._lease = self._writer.lease(self._raw)
            if not self._lease.raw:
                kind = "reduced" if self._policy == "reduce" else "dropped"
                self._counts[kind] += 1
                self._say(f"storage is slower than training: raw tensors of some steps are {kind}")
        return self._lease.snapshot, self._lease.raw

    @property
    def taken(self) -> bool:
        return self._lease is not None

    def submit(self, saving: Saving, devices: Iterable[torch.device]) -> None:
        """The step is complete, as soon as ``devices`` have done what was asked of them."""
        saving.record["time"] = time.time()
        for device in devices:
            if device.type == "cuda":
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record(torch.cuda.current_stream(device))
                saving.ready.append(event)
        lease, self._lease = self._lease, None
        if self._writer is not None and lease is not None:
            self._writer.submit(saving, lease)

    def give_back(self) -> None:
        """There is no such step."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back()
