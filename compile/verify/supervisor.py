"""Compare a compiled step with the eager one again, before anything that it computed updates a weight.

A comparison is due after some batches, since rounding and branches that begin at zero change as the weights move; after
each recompilation; and when a loss is not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from loopwise.ranks import world_size

from ..graph.backend import Log, first_line
from ..graph.diagnostics import recompilations
from ..spec import Compute, StepSpec, Tell
from ..torch_internals import limits_reached
from .numerics import Comparison

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
        changing: paths that a pass changes.
        tell: takes a line for ``explain()``.
    """

    def __init__(
        self,
        spec: StepSpec,
        compute: Compute,
        log: Log,
        graphs: int,
        changing: frozenset[str] | None,
        tell: Tell,
    ) -> None:
        self._spec, self._compute, self._log, self._tell = spec, compute, log, tell
        self._graphs, self._changing = graphs, changing
        self._batches = self._guards = self._limits = 0
        self._saw_infinite = False

    def before(self, batch: Any) -> str:
        """Return a reason to go back to the eager step before it sees ``batch``, or an empty text."""
        self._batches += 1
        reason = ""
        if self._batches - 1 in AGAIN_AFTER:
            reason = self.compare(f"after {self._batches - 1} batches", batch)
        self._guards, self._limits = len(recompilations()), limits_reached()
        return reason

    def after_forward(self, loss: torch.Tensor, batch: Any, number: int) -> str:
        """Return a reason to do the batch again by the eager step, or an empty text.

        Args:
            loss: loss of the compiled forward pass, whose backward pass has not run yet.
            batch: the batch.
            number: count of the step's batches.
        """
        reasons = recompilations()[self._guards :]
        if self._log.graphs > self._graphs:
            self._graphs = self._log.graphs
            for reason in reasons:
                self._tell(f"recompiled: {reason}")
            if difference := self.compare("after a recompilation", batch):
                return difference
        elif limits_reached() > self._limits:
            return f"Dynamo's limit of recompilations is reached: {(recompilations() or ['unknown guard'])[-1]}"
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
        # DDP waits for the backward pass of the batch: the hooks of its reducer must not see another one
        awaited = isinstance(self._spec.model, DistributedDataParallel) or world_size() > 1
        try:
            comparison = Comparison(self._spec, batch, self._changing, awaited=awaited)
            difference = comparison.difference(self._compute)
        except torch.OutOfMemoryError:
            self._tell(f"{occasion}: not compared, there is no memory for the eager step")
            return ""
        except Exception as error:
            return f"{occasion}: the step could not be compared: {first_line(error)}"
        return "" if difference is None else f"{occasion}: {difference}"
