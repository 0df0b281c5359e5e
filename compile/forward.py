"""Forward pass of a training step that has a plan: compiled for the usual shape, eager for rare ones.

A compiled pass that turns out to be wrong is undone before its backward pass, and the batch is done again eagerly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .graph.backend import Log, first_line
from .losses import scalar_loss, split_loss
from .plan import Plan
from .search.slowdown import SlowdownMonitor
from .search.variants import MANY, RARE, shape_of, variant
from .spec import Compute, StepSpec, Tell
from .torch_internals import hook_keys, hooks_made
from .verify.communication import without_broadcast
from .verify.sandbox import Sandbox
from .verify.supervisor import Supervisor
from .verify.undo import Undo

MOST_CAPTURES = 4
"""Captures, because hooks came or went, after which the step stays eager."""


class Pass(NamedTuple):
    """Result of a forward pass."""

    loss: torch.Tensor
    """Loss, or mean of the losses, of shape (), with its autograd graph."""
    losses: torch.Tensor
    """Loss as the loss function returned it."""
    compiled: bool
    """Whether the compiled computation made it."""
    count: Any = None
    """Count of the batch, if the loss function returned one."""


class Forward:
    """Forward passes of a training step by the computation that the search chose.

    Args:
        spec: the training step.
        plan: plan of the computation.
        compute: compiled computation, or the eager one.
        log: events of its compilation.
        usual: shapes of the usual batch, as ``shape_of`` returns them.
        leave: takes a reason, and makes the step eager for good.
        tell: takes a line for ``explain()``.
    """

    def __init__(
        self,
        spec: StepSpec,
        plan: Plan,
        compute: Compute,
        log: Log,
        usual: Any,
        leave: Callable[[str], None],
        tell: Tell,
    ) -> None:
        self._spec, self._plan, self.compute, self.log, self._usual = spec, plan, compute, log, usual
        self._leave, self._tell = leave, tell
        self.other_shapes: Counter[Any] = Counter()
        """Number of batches by shape, the usual one excepted."""
        self.slowdown: SlowdownMonitor | None = None
        self.supervisor: Supervisor | None = None
        self._undo: Undo | None = None
        self._hooks, self._keys, self._captures = hooks_made(), self._hook_keys(), 0

    def supervise(self, sandbox: Sandbox, graphs: int) -> None:
        """Compare the step again when there is reason to; ``graphs`` is the number of graphs that were compared."""
        self._undo = Undo(sandbox)
        self.supervisor = Supervisor(self._spec, self.compute, self.log, graphs, self._tell)

    def go_eager(self) -> None:
        """Run eagerly from now on."""
        self.compute = self._spec.eager
        self.slowdown = self.supervisor = self._undo = None

    def __call__(self, batch: Any, number: int) -> Pass:
        """Return the loss of a batch; ``number`` counts the step's batches."""
        self._follow_hooks(batch)
        compute = self._computation_for(batch)
        if compute is self._spec.eager:
            return self._run(compute, batch)
        supervisor, undo = self.supervisor, self._undo
        if supervisor is not None and (reason := supervisor.before(batch)):
            self._leave(reason)
            return self._run(self._spec.eager, batch)
        if undo is not None:
            undo.take(batch)
        try:
            result = self._run(compute, batch)
        except Exception as error:
            return self._run_after_failure(batch, error)
        if self.slowdown is not None and self.slowdown.reason:  # the result is right all the same
            self._leave(self.slowdown.reason)
        elif supervisor is not None and undo is not None:
            reason = ""
            if supervisor.recompiled:
                with undo.undone():
                    reason = supervisor.compare_recompiled(batch)
            if reason := reason or supervisor.after_forward(result.loss, batch, number):
                undo.restore()
                self._leave(reason)
                with without_broadcast(self._spec.model):  # the other ranks take part in one a pass
                    return self._run(self._spec.eager, batch)
        return result

    def _run_after_failure(self, batch: Any, error: Exception) -> Pass:
        """Do a batch again eagerly after its compiled pass failed; an error that eager code raises as well is the user's."""
        if self._undo is not None:
            self._undo.restore()
        with without_broadcast(self._spec.model):
            result = self._run(self._spec.eager, batch)
        self._leave(f"the compiled pass failed: {first_line(error)}")
        return result

    def _run(self, compute: Compute, batch: Any) -> Pass:
        losses, count = split_loss(compute(batch))
        return Pass(scalar_loss(losses), losses, compute is not self._spec.eager, count)

    def _computation_for(self, batch: Any) -> Compute:
        """Return the compiled computation for the usual shape, and for others as soon as they are no longer rare."""
        eager = self._spec.eager
        if self.compute is eager:
            return eager
        shape = shape_of(batch)
        if shape == self._usual:
            return eager if self.slowdown is not None and self.slowdown.wants_eager else self.compute
        counts = self.other_shapes
        counts[shape] += 1
        return self.compute if counts[shape] > RARE or counts.total() > MANY else eager

    def time(self, batch: Any, seconds: float, compiled: bool) -> None:
        """Take into account how long forward and backward of a batch took."""
        if self.slowdown is not None and shape_of(batch) == self._usual:
            self.slowdown.add(seconds, not compiled)

    def _hook_keys(self) -> Any:
        return hook_keys(self._spec.model.modules())

    def _follow_hooks(self, batch: Any) -> None:
        """Capture the step anew if hooks of its modules came or went: a captured graph holds those of its capture."""
        made = hooks_made()
        if self.compute is self._spec.eager or (made == self._hooks and not self._keys):
            return
        self._hooks, keys = made, self._hook_keys()
        if keys == self._keys:
            return
        self._keys, self._captures = keys, self._captures + 1
        if self._captures > MOST_CAPTURES:
            self._leave(f"hooks of the model changed {self._captures} times")
            return
        self._tell("captured anew: hooks of the model came or went")
        self.compute = variant(self._spec, self._plan, self.log)
        if self.supervisor is not None:  # a hook may change state that no pass changed before
            reason, sandbox = self.supervisor.compare_anew(self.compute, batch)
            if reason:
                self._leave(reason)
            else:
                self.supervise(sandbox, self.log.graphs)
