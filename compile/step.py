"""Training step as one object: forward, loss, backward, clipping and update, by a measured plan.

``planning.py`` chooses the plan at the first batch.  The decision which compiled variant wins is ``search/search.py``.
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

from loopwise import sample_losses, validate
from loopwise.devices import native_dtype
from loopwise.errors import StateError
from loopwise.ranks import world_size

from . import options
from .accumulation.closure import train_by_closure
from .accumulation.window import Accumulation
from .events import Events
from .forward import Pass
from .plan import Plan
from .planning import PlannedStep, validate_cuda_graph
from .spec import StepSpec
from .verify.loss_curve import compare_loss_curves
from .verify.numerics import Comparison, Difference

if TYPE_CHECKING:
    from loopwise.run import Run


class TrainStep(PlannedStep):
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
            ``losses`` holds them, and a ``SiftingDataLoader`` of the same model gets them.  A function may return a pair
            ``(loss, count)``: then the loss is the mean of ``count`` (an int) values, such as tokens.
        optimizer: optimizer of the model's parameters, or a framework's wrapper of it; ``None`` if a framework
            does backward and update, and only ``forward`` is used.  One that takes a closure trains eagerly.
        scaler: a ``torch.amp.GradScaler``; its steps are as in the usual loop.
        clip: largest l2 norm of all gradients together; ``None``: no clipping.
        accumulate: number of batches of an update; their gradients are averaged, by their counts if they have
            some.  ``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` tell how many targets of a batch are not ignored.
        precision: ``exact``: nothing changes beyond the order of floating-point additions; ``mixed``: autocast.
        memory: bytes that forward and backward may hold beside parameters, as a number, as text
            (``"6GiB"``), or as a fraction of the device's memory; activations are computed again if necessary.
        autotune: ``off``: compile without timing; ``default``: time the usual variants; ``max``: more of them,
            and on a GPU the whole step as one CUDA graph.
        max_seconds: seconds by the clock that the choice may take; what no longer fits is not tried.  Default: a
            thousand times the eager forward and backward pass, between 10 and 60 seconds, and one compilation in any case.
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
        max_seconds: float | None = None,
        plan: Plan | None = None,
        verify: bool = True,
        run: str | os.PathLike[str] | Run | None = None,
        resume: bool = False,
    ) -> None:
        arguments = (scaler, clip, accumulate, precision, autotune, memory, max_seconds)
        self.spec = spec = StepSpec(model, loss, optimizer, *arguments)
        options.validate_plan(plan)
        options.validate_parameters(model, loss, optimizer)
        validate_cuda_graph(plan, spec.device)
        self._verifies = validate.one_of("verify", verify, (True, False))
        self._pinned = plan is not None
        self._events = Events(run, resume)
        self._window = Accumulation(spec, self._events.add)
        sample_losses.announce(model, self)
        self._begin(plan)
        if spec.needs_closure:
            several = "computes losses and gradients several times in an update, by calls of a closure"
            unused = f"; the plan {plan} is not used" if plan not in (None, self._plan) else ""
            self._events.add(f"eager: {type(spec.optimizer).__name__} {several}{unused}")
        if spec.precision == "mixed" and native_dtype(spec.device) is torch.float32:
            same = "precision='mixed' is as 'exact': this device multiplies no dtype faster than float32"
            self._events.add(same)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: the arguments and the plan, without compiled code and without the run."""
        fields = {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(self.spec)}
        own = {"plan": self.plan, "pinned": self._pinned, "verifies": self._verifies}
        held = self.spec.optimizer.param_groups if self.spec.optimizer is not None else []
        gradients = [(p, p.grad) for group in held for p in group["params"] if p.grad is not None]
        numbers = {"batch": self._events.batch, "window": self._window.state()}
        return own | numbers | {"spec": fields, "gradients": gradients}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a step on the copied model, which compares the plan again at its first batch."""
        self.spec = object.__new__(StepSpec)  # the model may be in the making: it is validated already
        for name, value in state["spec"].items():
            object.__setattr__(self.spec, name, value)
        self._pinned, self._verifies = state["pinned"], state["verifies"]
        self._events = Events(None, resume=False)
        self._events.batch = state["batch"]
        self._window = Accumulation(self.spec, self._events.add)
        self._window.load(state["window"])
        sample_losses.announce(self.spec.model, self)
        for parameter, gradient in state["gradients"]:  # copies of parameters have none
            parameter.grad = gradient
        self._begin(state["plan"])

    # -- training -------------------------------------------------------------------------------

    def __call__(self, batch: Any, count: Any = None) -> torch.Tensor:
        """Train on one batch and return its loss, detached, a tensor of shape () on the model's device.

        Args:
            batch: the batch.
            count: number of values that the loss is the mean of, such as tokens, or another weight of the batch among
                those of its update: a number or a tensor of shape ().  A batch of count 0 adds nothing.  Under DDP
                the ranks' counts are compared as well.  Default: the count that the loss tells, else equal weights.
        """
        if self.spec.wrapper is None:
            raise options.without_optimizer()
        options.validate_gradients()
        self.prepare(batch)
        if self.spec.needs_closure:
            return self._train_by_closure(batch, count)
        self._window.begin(batch, count)
        loss = self._replay(batch)
        return self._train(batch) if loss is None else loss

    def flush(self) -> bool:
        """Update with the batches since the latest update, if there are any, though fewer than ``accumulate``.

        Otherwise the batches that come next complete the update.  Under DDP every rank has to call this function.

        Returns:
            Whether there were any batches.
        """
        if self.spec.wrapper is None:
            raise options.without_optimizer()
        due = self._window.reduce()
        if due:
            self._window.update(self._before_update, self._keeps_gradients)
        return due

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
        options.validate_gradients()
        self.prepare(batch)
        return self._forward(batch).loss

    def _forward(self, batch: Any) -> Pass:
        """Run the forward pass of a batch."""
        self._events.batch += 1
        assert self._forward_pass is not None
        result = self._forward_pass(batch, self._events.batch)
        self._give(batch, result.losses)
        return result

    def _give(self, batch: Any, losses: torch.Tensor) -> None:
        """Show the losses of a batch, and give them to a loader that remembers them."""
        self.losses = losses.detach() if losses.ndim else None
        sample_losses.give(self.spec.model, batch, self.losses)

    def _train(self, batch: Any) -> torch.Tensor:
        """Train on one batch by an ordinary step."""
        model, forward, window = self.spec.model, self._forward_pass, self._window
        if window.first:  # somebody else may have left gradients, such as another step on the same parameters
            self.spec.wrapper.zero_grad(set_to_none=not self._keeps_gradients)
        silent = isinstance(model, DistributedDataParallel) and not window.last
        start = time.perf_counter()
        with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            result = self._forward(batch)
            window.backward(result.loss, result.count)
        assert forward is not None
        forward.time(batch, time.perf_counter() - start, result.compiled)
        if window.add(batch):
            window.update(self._before_update, self._keeps_gradients)
        return result.loss.detach()

    def _train_by_closure(self, batch: Any, count: Any) -> torch.Tensor:
        """Train on one batch by an optimizer that calls a closure."""
        options.refuse_count(count, self.spec.optimizer)
        assert self._forward_pass is not None
        self._events.batch += 1
        result: Pass = train_by_closure(self.spec, self._forward_pass, batch, self._events.batch)
        self._give(batch, result.losses)
        return result.loss.detach()

    def _replay(self, batch: Any) -> torch.Tensor | None:
        """Train on one batch by a replay of the CUDA graph; return ``None`` if an ordinary step is needed."""
        window = self._window
        if self._cuda_graph is None or not window.is_regular():
            return None
        losses = self._cuda_graph(batch, window.first, window.last)
        if self._cuda_graph.off:
            self._cuda_graph, self._plan = None, self._plan.changed(cuda_graph=False)
            self._remember()
        if losses is None:
            return None
        self._events.batch += 1
        if window.add(batch):
            window.forget()
        self._give(batch, losses)
        loss = losses.mean() if losses.ndim else losses
        supervisor = self._forward_pass.supervisor if self._forward_pass is not None else None
        if supervisor is not None and (reason := supervisor.after_loss(loss, batch, self._events.batch)):
            self.step_back(reason)
        return loss

    # -- trust ----------------------------------------------------------------------------------

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
        if difference is not None or not steps or self.spec.needs_closure:
            return difference
        if self.spec.optimizer is None:
            raise options.without_optimizer()
        return compare_loss_curves(self.spec, compute, batch, steps)

    def close(self) -> None:
        """Release the run; training may go on, without records.  A second call does nothing.

        An incomplete update stays incomplete, which the run's events tell: call ``flush`` before.  A run that was opened by its path ends when the last part that uses it is closed or freed.
        """
        for text in self._window.remarks:
            self._events.write(text)
        self._events.close()
