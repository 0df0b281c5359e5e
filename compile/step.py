"""The training step as one object: forward, loss, backward, clipping and update, by a measured plan."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from loopwise.devices import native_dtype
from loopwise.ranks import from_main, world_size
from loopwise.run import Run
from loopwise.wrappers import innermost

from . import options
from . import plan as plans
from .cuda_graph.recorder import recorder_for
from .cuda_graph.step import WholeStep
from .events import Events
from .explain import Explanation
from .graph.backend import Log
from .graph.diagnostics import recompilations
from .plan import Plan
from .search import optimizers
from .search.candidates import lay_out
from .search.search import Search, search
from .search.slowdown import Pace
from .search.variants import by_plan, eager, shape_of
from .verify.loss_curve import side_by_side
from .verify.numerics import Difference, check, reference
from .verify.sandbox import Compute, observe, total

RARE = 8
"""Batches of a shape other than the usual one that run eagerly before that shape is compiled, too."""
MANY = 24
"""Batches of other shapes, all together, after which they are compiled whatever their shape: Dynamo
then compiles one form for any size of the dimensions that change."""
SYNCS = 100
"""Batches between two looks at whether a loss on a GPU is finite."""


class TrainStep:
    """One call a batch: ``loss = step(batch)`` in place of forward, backward, clipping and update.

    At the first batch it finds a plan: forms of the same step are compiled, compared with the eager
    step and with float64, timed beside each other, and the fastest right one stays, which may be the
    eager one.  None of that shows in the model, its gradients, buffers, or any random state.
    A batch of a rare shape (the last of an epoch) runs eagerly instead of being compiled.

    Args:
        model: the model in training, or DDP's wrapper of it.
        loss: a criterion for ``(input, target)`` batches, such as ``nn.CrossEntropyLoss()``, or
            ``def loss(model, batch)`` (its first parameter named ``model``) for batches of any other
            form.  It gives one number, or one a sample (``reduction="none"``): then their mean is
            trained on and ``losses`` has them, for a sifting loader's ``record``.
        optimizer: of the model's parameters, or a framework's wrapper of it; ``None`` where something
            else does backward and update, and only ``forward`` is used.
        scaler: a ``torch.amp.GradScaler``; its steps are as in the usual loop.
        clip: largest norm of all gradients together; ``None``: no clipping.
        accumulate: batches to an update.  Gradients are averaged over them.
        precision: ``exact``: nothing changes beyond the order of floating-point additions; ``mixed``: autocast.
        memory: bytes that forward and backward may hold beside parameters, as a number, as text
            (``"6GiB"``), or as a fraction of the device's memory; solved by recomputing activations.
        autotune: ``off``: compile without measuring; ``default``: measure the usual forms; ``max``: more of them,
            and on a GPU the whole step as one CUDA graph.
        plan: use this plan instead of finding one; it is still compared with the eager step.
        verify: compare again after each recompilation and when a loss is not finite; at the first batch
            the step is compared in any case.
        run: a ``Run`` that receives the plan with what each form took, and what happens to it later.

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
        run: Run | None = None,
    ) -> None:
        self.device = options.device_of(model)
        options.arguments(model, optimizer, clip, accumulate, precision, autotune, plan)
        self.model, self.loss, self.optimizer = model, loss, innermost(optimizer)
        self.outer = optimizer
        self.scaler, self.clip, self.accumulate = scaler, clip, accumulate
        self.precision, self.autotune, self.verifies = precision, autotune, verify
        self.memory = None if memory is None else options.bytes_of(memory, self.device)
        self.plan = plan
        if plan is not None and plan.cuda_graph and recorder_for(self.device) is None:
            raise options.without_graphs(self.device)
        self.losses: torch.Tensor | None = None
        self._pinned = plan is not None
        self._eager = eager(model, loss, precision)
        self._compiled: Compute = self._eager
        self._log = Log()
        self._events = Events(run)
        if precision == "mixed" and native_dtype(self.device) is torch.float32:
            self._events.add(
                0, "precision='mixed' is as 'exact': this device multiplies no dtype faster than float32"
            )
        self._search: Search | None = None
        self._choice: optimizers.Choice | None = None
        self._pace: Pace | None = None
        self._whole: WholeStep | None = None
        self._usual: Any = None
        self._ready = False
        self._shapes: Counter[Any] = Counter()
        self._graphs = 0
        self._batches = 0
        self._updated = self._wild = False

    def __call__(self, batch: Any) -> torch.Tensor:
        """Train on one batch; returns its loss, detached, a tensor of shape () on the model's device."""
        if self.outer is None:
            raise options.without_optimizer()
        self.prepare(batch)
        last = (self._batches + 1) % self.accumulate == 0
        if (losses := self._replayed(batch, last)) is not None:
            return losses
        silent = isinstance(self.model, DistributedDataParallel) and not last
        start = time.perf_counter()
        with self.model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            compute, loss = self._computed(batch)
            self._backward(loss)
        if self._pace is not None and shape_of(batch) == self._usual:
            self._pace.note(time.perf_counter() - start, compute is self._eager)
        if compute is not self._eager:
            self._watch(loss, batch)
        if last:
            self._update()
        return loss.detach()

    def _replayed(self, batch: Any, last: bool) -> torch.Tensor | None:
        """The loss of a batch that was trained on by a recording of the whole step, if there is one."""
        if self._whole is None:
            return None
        losses = self._whole(batch, self._batches % self.accumulate == 0, last)
        if self._whole.off:
            assert self.plan is not None
            self._whole, self.plan = None, self.plan.changed(cuda_graph=False)
            self._remember()
        if losses is None:
            return None
        self._batches += 1
        self.losses = losses if losses.ndim else None
        loss = losses.mean() if losses.ndim else losses
        self._watch(loss, batch)
        return loss

    def forward(self, batch: Any) -> torch.Tensor:
        """The loss of a batch by the plan, to call ``backward`` on, where a framework does the rest.

        Under several ranks without DDP's wrapper around ``model``, call ``prepare`` first, outside of
        any wrapper's forward pass.
        """
        if not self._ready and world_size() > 1 and not isinstance(self.model, DistributedDataParallel):
            raise options.not_prepared()
        self.prepare(batch)
        compute, loss = self._computed(batch)
        if compute is not self._eager:
            self._watch(loss, batch)
        return loss

    def _computed(self, batch: Any) -> tuple[Compute, torch.Tensor]:
        """The form that this batch goes through, and its loss."""
        self._batches += 1
        compute = self._route(batch)
        losses = compute(batch)
        loss = total(losses)
        self.losses = losses.detach() if losses.ndim else None
        return compute, loss

    # -- finding a plan -------------------------------------------------------------------------

    def prepare(self, batch: Any) -> None:
        """Find the plan now, for batches of the shape of ``batch``; the first step does it otherwise."""
        if self._ready:
            return
        self._ready, self._usual = True, shape_of(batch)
        digest = plans.situation(
            self.model, self.optimizer, self._usual, (self.precision, self.memory, self.autotune)
        )
        kept = None if self._pinned else from_main(lambda: plans.recall(digest))
        known, noise = kept or (self.plan, None)
        self._search = found = search(self, batch, known, noise)
        best = found.best
        self.plan, self._log = best.plan, best.log
        self._guards = len(recompilations())
        plain = found.trials[0]
        entire = found.samples is None
        if best is not plain and best.times and entire and self.memory is None and self.device.type == "cpu":
            self._pace = Pace(plain.seconds)  # on a GPU a clock would have to wait for each step
        assert best.compute is not None
        self._compiled, self._graphs = best.compute, best.log.graphs
        if not entire:  # compiled for the batch's own size, and not compared there
            self._compiled, self._graphs = self.make(best.plan, best.log), 2 * best.log.graphs
        self._updated = self.plan.optimizer != "as_is" or self._pinned or self.autotune == "off"
        if self._updated and self.optimizer is not None:
            optimizers.choose(self.optimizer, self.plan.optimizer)
        lay_out(self.model, self.plan.layout)
        self._digest = digest
        self._begin_recording(try_it=self.autotune == "max" and known is None)
        if known is None:
            self._remember()
        self._events.plan(self._batches, self.explain())

    def _begin_recording(self, try_it: bool) -> None:
        """Where the plan says so, or to ``try_it``: the whole step becomes one CUDA graph after some updates."""
        assert self.plan is not None
        recorder = recorder_for(self.device)
        if recorder is None or not (try_it or self.plan.cuda_graph):
            return
        alone = world_size() == 1 and not isinstance(self.model, DistributedDataParallel)
        self.plan = self.plan.changed(cuda_graph=alone)
        if alone:
            self._whole = WholeStep(
                self, self._usual, recorder, lambda text: self._events.add(self._batches, text)
            )
        else:
            self._events.add(self._batches, "CUDA graph: left off, there are several ranks")

    def make(self, plan: Plan, log: Log) -> Compute:
        """The computation of a batch's loss by ``plan``."""
        return by_plan(self._eager, plan, log)

    def _choose_optimizer(self) -> None:
        """With the first gradients: which implementation of the update is the fastest."""
        assert self.plan is not None
        assert self._search is not None
        optimizer = self.optimizer
        assert optimizer is not None
        self._updated = True
        self._choice = from_main(lambda: optimizers.measured(optimizer, self.device))
        self.plan = self.plan.changed(optimizer=self._choice.kind)
        optimizers.choose(optimizer, self._choice.kind)
        self._remember()
        self._events.plan(self._batches, self.explain())

    def _remember(self) -> None:
        """Keep the plan for later runs, unless it is the user's own."""
        assert self.plan is not None
        assert self._search is not None
        plan, errors = self.plan, self._search.errors
        if not self._pinned:
            from_main(lambda: plans.remember(self._digest, plan, errors))

    # -- a step ---------------------------------------------------------------------------------

    def _route(self, batch: Any) -> Compute:
        """The compiled form for the usual shape, and for others once they are no longer rare."""
        if self._compiled is self._eager:
            return self._eager
        shape = shape_of(batch)
        if shape == self._usual:
            return self._eager if self._pace is not None and self._pace.eager_turn else self._compiled
        self._shapes[shape] += 1
        often = self._shapes[shape] > RARE or self._shapes.total() > MANY
        return self._compiled if often else self._eager

    def _update(self) -> None:
        if not self._updated and self.scaler is None:
            self._choose_optimizer()
        self.apply(self._whole is not None and self._whole.keeps_gradients)

    def backward(self, batch: Any) -> torch.Tensor:
        """Forward and backward of a batch by the plan, for a recording; its losses."""
        losses = self._compiled(batch)
        self._backward(total(losses))
        return losses.detach()

    def _backward(self, loss: torch.Tensor) -> None:
        """The backward pass of a batch's share of the update."""
        share = loss if self.accumulate == 1 else loss / self.accumulate
        (share if self.scaler is None else self.scaler.scale(share)).backward()

    def apply(self, keep_gradients: bool) -> None:
        """Clip, update and zero the gradients, where they are if they are kept."""
        assert self.outer is not None
        assert self.optimizer is not None
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.scaler is None:
            self.outer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.outer.zero_grad(set_to_none=not keep_gradients)

    # -- trust ----------------------------------------------------------------------------------

    def _watch(self, loss: torch.Tensor, batch: Any) -> None:
        """Where new code came into being or the loss is not finite: compare; step back if it is wrong or slow."""
        if self._pace is not None and self._pace.verdict:
            self.step_back(self._pace.verdict)
            return
        if not self.verifies:
            return
        if self._log.graphs > self._graphs:
            self._graphs = self._log.graphs
            for reason in recompilations()[self._guards :]:
                self._events.add(self._batches, f"recompiled: {reason}")
            self._guards = len(recompilations())
            self._compare("after a recompilation", batch)
        often = self.device.type == "cpu" or self._batches % SYNCS == 0  # asking a GPU waits for it
        if often and not self._wild and not bool(loss.isfinite()):
            self._wild = True
            self._compare("the loss is not finite", batch)

    def _compare(self, when: str, batch: Any) -> None:
        try:
            difference = self.verify(batch)
        except torch.OutOfMemoryError:
            self._events.add(self._batches, f"{when}: not compared, there is no memory for the eager step")
            return
        if difference is not None:
            self.step_back(f"{when}: {difference}")

    def verify(self, batch: Any, steps: int = 0) -> Difference | None:
        """Compare the plan's forward and backward pass on ``batch`` with the eager one and with float64.

        With ``steps`` copies of model and optimizer train for so many steps as well, by the plan and
        eagerly, and their losses are compared.  Nothing is trained.  Returns the tensor (or the loss)
        that is furthest over its error budget, or ``None``.
        """
        self.prepare(batch)
        expected = reference(self._eager, self.computation, self.model, self.loss, batch)
        found = check(observe(self._compiled, self.model, batch), expected)
        if found is not None or not steps:
            return found
        assert self.plan is not None
        if self.optimizer is None:
            raise options.without_optimizer()

        def make(model: nn.Module, loss: Any, plan: Plan) -> Compute:
            return by_plan(eager(model, loss, self.precision), plan, Log())

        return side_by_side(make, self.model, self.loss, self.optimizer, self.plan, batch, steps)

    def computation(self, model: nn.Module, loss: Any) -> Compute:
        """The eager computation with another model and loss, for references."""
        return eager(model, loss, "exact")

    def step_back(self, reason: str) -> None:
        """Go on with the eager step, and say why, once."""
        assert self.plan is not None
        self._pace = self._whole = None
        self._compiled = self._eager
        self.plan = self.plan.changed(graph="eager", passes=(), cuda_graph=False)
        self._events.add(self._batches, f"stepped back: {reason}")
        warnings.warn(f"loopwise.compile: back to the eager step: {reason}", RuntimeWarning, stacklevel=3)

    def explain(self) -> Explanation:
        """What is on, what each piece gained, what was refused and why."""
        events = self._events.texts
        return Explanation.of(self.plan, self._search, self._choice, self._log, events, self._shapes)
