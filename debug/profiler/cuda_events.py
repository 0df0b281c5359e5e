"""Times on a CUDA device, from events that are read later, so that the host never waits for the device.

Use this module on the training thread only: a query from another thread breaks the capture of a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch

GPU = ("gpu_forward", "gpu_backward", "gpu_optimizer")
"""Seconds on the device, from the start of a phase's first kernel to the end of its last."""
Spans = list[tuple[str, Any, Any]]
"""Name from ``GPU``, and the events at the start and the end."""


class Events:
    """Recorder of events on a device's current stream.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self) -> Any:
        """Record and return an event; ``None`` during the capture of a graph, which the event would be a part of."""
        if torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, spans: Spans) -> dict[str, float] | None:
        """Return the seconds of each name; ``None`` if the device has not got there yet."""
        if spans and torch.cuda.is_current_stream_capturing():
            return None
        if not all(end.query() and start.query() for _, start, end in reversed(spans)):
            return None
        seconds: dict[str, float] = {}
        for name, start, end in spans:
            seconds[name] = seconds.get(name, 0.0) + start.elapsed_time(end) / 1e3
        return seconds
