"""Times on a CUDA device: events that are recorded as they pass, and read once they have, without waiting.

All of it is for the training thread: a question about an event from another one ends the capture of a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .phases import Row

GPU = ("gpu_forward", "gpu_backward", "gpu_optimizer")
"""Seconds on the device, from the start of a phase's first kernel to the end of its last."""
Spans = list[tuple[str, Any, Any]]
"""Which of ``GPU``, and the events at its ends."""


class Events:
    """Events on a device's current stream.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self) -> Any:
        """An event here; ``None`` while a graph is captured, of which it would be a part."""
        if torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self, row: Row) -> bool:
        """Put a row's seconds into it; false where the device is not there yet."""
        if row.spans and torch.cuda.is_current_stream_capturing():
            return False
        if not all(end.query() and start.query() for _, start, end in reversed(row.spans)):
            return False
        for name, start, end in row.spans:
            row.more[name] = row.more.get(name, 0.0) + start.elapsed_time(end) / 1e3
        row.spans = []
        return True
