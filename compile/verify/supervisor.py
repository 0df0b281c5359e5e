"""Compare a compiled step with the eager one after recompilations and after losses that are not finite."""

from __future__ import annotations

from typing import Any

import torch

from ..graph.backend import Log
from ..graph.diagnostics import recompilations
from ..spec import Compute, StepSpec, Tell
from .numerics import compare_step

GPU_INTERVAL = 100
"""Batches between two tests of whether a loss on a GPU is finite: each test waits for the GPU."""


class Supervisor:
    """Compares the compiled step with the eager one again if there is reason to doubt it.

    Args:
        spec: the training step.
        compute: the compiled computation.
        log: events of its compilation.
        graphs: graphs that were compiled when the step was last compared.
        tell: takes a line for ``explain()``.
    """

    def __init__(self, spec: StepSpec, compute: Compute, log: Log, graphs: int, tell: Tell) -> None:
        self._spec, self._compute, self._log, self._tell = spec, compute, log, tell
        self._graphs, self._guards = graphs, len(recompilations())
        self._saw_infinite = False

    def inspect(self, loss: torch.Tensor, batch: Any, number: int) -> str:
        """Return a reason to go back to the eager step, or an empty text; ``number`` counts the batches."""
        if self._log.graphs > self._graphs:
            self._graphs = self._log.graphs
            for reason in recompilations()[self._guards :]:
                self._tell(f"recompiled: {reason}")
            self._guards = len(recompilations())
            if difference := self.compare("after a recompilation", batch):
                return difference
        due = self._spec.device.type == "cpu" or number % GPU_INTERVAL == 0
        if due and not self._saw_infinite and not bool(loss.isfinite()):
            self._saw_infinite = True
            return self.compare("the loss is not finite", batch)
        return ""

    def compare(self, occasion: str, batch: Any) -> str:
        """Return the worst difference from the eager step on ``batch`` in words, or an empty text."""
        try:
            difference = compare_step(self._spec, self._compute, batch)
        except torch.OutOfMemoryError:
            self._tell(f"{occasion}: not compared, there is no memory for the eager step")
            return ""
        return "" if difference is None else f"{occasion}: {difference}"
