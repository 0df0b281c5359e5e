"""Recorder of a training step on a GPU: a stream, a memory pool, and CUDA's graphs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import stop_allocating_to

Replay = Callable[[], None]
"""Function that runs a recording once."""


class Recorder:
    """Recorder of CUDA graphs on one stream.

    The graphs share their memory: copy the result of one before the next one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def warm(self, run: Callable[[], Any]) -> None:
        """Run the function as it will be recorded; raise if it waits for the device, which no recording can do."""
        self._pool = torch.cuda.graph_pool_handle()  # that of an earlier recording may be freed
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                run()  # waiting in the first call only is allowed
                with _refuse_waiting():
                    run()
            current.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)

    def record(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record the function; return its replay, and the tensor that holds its result after each replay."""
        graph = torch.cuda.CUDAGraph()
        with self._capture(graph):
            result = run()
        return graph.replay, result

    def settle(self) -> None:
        """Let the device draw random numbers as before, after a recording that failed.

        A failed recording may leave the random generator registered; a complete one, of an empty graph, does not.
        """
        with contextlib.suppress(RuntimeError):
            self._pool = torch.cuda.graph_pool_handle()
            with self._capture(torch.cuda.CUDAGraph()):
                torch.zeros(1, device=self._device)

    @contextlib.contextmanager
    def _capture(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Record into ``graph``, and undo the traces that a failure leaves in older versions of torch."""
        # thread_local: work of a loader's thread meanwhile, such as pinning memory, must not fail
        options: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, **options):
                    yield
            except BaseException:
                stop_allocating_to(self._pool, torch.cuda.current_device())
                raise
            finally:
                torch.cuda.set_stream(before)


def recorder_for(device: torch.device) -> Recorder | None:
    """Return a recorder for ``device``; ``None`` if the device has no graphs."""
    return Recorder(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _refuse_waiting() -> Iterator[None]:
    """Raise an error at the end of the context if an operation inside waited for the GPU.

    torch can raise at once, but then it raises in every thread, also in a loader's.  So torch is set to warn, and the
    warnings are collected; the setting is restored on leaving.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if any("synchronizing CUDA operation" in str(warning.message) for warning in caught):
        raise RuntimeError("the step waits for the GPU, as .item() and printing a tensor do")
