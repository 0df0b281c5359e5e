"""What records a training step on a GPU: a stream, a pool of memory, and CUDA's graphs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
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
        self._pool = torch.cuda.graph_pool_handle()  # that of an earlier recording may be gone
        with self._beside():
            run()  # what waits only at the first time may
            with _not_waiting():
                run()
        torch.cuda.synchronize(self._device)

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with self._capturing(graph):
            result = run()
        return graph.replay, result

    def settle(self) -> None:
        """A failed recording may leave the generator counting for it; one that succeeds ends that."""
        with contextlib.suppress(RuntimeError):
            self._pool = torch.cuda.graph_pool_handle()
            with self._capturing(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=self._device)

    @contextlib.contextmanager
    def _capturing(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """As ``torch.cuda.graph``, but what it leaves behind on failure in older versions of torch is undone."""
        # thread_local: what a loader's thread does meanwhile, such as pinning memory, must not fail
        options: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        private: Any = torch._C
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, **options):
                    yield
            except BaseException:
                with contextlib.suppress(RuntimeError):  # newer versions have done so
                    private._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
                raise
            finally:
                torch.cuda.set_stream(before)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On the recorder's stream, after what was asked before and before what is asked next."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                yield
            current.wait_stream(self._stream)


@contextlib.contextmanager
def _not_waiting() -> Iterator[None]:
    """Raises afterwards where an operation waited for the GPU.

    torch can raise at once, but would do so in every thread, a loader's, too; it warns instead.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if any("synchronizing CUDA operation" in str(warning.message) for warning in found):
        raise RuntimeError("the step waits for the GPU, as .item() and printing a tensor do")
