"""What records a training step on a GPU: a stream, a pool of memory, and CUDA's graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Replay = Callable[[], None]


class Recorder(Protocol):
    """Records what a function asks of a device, without running it there."""

    def warm(self, run: Callable[[], Any]) -> None:
        """Run it once as it will be recorded; raises where it waits for the device, which no recording can."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """What runs the recording, and the tensor that holds the function's result after each run."""

    def settle(self) -> None:
        """After a recording that failed: the device draws random numbers as before."""


def recorder_for(device: torch.device) -> Recorder | None:
    """``None`` where there are no graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


class CudaRecorder:
    """Graphs of one stream, whose memory they share: their results are to be copied before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def warm(self, run: Callable[[], Any]) -> None:
        for mode in ("default", "error"):  # what waits only at the first time may
            with self._beside(), _waiting(mode):
                run()
        torch.cuda.synchronize(self._device)

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: what a loader's thread does meanwhile, such as pinning memory, must not fail
        options: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool, **options):
            result = run()
        self._pool = graph.pool()
        return graph.replay, result

    def settle(self) -> None:
        """A failed recording leaves the generator counting for it; one that succeeds ends that."""
        with contextlib.suppress(RuntimeError), torch.cuda.device(self._device):
            torch.cuda.synchronize(self._device)
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=self._stream):
                torch.zeros(1, device=self._device)

    @contextlib.contextmanager
    def _beside(self) -> Any:
        """On the recorder's stream, after what was asked before and before what is asked next."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                yield
            current.wait_stream(self._stream)


@contextlib.contextmanager
def _waiting(mode: str) -> Any:
    """What torch does where an operation waits for the GPU: ``default`` nothing, ``error`` raise."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
