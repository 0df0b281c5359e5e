"""The ``torch.compile`` backend: our passes, then Inductor; eager where that fails."""

from __future__ import annotations

import copy
import itertools
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import fx

from loopwise.errors import InputError

from ..linear_cross_entropy.op import keep_gradients
from ..plan import Plan
from . import regions
from .passes import PASSES, USUAL, Outcome

Compiled = Callable[..., Any]
NOTHING = 1e-6
"""A budget that saves nothing but what must be saved."""
_copies = itertools.count()


@dataclass
class Log:
    """What happened while graphs were compiled."""

    graphs: int = 0
    """Graphs handed to the backend; more than one for a model and shape means graph breaks."""
    outcomes: list[Outcome] = field(default_factory=list)
    """What each pass rewrote, and what it left and why."""
    failures: list[str] = field(default_factory=list)
    """Graphs that could not be compiled and run by eager kernels."""
    regions: list[str] = field(default_factory=list)
    """A line for each graph whose repeated blocks were compiled once."""
    breaks: list[str] = field(default_factory=list)
    """Graph breaks: the user's line, what happened and how to avoid it."""

    @property
    def saved_bytes(self) -> int:
        """Of tensors that the passes keep from being made."""
        return sum(outcome.saved_bytes for outcome in self.outcomes if outcome.rewritten)


class Backend:
    """A backend for ``torch.compile(model, backend=Backend(plan, log))``.

    Args:
        plan: what is on; its layout and optimizer are matters of the training step, not of a graph.
        log: collects what happens.
    """

    def __init__(self, plan: Plan, log: Log) -> None:
        self.plan, self.log = plan, log

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], **unknown: Any) -> Compiled:
        self.log.graphs += 1
        for name in self.plan.passes:
            self._pass(name, gm)
        try:
            return self._compiled(gm, example_inputs)
        except Exception as error:  # training goes on, as if it had not been compiled
            said = first_line(error)
            self.log.failures.append(said)
            warnings.warn(
                f"loopwise.compile: a graph could not be compiled and runs eagerly. {said}",
                RuntimeWarning,
                stacklevel=2,
            )
            return gm.forward

    def _pass(self, name: str, gm: fx.GraphModule) -> None:
        """Apply a pass; the graph is as it was before where the pass fails."""
        before = copy.deepcopy(gm.graph)
        try:
            self.log.outcomes += PASSES[name](gm)
        except Exception as error:
            gm.graph = before
            gm.recompile()
            what = name.replace("_", " ")
            self.log.outcomes.append(
                Outcome(False, "the graph", f"it failed: {first_line(error)}", what=what)
            )

    def _compiled(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        if self.plan.graph != "inductor":
            return gm.forward
        keep_gradients(gm)
        if self.plan.regions and (pieces := regions.find(gm)):
            self.log.regions.append(regions.counted(pieces))
            return regions.compiled(gm, example_inputs, pieces, self._by_inductor)
        return self._by_inductor(gm, example_inputs)

    def _by_inductor(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        from torch._inductor.compile_fx import compile_fx

        patches: dict[str, Any] = {"fallback_random": self.plan.precision == "exact"} | _known_instructions()
        if self.plan.max_autotune:
            patches["max_autotune_gemm"] = True
        # the partitioner reads the budget while the forward graph is compiled; it is no key of Inductor's
        # a budget of 0 is a way of its own, which would run the loss head twice
        with functorch_config.patch(activation_memory_budget=max(self.plan.budget, NOTHING)):
            compiled: Any = compile_fx(gm, list(example_inputs), config_patches=patches)
            return compiled  # type: ignore[no-any-return]


def _known_instructions() -> dict[str, Any]:
    """Inductor's setting that vector instructions which torch's own kernels run with need not be tried out.

    It compiles and loads a program for each of three sets of instructions otherwise, 2-4 s each.
    """
    from torch._inductor import config

    if getattr(config.cpp, "vec_isa_ok", True) is not None:  # the user's choice, or another version
        return {}
    best = "AVX512" if torch.cpu.get_capabilities().get("avx512_f", False) else "AVX2"
    return {"cpp.vec_isa_ok": True} if torch.backends.cpu.get_cpu_capability() == best else {}


def first_line(error: Exception) -> str:
    """Type and first line of an error."""
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
) -> Compiled:
    """The backend by its name, found through an entry point: no import of Loopwise is needed.

    Args:
        gm: the captured graph.
        example_inputs: its inputs.
        options: some of ``OPTIONS``.
        mode: refused: modes are Inductor's; a plan says what is on.
    """
    if mode not in (None, "default"):
        raise InputError(
            f"mode={mode!r} with backend='loopwise'",
            "no mode",
            "modes are presets of the Inductor backend",
            f"pass options, of {', '.join(OPTIONS)}",
        )
    given = dict(options or {})
    if unknown := set(given) - set(OPTIONS):
        raise InputError(
            f"the options {', '.join(sorted(unknown))}",
            f"options of {', '.join(OPTIONS)}",
            "options of Inductor, or of another version",
            "drop them, or use backend='inductor' for Inductor's own",
        )
    plan = Plan(graph="inductor", **(OPTIONS | given))
    return Backend(plan, Log())(gm, example_inputs)


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of ``function`` with a code object and a name of its own.

    Dynamo's caches and recompile limit are by code object, and what it has seen change from call to
    call, which it compiles for any size, is by file, line and name.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    copy = types.FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def captured(function: Callable[..., Any], plan: Plan, log: Log) -> Callable[..., Any]:
    """``function`` compiled by ``plan``, beside and independent of any other compiled form of it."""
    if plan.graph == "eager":
        return function
    return torch.compile(isolated(function), backend=Backend(plan, log))
