"""Training step as one object: forward, loss, backward, clipping and update, by a measured plan.

``prepare`` chooses the plan at the first batch.  The decision which compiled variant wins is ``search/search.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from loopwise import validate
from loopwise.devices import native_dtype
from loopwise.errors import InputError, StateError
from loopwise.ranks import from_main, world_size
from loopwise.warnings import warn

from . import options
from . import plan as plans
from .cuda_graph.recorder import recorder_for
from .cuda_graph.step import CudaGraphStep
from .events import Events
from .explain import Explanation
from .forward import Forward, Pass
from .layout import align_state, set_layout
from .plan import Plan
from .search import optimizers
from .search.search import SearchResult, search
from .search.slowdown import SlowdownMonitor
from .search.variants import shape_of, variant
from .spec import StepSpec
from .verify.loss_curve import compare_loss_curves
from .verify.numerics import Comparison, Difference

if TYPE_CHECKING:
    from loopwise.run import Run


class TrainStep:
    """Training step: ``loss = step(batch)`` runs forward, backward, clipping and update for each batch.

    At the first batch the step chooses a plan.  Variants of the step are compiled, compared with the eager
    step and with float64, and timed in turns.  The fastest correct one stays; it may be the eager one.  The
    search changes neither the model, nor its gradients and buffers, nor any random state.  The plan that wins may
    bring convolution weights into another memory format and set the optimizer's ``fused`` or ``foreach``.
    A batch of a rare shape (the last of an epoch) runs eagerly instead of being compiled.
    Deep copies and pickles of a step train their own copies of model and optimizer.

    Args:
        model: the model in training, or DDP's wrapper of it.
        loss: a criterion for ``(input, target)`` batches, such as ``nn.CrossEntropyLoss()``, or
            ``def loss(model, batch)`` (its first parameter named ``model``) for other batches.
            It returns one number, or one a sample (``reduction="none"``): then the step trains on their mean,
            and ``losses`` holds them for a sifting loader's ``record_losses``.
        optimizer: optimizer of the model's parameters, or a framework's wrapper of it; ``None`` if a framework
            does backward and update, and only ``forward`` is used.
        scaler: a ``torch.amp.GradScaler``; its steps are as in the usual loop.
        clip: largest l2 norm of all gradients together; ``None``: no clipping.
        accumulate: number of batches of an update; their gradients are averaged.
        precision: ``exact``: nothing changes beyond the order of floating-point additions; ``mixed``: autocast.
        memory: bytes that forward and backward may hold beside parameters, as a number, as text
            (``"6GiB"``), or as a fraction of the device's memory; activations are computed again if necessary.
        autotune: ``off``: compile without timing; ``default``: time the usual variants; ``max``: more of them,
            and on a GPU the whole step as one CUDA graph.
        plan: use this plan instead of choosing one; it is still compared with the eager step.
        verify: compare again after each recompilation and when a loss is not finite.  At the first batch
            the step is compared in any case.
        run: a folder, an fsspec URL or a ``Run`` that receives the plan, the times of each variant and later events.
        resume: go on in a folder that already holds a run.

    Attributes:
        spec: the validated arguments.
        losses: losses of the latest batch's samples, shape (batch,), if the loss returns one a sample.

    Raises:
        InputError: arguments, losses or batches that cannot be used; a memory budget that cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: Optimizer | None = None,
        *,
        scaler: Any = None,
        clip: float | None = None,
        accumulate: int = 1,
        precision: str = "exact",
        memory: float | str | None = None,
        autotune: str = "default",
        plan: Plan | None = None,
        verify: bool = True,
        run: str | os.PathLike[str] | Run | None = None,
        resume: bool = False,
    ) -> None:
        spec = StepSpec(model, loss, optimizer, scaler, clip, accumulate, precision, autotune, memory)
        self.spec = spec
        options.validate_plan(plan)
        if plan is not None and plan.cuda_graph and recorder_for(spec.device) is None:
            raise InputError(
                f"cuda_graph=True in the plan of a model on {spec.device}",
                "a model on an NVIDIA or AMD GPU",
                "the plan was made on another machine, or the model was not moved",
                "model.to('cuda'), or plan.changed(cuda_graph=False)",
            )
        self._verifies = validate.one_of("verify", verify, (True, False))
        self._pinned = plan is not None
        self._begin(plan)
        self._events = Events(run, resume)
        if spec.precision == "mixed" and native_dtype(spec.device) is torch.float32:
            same = "precision='mixed' is as 'exact': this device multiplies no dtype faster than float32"
            self._events.add(same)

    def _begin(self, known: Plan | None, recall: bool = True) -> None:
        """Set everything that the first batch decides.

        Args:
            known: plan that is compared instead of measured.
            recall: whether a plan of an earlier run may be used.
        """
        self._plan, self._known, self._recall = known or Plan(), known, recall
        self.losses: torch.Tensor | None = None
        self._key = ""
        self._search: SearchResult | None = None
        self._stored: plans.StoredPlan | None = None
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: the arguments and the plan, without compiled code and without the run."""
        fields = {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(self.spec)}
        own = {"plan": self.plan, "pinned": self._pinned, "verifies": self._verifies}
        held = self.spec.optimizer.param_groups if self.spec.optimizer is not None else []
        gradients = [(p, p.grad) for group in held for p in group["params"] if p.grad is not None]
        return own | {"spec": fields, "batch": self._events.batch, "gradients": gradients}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a step on the copied model, which compares the plan again at its first batch."""
        self.spec = object.__new__(StepSpec)  # the model may be in the making: it is validated already
        for name, value in state["spec"].items():
            object.__setattr__(self.spec, name, value)
        self._pinned, self._verifies = state["pinned"], state["verifies"]
        self._events = Events(None, resume=False)
        self._events.batch = state["batch"]
        for parameter, gradient in state["gradients"]:  # copies of parameters have none
            parameter.grad = gradient
        self._begin(state["plan"])

    # -- training -------------------------------------------------------------------------------

    def __call__(self, batch: Any) -> torch.Tensor:
        """Train on one batch and return its loss, detached, a tensor of shape () on the model's device."""
        if self.spec.wrapper is None:
            raise options.without_optimizer()
        self.prepare(batch)
        first = self._events.batch % self.spec.accumulate == 0
        last = (self._events.batch + 1) % self.spec.accumulate == 0
        loss = self._replay(batch, first, last)
        return self._train(batch, first, last) if loss is None else loss

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch by the plan; the caller, a framework, calls ``backward`` and updates the weights.

        Returns:
            The loss, or the mean of one loss a sample: a tensor of shape () with its autograd graph.

        Raises:
            InputError: the loss has another shape than () and (batch,), or depends on no parameter.
            StateError: several ranks without DDP's wrapper need ``prepare`` before, outside of any forward pass.
        """
        wrapped = isinstance(self.spec.model, DistributedDataParallel)
        if self._search is None and world_size() > 1 and not wrapped:
            raise StateError(
                "forward() of a training step that has no plan yet, under several ranks",
                "prepare(batch) before the first forward()",
                "the search for a plan runs backward passes, which the framework's own wrapper would count as its own",
                "call step.prepare(batch) where the batch starts, in Lightning in on_train_batch_start",
            )
        self.prepare(batch)
        return self._forward(batch).loss

    def _forward(self, batch: Any) -> Pass:
        """Run the forward pass of a batch."""
        self._events.batch += 1
        assert self._forward_pass is not None
        result = self._forward_pass(batch, self._events.batch)
        self.losses = result.losses.detach() if result.losses.ndim else None
        return result

    def _train(self, batch: Any, first: bool, last: bool) -> torch.Tensor:
        """Train on one batch by an ordinary step; ``first`` and ``last`` are true at the ends of an update's batches."""
        model, forward = self.spec.model, self._forward_pass
        keeps_gradients = self._cuda_graph is not None and self._cuda_graph.keeps_gradients
        if first:  # somebody else may have left gradients, such as another step on the same parameters
            self.spec.wrapper.zero_grad(set_to_none=not keeps_gradients)
        silent = isinstance(model, DistributedDataParallel) and not last
        start = time.perf_counter()
        with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            result = self._forward(batch)
            self.spec.backward(result.loss)
        assert forward is not None
        forward.time(batch, time.perf_counter() - start, result.compiled)
        if last:
            if not self._optimizer_chosen:
                self._choose_optimizer()
            if self._plan.layout != "as_is" and self.spec.optimizer is not None:
                align_state(self.spec.optimizer)
            self.spec.update(keeps_gradients)
        return result.loss.detach()

    def _replay(self, batch: Any, first: bool, last: bool) -> torch.Tensor | None:
        """Train on one batch by a replay of the CUDA graph; return ``None`` if an ordinary step is needed."""
        if self._cuda_graph is None:
            return None
        losses = self._cuda_graph(batch, first, last)
        if self._cuda_graph.off:
            self._cuda_graph, self._plan = None, self._plan.changed(cuda_graph=False)
            self._remember()
        if losses is None:
            return None
        self._events.batch += 1
        self.losses = losses if losses.ndim else None
        loss = losses.mean() if losses.ndim else losses
        supervisor = self._forward_pass.supervisor if self._forward_pass is not None else None
        if supervisor is not None and (reason := supervisor.after_loss(loss, batch, self._events.batch)):
            self.step_back(reason)
        return loss

    # -- choosing the plan ----------------------------------------------------------------------

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
        requested = (spec.precision, spec.memory, spec.autotune)
        self._key = plans.cache_key(spec.model, spec.optimizer, usual, requested)
        stored = from_main(lambda: plans.recall(self._key)) if self._recall and self._known is None else None
        known, self._stored = self._known if stored is None else stored.plan, stored
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
            forward.slowdown = SlowdownMonitor(eager.seconds)  # on a GPU a clock would have to wait for each step
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

    # -- trust ----------------------------------------------------------------------------------

    def step_back(self, reason: str) -> None:
        """Go back to the eager step for good; ``reason`` is the text of the warning and of the event."""
        self._cuda_graph = None
        if self._forward_pass is not None:
            self._forward_pass.go_eager()
        self._plan = self._plan.changed(graph="eager", passes=(), cuda_graph=False, regions=False, budget=1.0)
        self._events.add(f"stepped back: {reason}")
        warn(f"loopwise.compile: back to the eager step: {reason}", stacklevel=3)

    def verify(self, batch: Any, steps: int = 0) -> Difference | None:
        """Compare the plan's forward and backward pass on ``batch`` with the eager one and with float64.

        Nothing is trained.

        Args:
            batch: a batch.
            steps: number of steps that copies of model and optimizer are trained for, by the plan and eagerly,
                to compare their losses; 0: none.

        Returns:
            The tensor (or the loss) that is furthest over its error budget, or ``None`` if all are within theirs.

        Raises:
            InputError: ``steps`` is no whole number from 0, or ``steps`` without an optimizer.
        """
        validate.whole_number("steps", steps, 0, example=50)
        self.prepare(batch)
        assert self._forward_pass is not None
        compute = self._forward_pass.compute
        wrapped = isinstance(self.spec.model, DistributedDataParallel)
        difference = Comparison(self.spec, batch, communicate=wrapped).difference(compute)
        if difference is not None or not steps:
            return difference
        if self.spec.optimizer is None:
            raise options.without_optimizer()
        return compare_loss_curves(self.spec, compute, batch, steps)

    def close(self) -> None:
        """Release the run; training may go on, without records.  A second call does nothing.

        A run that was opened by its path ends when the last part that uses it is closed or freed.
        """
        self._events.close()

    def explain(self) -> Explanation:
        """Return a table of the variants that were tried, with times and reasons of refusals, and remarks."""
        shapes = self._forward_pass.other_shapes if self._forward_pass is not None else None
        other = [f"{shapes.total()} batches of {len(shapes)} other shapes"] if shapes else []
        return Explanation.of(self.plan, self._search, self._choice, [*other, *self._events.texts])
