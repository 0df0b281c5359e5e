"""Plan of a training step: chosen at the first batch, completed at the first update, and given up if it proves wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from loopwise.errors import InputError, StateError
from loopwise.ranks import from_main, world_size
from loopwise.warnings import warn

from . import losses
from . import plan as plans
from .accumulation.window import Accumulation
from .cuda_graph.recorder import recorder_for
from .cuda_graph.step import CudaGraphStep
from .events import Events
from .explain import Explanation, Origin
from .forward import Forward
from .layout import align_state, set_layout
from .plan import Plan
from .search import optimizers
from .search.search import SearchResult, search
from .search.slowdown import SlowdownMonitor
from .search.variants import shape_of, variant
from .spec import StepSpec


def validate_cuda_graph(plan: Plan | None, device: torch.device) -> None:
    """Refuse a plan with a CUDA graph for a device that has none."""
    if plan is not None and plan.cuda_graph and recorder_for(device) is None:
        raise InputError(
            f"cuda_graph=True in the plan of a model on {device}",
            "a model on an NVIDIA or AMD GPU",
            "the plan was made on another machine, or the model was not moved",
            "model.to('cuda'), or plan.changed(cuda_graph=False)",
        )


class PlannedStep:
    """Choice of the plan of a training step, and everything that hangs on the choice."""

    spec: StepSpec
    _events: Events
    _window: Accumulation
    _pinned: bool
    """Whether the plan was passed by the user."""
    _verifies: bool

    def _begin(self, known: Plan | None, recall: bool = True) -> None:
        """Set everything that the first batch decides.

        Args:
            known: plan that is compared instead of measured.
            recall: whether a plan of an earlier run may be used.
        """
        if self.spec.needs_closure:
            known = Plan(precision=self.spec.precision)
        self._plan, self._known, self._recall = known or Plan(), known, recall
        self.losses: torch.Tensor | None = None
        self._key = ""
        self._search: SearchResult | None = None
        self._stored: plans.StoredPlan | None = None
        self._left = ""
        self._forward_pass: Forward | None = None
        self._choice: optimizers.Choice | None = None
        self._optimizer_chosen = False
        self._cuda_graph: CudaGraphStep | None = None
        self.changing: frozenset[str] | None = None
        """Paths of the state that a pass changes; ``None`` before the first batch."""

    @property
    def plan(self) -> Plan | None:
        """Plan in use; ``None`` before the first batch if none was passed."""
        return self._plan if self._pinned or self._search is not None else None

    def prepare(self, batch: Any) -> None:
        """Choose the plan now instead of at the first step; a second call does nothing.

        Args:
            batch: a batch of the usual shape, on the device of the model.

        Raises:
            InputError: no variant stays within the budget ``memory``, or the loss or batch cannot be used.
            torch.OutOfMemoryError: neither the eager step nor another variant fits into memory.
        """
        if self._search is not None:
            return
        spec, usual = self.spec, shape_of(batch)
        loss = getattr(spec.loss, "__qualname__", type(spec.loss).__qualname__)
        requested = (spec.precision, spec.memory, spec.autotune, spec.max_seconds, loss)
        self._key = plans.cache_key(spec.model, spec.optimizer, usual, requested)
        stored = from_main(lambda: plans.recall(self._key)) if self._recall and self._known is None else None
        known, self._stored = self._known if stored is None else stored.plan, stored
        with losses.explained(spec.model, spec.loss):
            self._search = search(spec, batch, known)
        self._use(self._search, usual)
        self._start_cuda_graph(usual, try_it=spec.autotune == "max" and known is None)
        if known is None:
            self._remember()
        self._events.plan(self.explain())

    def replan(self, batch: Any) -> None:
        """Measure anew on ``batch`` and replace the plan, also the remembered one.

        Args:
            batch: a batch of the usual shape, on the device of the model.

        Raises:
            StateError: the plan was given as ``plan=``.
        """
        if self._pinned:
            raise StateError(
                "replan() of a step with plan=",
                "a step that chooses its plan",
                "a given plan is used as it is, without measuring others",
                "leave plan= out",
            )
        self._begin(None, recall=False)
        self.prepare(batch)

    def _use(self, result: SearchResult, usual: Any) -> None:
        """Put the winner of the search in the place of the eager step."""
        spec, best, eager = self.spec, result.best, result.candidates[0]
        plan = self._plan = best.plan
        assert best.compute is not None
        compute, compared_graphs = best.compute, best.log.graphs
        if result.samples is not None:
            # the winner is compiled for a part of the batch, and was not compared with the whole batch
            compute, compared_graphs = variant(spec, plan, best.log), 2 * best.log.graphs
        forward = Forward(spec, plan, compute, best.log, usual, self.step_back, self._events.add)
        self._forward_pass = forward
        timed = result.samples is None and best is not eager and bool(best.times)
        if timed and spec.memory is None and spec.device.type == "cpu":
            forward.slowdown = SlowdownMonitor(
                eager.seconds
            )  # on a GPU a clock would have to wait for each step
        if result.sandbox is not None:
            self.changing = result.sandbox.changing
            if self._verifies and best is not eager:
                forward.supervise(result.sandbox, compared_graphs)
            result.sandbox = None  # it holds copies of the weights
        self._optimizer_chosen = spec.optimizer is None or (
            plan.optimizer == "as_is" and not self._free_to_choose()
        )
        set_layout(spec.model, spec.optimizer, plan.layout)

    def _free_to_choose(self) -> bool:
        """Return whether the implementation of the optimizer is measured, instead of taken from the plan."""
        known = self._known is not None or self._stored is not None or self.spec.autotune == "off"
        return not known and self.spec.scaler is None

    def _start_cuda_graph(self, usual: Any, try_it: bool) -> None:
        """Let the whole step become one CUDA graph after some updates, if the plan says so or to ``try_it``."""
        recorder = recorder_for(self.spec.device)
        if recorder is None or not (try_it or self._plan.cuda_graph):
            return
        spec, tell = self.spec, self._events.add
        assert self._forward_pass is not None
        alone = world_size() == 1 and not isinstance(spec.model, DistributedDataParallel)
        self._plan = self._plan.changed(cuda_graph=alone)
        if alone:
            self._cuda_graph = CudaGraphStep(spec, self._forward_pass.compute, usual, recorder, tell)
        else:
            tell("CUDA graph: left off, there are several ranks")

    def _choose_optimizer(self) -> None:
        """Choose the fastest implementation of the update, or compare the plan's, as soon as there are gradients."""
        optimizer, device = self.spec.optimizer, self.spec.device
        assert optimizer is not None
        self._optimizer_chosen, planned = True, self._plan.optimizer
        if planned == "as_is":
            self._choice = from_main(lambda: optimizers.choose_implementation(optimizer, device))
        else:
            self._choice = optimizers.compared_implementation(optimizer, planned)
        self._plan = self._plan.changed(optimizer=self._choice.name)
        optimizers.switch(optimizer, self._choice.name)
        if planned == "as_is":
            self._remember()
        self._events.plan(self.explain())

    def _remember(self) -> None:
        """Store the plan for later runs, unless it is the user's own."""
        assert self._search is not None
        plan, stored, tried = self._plan, self._stored, self._search.candidates
        refused = [{"plan": str(one.plan), "reason": one.refused} for one in tried if one.refused]
        if stored is not None:  # the search of that run saw the other plans
            refused = stored.refused
        if not self._pinned:
            from_main(lambda: plans.remember(self._key, plan, refused, stored.measured_at if stored else ""))

    def _before_update(self) -> None:
        """Prepare the optimizer for an update, as soon as there are gradients."""
        if not self._optimizer_chosen:
            self._choose_optimizer()
        if self._plan.layout != "as_is" and self.spec.optimizer is not None:
            align_state(self.spec.optimizer)

    @property
    def _keeps_gradients(self) -> bool:
        return self._cuda_graph is not None and self._cuda_graph.keeps_gradients

    # -- trust ----------------------------------------------------------------------------------

    def step_back(self, reason: str) -> None:
        """Go back to the eager step for good; ``reason`` is the text of the warning and of the event."""
        self._cuda_graph = None
        if self._forward_pass is not None:
            self._forward_pass.go_eager()
        self._plan = self._plan.changed(graph="eager", passes=(), cuda_graph=False, regions=False, budget=1.0)
        self._left = reason
        self._events.add(f"stepped back: {reason}")
        if self._search is not None:
            self._events.plan(self.explain())
        warn(f"loopwise.compile: back to the eager step: {reason}", stacklevel=3)

    def explain(self) -> Explanation:
        """Return a table of the variants that were tried, with times and reasons of refusals, and remarks."""
        shapes = self._forward_pass.other_shapes if self._forward_pass is not None else None
        other = [f"{shapes.total()} batches of {len(shapes)} other shapes"] if shapes else []
        events = [*other, *self._events.texts, *self._window.remarks]
        origin = Origin(self._pinned, self._stored, self._left)
        return Explanation.of(self.plan, self._search, self._choice, events, origin)
