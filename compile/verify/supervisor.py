"""Compare a compiled step with the eager one again, before anything that it computed updates a weight.

A comparison is due after some batches, since rounding and branches that begin at zero change as the weights move; after
each recompilation; and when a loss is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from loopwise.ranks import world_size

from ..graph.backend import Log, first_line
from ..graph.diagnostics import recompilations
from ..spec import Compute, StepSpec, Tell
from ..torch_internals import failed_guards, limits_reached
from .numerics import Comparison
from .sandbox import Sandbox

GPU_INTERVAL = 100
"""Batches between two tests of whether a loss on a GPU is finite: each test waits for the GPU."""
AGAIN_AFTER = (8, 64)
"""Numbers of compiled batches after which the step is compared again."""


class Supervisor:
    """Compares the compiled step with the eager one again if there is reason to doubt it.

    Args:
        spec: the training step.
        compute: the compiled computation.
        log: events of its compilation.
        graphs: graphs that were compiled when the step was last compared.
        tell: takes a line for ``explain()``.
    """

    def __init__(
        self,
        spec: StepSpec,
        compute: Compute,
        log: Log,
        graphs: int,
        tell: Tell,
    ) -> None:
        self._spec, self._compute, self._log, self._tell = spec, compute, log, tell
        self._graphs = graphs
        self._batches = self._guards = self._limits = 0
        self._saw_infinite = False

    def before(self, batch: Any) -> str:
        """Return a reason to go back to the eager step before it sees ``batch``, or an empty text."""
        self._limits, self._guards = limits_reached(), len(failed_guards())
        self._batches += 1
        if self._batches - 1 in AGAIN_AFTER:
            return self.compare(f"after {self._batches - 1} batches", batch)
        return ""

    @property
    def recompiled(self) -> bool:
        """Return whether graphs were compiled that were not compared yet."""
        return self._log.graphs > self._graphs

    def compare_recompiled(self, batch: Any) -> str:
        """Return a reason not to use new graphs, or an empty text; the state must be that of before the batch."""
        for reason in recompilations()[self._guards :]:
            self._tell(f"recompiled: {reason}")
        difference = self.compare("after a recompilation", batch)
        self._graphs = self._log.graphs
        return difference

    def after_forward(self, loss: torch.Tensor, batch: Any, number: int) -> str:
        """Return a reason to do the batch again by the eager step, or an empty text.

        Args:
            loss: loss of the compiled forward pass, whose backward pass has not run yet.
            batch: the batch.
            number: count of the step's batches.
        """
        if limits_reached() > self._limits:
            return (
                f"Dynamo's limit of recompilations is reached: {(recompilations() or ['unknown guard'])[-1]}"
            )
        return self.after_loss(loss, batch, number)

    def after_loss(self, loss: torch.Tensor, batch: Any, number: int) -> str:
        """Return a reason to go back to the eager step if the loss is not finite, but is in the eager step."""
        due = self._spec.device.type == "cpu" or number % GPU_INTERVAL == 0
        if due and not self._saw_infinite and not bool(loss.isfinite()):
            self._saw_infinite = True
            return self.compare("the loss is not finite", batch)
        return ""

    def compare(self, occasion: str, batch: Any) -> str:
        """Return the worst difference from the eager step on ``batch`` in words, or an empty text."""
        # DDP may wait for the backward pass of the batch: the hooks of its reducer must not see another one
        awaited = isinstance(self._spec.model, DistributedDataParallel) or world_size() > 1
        return self._difference(occasion, lambda: self._comparison(batch, awaited), self._compute)

    def compare_anew(self, compute: Compute, batch: Any) -> tuple[str, Sandbox]:
        """Compare another computation, and find out anew what a pass changes; return a difference, and the sandbox."""
        comparison = self._comparison(batch, False)
        return self._difference("after a change of hooks", lambda: comparison, compute), comparison.sandbox

    def _comparison(self, batch: Any, awaited: bool) -> Comparison:
        """Return a comparison that finds out anew what a pass changes: state may be younger than the first pass."""
        return Comparison(self._spec, batch, awaited=awaited)

    def _difference(self, occasion: str, comparison: Callable[[], Comparison], compute: Compute) -> str:
        """Return the worst difference in words, a reason why there is none, or an empty text."""
        try:
            difference = comparison().difference(compute)
        except torch.OutOfMemoryError:
            self._tell(f"{occasion}: not compared, there is no memory for the eager step")
            return ""
        except Exception as error:
            return f"{occasion}: the step could not be compared: {first_line(error)}"
        return "" if difference is None else f"{occasion}: {difference}"
