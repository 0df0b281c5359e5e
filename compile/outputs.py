"""Compiled forward pass of a whole model whose outputs go to a loss that a trainer computes itself.

The pass is compared with the eager one at the first batch, and measured in turns with it over training steps that count
all the same: both kinds of step train the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.torch_internals import compiled_call, set_compiled_call

from .events import Events
from .explain import Explanation, row_of
from .in_place import DEFAULT, optimize
from .plan import Plan
from .search.measure import median, wait_for

if TYPE_CHECKING:
    from loopwise.run import Run

UNTIMED = 3
"""First steps that are not timed: they compile, for the first shape and for sizes that vary."""
TURNS = 5
"""Timed steps of each kind."""
OPTIONS = ("autotune", "plan", "run", "resume")
"""Options of ``TrainStep`` that this form has as well."""


class _Time(NamedTuple):
    """Time of a step."""

    seconds: float
    """Seconds of forward and backward."""
    size: int
    """Elements of the batch's largest tensor."""


class CompiledOutputs:
    """Forward passes of a model for training, compiled where that is not slower; the outputs are the model's own.

    Args:
        model: the model; it is as it was outside of ``forward_passes``.
        plan: the plan, which is not measured; default: Inductor with all passes, measured against the eager pass.
        autotune: ``off``: compile without timing.
        run: a folder, an fsspec URL or a ``Run`` that receives the plan and the times.
        resume: go on in a folder that already holds a run.

    Raises:
        InputError: the model is compiled already.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None = None,
        autotune: str = "default",
        run: str | os.PathLike[str] | Run | None = None,
        resume: bool = False,
    ) -> None:
        self.model, self.plan = model, plan or DEFAULT
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._times: dict[bool, list[_Time]] = {True: [], False: []}  # of eager steps, and of compiled ones
        self._is_chosen = plan is not None or autotune == "off"
        self._eager = self.plan.graph == "eager"
        self._call: Any = None
        if not self._eager:
            optimize(model, plan=self.plan)
            self._call = compiled_call(model)
            set_compiled_call(model, None)
        self._events = Events(run, resume)
        if self._is_chosen:
            self._events.plan(self.explain())

    @contextlib.contextmanager
    def forward_passes(self) -> Iterator[None]:
        """Let calls of the model be those of the plan."""
        set_compiled_call(self.model, None if self._runs_eagerly() else self._call)
        try:
            yield
        finally:
            set_compiled_call(self.model, None)

    @contextlib.contextmanager
    def training_step(self, batch: Any) -> Iterator[None]:
        """Time the step, forward and backward, if the plan is not chosen yet.

        Args:
            batch: the step's batch; the time is divided by the size of its largest tensor, as sizes may vary.
        """
        if self._is_chosen:
            yield
            self._follow_refusal()
            return
        eager = self._runs_eagerly()
        wait_for(self._device)
        start = time.perf_counter()
        yield
        wait_for(self._device)
        if self._follow_refusal():
            return
        seconds = time.perf_counter() - start
        self._events.batch += 1
        if self._events.batch > UNTIMED:
            sizes = [leaf.numel() for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)]
            self._times[eager].append(_Time(seconds, max([1, *sizes])))
        if all(len(times) >= TURNS for times in self._times.values()):
            for_size = {
                kind: median([one.seconds / one.size for one in of]) for kind, of in self._times.items()
            }
            self._eager, self._is_chosen = for_size[True] < for_size[False], True
            self._events.plan(self.explain())

    @property
    def _refusal(self) -> str:
        """Reason why the comparison refused the compiled pass; empty if it did not."""
        return "" if self._call is None else str(self._call.reason)

    def _follow_refusal(self) -> bool:
        """Note that the eager pass is in use if the comparison refused the compiled one; return whether it is new."""
        if self._eager or not self._refusal:
            return False
        self._eager = self._is_chosen = True
        self._events.plan(self.explain())
        return True

    def close(self) -> None:
        """End the run; ``explain()`` still works."""
        self._events.close()

    def _runs_eagerly(self) -> bool:
        """Return whether the next step is an eager one."""
        if self._is_chosen or self._events.batch < UNTIMED:
            return self._eager
        return len(self._times[True]) < len(self._times[False])

    def explain(self) -> Explanation:
        """Return what was measured, and what is in use."""
        plans, rows = {True: Plan(graph="eager"), False: self.plan}, []
        for eager, plan in plans.items():
            seconds = [one.seconds for one in self._times[eager]]
            verdict = "chosen" if eager == self._eager else "not faster" if seconds else "not timed"
            if not eager and self._refusal:
                verdict = f"wrong: {self._refusal}"
            rows.append(row_of(plan, seconds, verdict))
        source = "measured in turns, over training steps" if any(self._times.values()) else "not measured"
        remarks = [
            "the loss is computed from the model's outputs by the trainer: the model is compiled without its loss"
        ]
        return Explanation(plans[self._eager], rows, remarks, source)


def validate_options(options: dict[str, Any], why: str) -> None:
    """Refuse options that a model without its loss cannot be compiled with.

    Args:
        options: options of ``TrainStep``, by name.
        why: the reason why the loss is not compiled.

    Raises:
        InputError: an option that is not in ``OPTIONS``.
    """
    if left := [name for name in options if name not in OPTIONS]:
        raise InputError(
            f"compile={options!r}",
            f"some of the options {', '.join(OPTIONS)}",
            f"{why}, so the model is compiled without its loss, and {', '.join(left)} needs both",
            f"leave {', '.join(left)} out, or return the loss from compile_loss(model, batch), which the step compiles",
        )
