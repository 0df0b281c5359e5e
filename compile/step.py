"""Training step as one object: forward, loss, backward, clipping and update, by a measured plan.

``prepare`` chooses the plan at the first batch.  The decision which compiled variant wins is ``search/search.py``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
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
from .graph.backend import Log
from .plan import Plan
from .search import optimizers
from .search.candidates import set_layout
from .search.search import SearchResult, search
from .search.slowdown import SlowdownMonitor
from .search.variants import MANY, RARE, shape_of, variant
from .spec import Compute, StepSpec
from .verify.loss_curve import compare_loss_curves
from .verify.numerics import Difference, compare_step
from .verify.supervisor import Supervisor

if TYPE_CHECKING:
    from loopwise.run import Run


class TrainStep:
    """Training step: ``loss = step(batch)`` runs forward, backward, clipping and update for each batch.

    At the first batch the step chooses a plan.  Variants of the step are compiled, compared with the eager
    step and with float64, and timed in turns.  The fastest correct one stays; it may be the eager one.  The
    search changes neither the model, nor its gradients and buffers, nor any random state.  The plan that wins may
    bring convolution weights into another memory format and set the optimizer's ``fused`` or ``foreach``.
    A batch of a rare shape (the last of an epoch) runs eagerly instead of being compiled.

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
        self._plan = plan or Plan()
        self.losses: torch.Tensor | None = None
        self._verifies = validate.one_of("verify", verify, (True, False))
        self._pinned = plan is not None
        self._key = ""
        self._usual_shape: Any = None
        self._other_shapes: Counter[Any] = Counter()
        self._search: SearchResult | None = None
        self._stored: plans.StoredPlan | None = None
        self._compiled: Compute = spec.eager
        self._log = Log()
        self._choice: optimizers.Choice | None = None
        self._optimizer_chosen = False
        self._slowdown: SlowdownMonitor | None = None
        self._supervisor: Supervisor | None = None
        self._cuda_graph: CudaGraphStep | None = None
        self._events = Events(run, resume)
        if spec.precision == "mixed" and native_dtype(spec.device) is torch.float32:
            same = "precision='mixed' is as 'exact': this device multiplies no dtype faster than float32"
            self._events.add(same)

    @property
    def plan(self) -> Plan | None:
        """Plan in use; ``None`` before the first batch if none was passed."""
        return self._plan if self._pinned or self._search is not None else None

    # -- training -------------------------------------------------------------------------------

    def __call__(self, batch: Any) -> torch.Tensor:
        """Train on one batch and return its loss, detached, a tensor of shape () on the model's device."""
        if self.spec.wrapper is None:
            raise options.without_optimizer()
        self.prepare(batch)
        first = self._events.batch % self.spec.accumulate == 0
        last = (self._events.batch + 1) % self.spec.accumulate == 0
        loss = self._replay(batch, first, last)
        return self._train(batch, last) if loss is None else loss

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
        compute, loss = self._forward(batch)
        if compute is not self.spec.eager:
            self._inspect(loss, batch)
        return loss

    def _forward(self, batch: Any) -> tuple[Compute, torch.Tensor]:
        """Return the computation that this batch goes through, and its loss."""
        self._events.batch += 1
        compute = self._computation_for(batch)
        losses = compute(batch)
        loss = options.scalar_loss(losses)
        self.losses = losses.detach() if losses.ndim else None
        return compute, loss

    def _computation_for(self, batch: Any) -> Compute:
        """Return the compiled computation for the usual shape, and for others as soon as they are no longer rare."""
        eager = self.spec.eager
        if self._compiled is eager:
            return eager
        shape = shape_of(batch)
        if shape == self._usual_shape:
            return eager if self._slowdown is not None and self._slowdown.wants_eager else self._compiled
        counts = self._other_shapes
        counts[shape] += 1
        return self._compiled if counts[shape] > RARE or counts.total() > MANY else eager

    def _train(self, batch: Any, last: bool) -> torch.Tensor:
        """Train on one batch by an ordinary step; ``last`` is true for the last batch of an update."""
        model, eager = self.spec.model, self.spec.eager
        silent = isinstance(model, DistributedDataParallel) and not last
        start = time.perf_counter()
        with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            compute, loss = self._forward(batch)
            self.spec.backward(loss)
        if self._slowdown is not None and shape_of(batch) == self._usual_shape:
            self._slowdown.add(time.perf_counter() - start, compute is eager)
        if compute is not eager:
            self._inspect(loss, batch)
        if last:
            if not self._optimizer_chosen and self.spec.scaler is None:
                self._choose_optimizer()
            self.spec.update(self._cuda_graph is not None and self._cuda_graph.keeps_gradients)
        return loss.detach()

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
        self._inspect(loss, batch)
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
        spec = self.spec
        self._usual_shape = shape_of(batch)
        requested = (spec.precision, spec.memory, spec.autotune)
        self._key = plans.cache_key(spec.model, spec.optimizer, self._usual_shape, requested)
        stored = None if self._pinned else from_main(lambda: plans.recall(self._key))
        known, self._stored = self.plan if stored is None else stored.plan, stored
        self._search = search(spec, batch, known, errors=None)
        self._use(self._search)
        self._start_cuda_graph(try_it=spec.autotune == "max" and known is None)
        if known is None:
            self._remember()
        self._events.plan(self.explain())

    def _use(self, result: SearchResult) -> None:
        """Put the winner of the search in the place of the eager step."""
        spec, best, eager = self.spec, result.best, result.candidates[0]
        plan = self._plan = best.plan
        self._log = best.log
        assert best.compute is not None
        self._compiled, compared_graphs = best.compute, best.log.graphs
        if result.samples is not None:
            # the winner is compiled for a part of the batch, and was not compared with the whole batch
            self._compiled, compared_graphs = variant(spec, plan, best.log), 2 * best.log.graphs
        elif best is not eager and best.times and spec.memory is None and spec.device.type == "cpu":
            # on a GPU a clock would have to wait for each step
            self._slowdown = SlowdownMonitor(eager.seconds)
        if self._verifies:
            self._supervisor = Supervisor(spec, self._compiled, self._log, compared_graphs, self._events.add)
        self._optimizer_chosen = plan.optimizer != "as_is" or self._pinned or spec.autotune == "off"
        if self._optimizer_chosen and spec.optimizer is not None:
            optimizers.switch(spec.optimizer, plan.optimizer)
        set_layout(spec.model, plan.layout)

    def _start_cuda_graph(self, try_it: bool) -> None:
        """Let the whole step become one CUDA graph after some updates, if the plan says so or to ``try_it``."""
        recorder = recorder_for(self.spec.device)
        if recorder is None or not (try_it or self._plan.cuda_graph):
            return
        spec, tell = self.spec, self._events.add
        alone = world_size() == 1 and not isinstance(spec.model, DistributedDataParallel)
        self._plan = self._plan.changed(cuda_graph=alone)
        if alone:
            self._cuda_graph = CudaGraphStep(spec, self._compiled, self._usual_shape, recorder, tell)
        else:
            tell("CUDA graph: left off, there are several ranks")

    def _choose_optimizer(self) -> None:
        """Choose the fastest implementation of the update, as soon as there are gradients."""
        optimizer = self.spec.optimizer
        assert optimizer is not None
        self._optimizer_chosen = True
        choice = from_main(lambda: optimizers.choose_implementation(optimizer, self.spec.device))
        self._choice, self._plan = choice, self._plan.changed(optimizer=choice.name)
        optimizers.switch(optimizer, choice.name)
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

    def _inspect(self, loss: torch.Tensor, batch: Any) -> None:
        """Go back to the eager step if the compiled one became slow or wrong."""
        reason = "" if self._slowdown is None else self._slowdown.reason
        if not reason and self._supervisor is not None:
            reason = self._supervisor.inspect(loss, batch, self._events.batch)
        if reason:
            self.step_back(reason)

    def step_back(self, reason: str) -> None:
        """Go back to the eager step for good; ``reason`` is the text of the warning and of the event."""
        self._slowdown = self._supervisor = self._cuda_graph = None
        self._compiled = self.spec.eager
        self._plan = self._plan.changed(graph="eager", passes=(), cuda_graph=False)
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
        difference, plan = compare_step(self.spec, self._compiled, batch), self._plan
        if difference is not None or not steps:
            return difference
        if self.spec.optimizer is None:
            raise options.without_optimizer()

        def planned(spec: StepSpec) -> Compute:
            assert spec.optimizer is not None
            optimizers.switch(spec.optimizer, plan.optimizer)
            return variant(spec, plan, Log())

        return compare_loss_curves(self.spec, planned, batch, steps)

    def close(self) -> None:
        """Release the run; training may go on, without records.  A second call does nothing.

        A run that was opened by its path ends when the last part that uses it is closed or freed.
        """
        self._events.close()

    def explain(self) -> Explanation:
        """Return a table of the variants that were tried, with times and reasons of refusals, and remarks."""
        shapes = self._other_shapes
        other = [f"{shapes.total()} batches of {len(shapes)} other shapes"] if shapes else []
        return Explanation.of(self.plan, self._search, self._choice, [*other, *self._events.texts])
