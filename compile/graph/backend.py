"""Backend of ``torch.compile``: graph passes first, then Inductor, and eager kernels if Inductor fails."""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from loopwise.errors import InputError
from loopwise.warnings import warn

from ..plan import Plan
from ..torch_internals import (
    CapturedAsEager,
    compile_by_inductor,
    known_vector_instructions,
    once_functions,
    passed_by_dynamo,
)
from . import regions
from .checkpoints import keep_random_states
from .passes import PASSES, USUAL, Outcome
from .segments import checkpointed

Compiled = Callable[..., Any]
Compared = Callable[[fx.GraphModule, Compiled], Compiled]
_copies = itertools.count()


@dataclass
class Log:
    """Events of the compilation of one candidate's graphs."""

    graphs: int = 0
    """Number of graphs that the backend compiled; more than one for a model and a shape means graph breaks."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Places that the passes inspected, each rewritten, or left with a reason."""
    failures: list[str] = field(default_factory=list)
    """Errors of graphs that could not be compiled and run by eager kernels."""
    regions: list[str] = field(default_factory=list)
    """A line for each graph whose repeated blocks were compiled once."""
    breaks: list[str] = field(default_factory=list)
    """Graph breaks: the line in the user's code, the cause and a way to avoid it."""
    operations: int = 0
    """Number of operations in the captured graphs."""
    distinct: int = 0
    """The same number, repeated blocks counted once: what a compiler works on if the plan has regions."""

    @property
    def saved_bytes(self) -> int:
        """Size of all tensors that the step no longer makes."""
        return sum(outcome.saved_bytes for outcome in self.outcomes if outcome.rewritten)


class Backend:
    """Backend for ``torch.compile(model, backend=Backend(plan, log))``.

    Args:
        plan: what is on.  The training step applies the plan's layout and optimizer; a graph has neither.
        log: collects the events of the compilation.
        compared: turns a captured graph and its compiled function into the function that is used.
    """

    def __init__(self, plan: Plan, log: Log, compared: Compared | None = None) -> None:
        self.plan, self.log, self._compared = plan, log, compared

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **unknown: Any) -> Compiled:
        """Compile a captured graph; return its eager function if that fails."""
        if self._compared is None:
            return self._rewritten(gm, example_inputs)
        captured = copied(gm)
        keep_random_states(captured)
        return self._compared(captured, self._rewritten(gm, example_inputs))

    def _rewritten(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        """Apply the passes and compile the graph."""
        self.log.graphs += 1
        for name in self.plan.passes:
            self._apply(name, gm)
        try:
            return self._compile(gm, example_inputs)
        except Exception as error:  # training goes on, as without a compiler
            text = first_line(error)
            self.log.failures.append(text)
            warn(f"loopwise.compile: a graph could not be compiled and runs eagerly. {text}", stacklevel=2)
            keep_random_states(gm)
            return gm.forward

    def _apply(self, name: str, gm: fx.GraphModule) -> None:
        """Apply a pass to the graph; restore the graph if the pass fails."""
        before = copy.deepcopy(gm.graph)
        try:
            self.log.outcomes += PASSES[name](gm)
        except Exception as error:
            gm.graph = before
            gm.recompile()
            self.log.outcomes.append(
                Outcome(False, "the graph", f"the pass failed: {first_line(error)}", name=name)
            )

    def _compile(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        cut = regions.split(gm)
        operations = sum(node.op.startswith("call_") for node in gm.graph.nodes)
        self.log.operations += operations
        self.log.distinct += regions.operations(cut) if cut else operations
        if self.plan.graph != "inductor":
            keep_random_states(gm)
            lean = checkpointed(gm, self.plan.budget) if self.plan.budget < 1 else None
            return lean or gm.forward
        from ..loss_head.op import save_gradients  # registers the operator, which takes 12 ms

        save_gradients(gm)
        if self.plan.regions and cut:
            self.log.regions.append(regions.summary(cut))
            return regions.compile_regions(gm, example_inputs, cut, self._by_inductor)
        return self._by_inductor(gm, example_inputs)

    def _by_inductor(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        # draws as in eager code: other draws could not be told from wrong results
        settings = {"fallback_random": True} | known_vector_instructions()
        if self.plan.max_autotune:
            settings["max_autotune_gemm"] = True
        return compile_by_inductor(gm, example_inputs, settings, self.plan.budget)


def copied(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph and its inner graphs, which refers to the same tensors."""
    copy_of = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    copy_of.meta = dict(gm.meta)
    for name, child in gm.named_children():
        if isinstance(child, fx.GraphModule) and hasattr(copy_of, name):
            setattr(copy_of, name, copied(child))
    return copy_of


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


OPTIONS: dict[str, Any] = {
    "precision": "exact",
    "budget": 1.0,
    "passes": USUAL,
    "max_autotune": False,
    "regions": False,
}
"""Options of ``torch.compile(model, backend="loopwise", options={...})`` and their defaults."""


def loopwise(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
    name: str | None = None,
    compared: Compared | None = None,
) -> Compiled:
    """Compile a captured graph by the options of ``torch.compile(backend="loopwise")``.

    Args:
        gm: the captured graph.
        example_inputs: its inputs.
        options: some of the keys of ``OPTIONS``.
        mode: must be None; modes are presets of Inductor.
        name: the caller's name for what is compiled; nothing depends on it.
        compared: as for ``Backend``.

    Raises:
        InputError: a mode, an option that is not in ``OPTIONS``, or a value that does not exist.
    """
    try:
        plan = _plan_of(options, mode)
    except InputError as error:  # Dynamo would wrap it, and name the backend as the cause
        raise passed_by_dynamo(error) from None
    return Backend(plan, Log(), compared)(gm, example_inputs)


def _plan_of(options: dict[str, Any] | None, mode: str | None) -> Plan:
    """Return the plan that the arguments of ``torch.compile(backend="loopwise")`` stand for."""
    if mode not in (None, "default"):
        raise InputError(
            f"mode={mode!r} with backend='loopwise'",
            "no mode",
            "modes are presets of the Inductor backend",
            f"pass options, of {', '.join(OPTIONS)}",
        )
    options = dict(options or {})
    if unknown := set(options) - set(OPTIONS):
        raise InputError(
            f"the options {', '.join(sorted(unknown))}",
            f"options of {', '.join(OPTIONS)}",
            "options of Inductor, or of another version",
            "drop them, or use backend='inductor' for Inductor's own",
        )
    try:
        return Plan(graph="inductor", **(OPTIONS | options))
    except InputError as error:
        seen, expected, cause, fix = error.args
        raise InputError(f"options={options!r}: {seen}", expected, cause, f"in options: {fix}") from None


def compile_function(function: Callable[..., Any], plan: Plan, log: Log) -> Callable[..., Any]:
    """Compile ``function`` by ``plan``, independently of all other compiled versions of the function.

    Calls of ``logger.warning_once`` and its like are not captured, since they would break the graph: the eager pass that
    a compiled one is compared with has logged the message.
    """
    if plan.graph == "eager":
        return function
    compiled = torch.compile(_isolated(function), backend=Backend(plan, log))
    once = once_functions()

    def compute(*inputs: Any, **options: Any) -> Any:
        with CapturedAsEager(once):
            return compiled(*inputs, **options)

    return compute


def _isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of ``function`` with its own code object and name.

    Dynamo keeps caches and the recompile limit for each code object.  It remembers the values that change from call to
    call, and compiles for any size, for each file, line and name.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    copy = types.FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
