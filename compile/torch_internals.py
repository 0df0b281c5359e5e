"""Private functions of torch that compile uses, each behind a function with a plain name.

Nothing else in compile touches private names of torch.  The functions import heavy modules only when they are called:
importing this file costs nothing.  ``READ_FOR`` names the versions of torch whose source they were compared with;
``tests/compile/test_torch_internals.py`` fails for a newer torch until somebody has compared the functions with its
source and raised ``READ_FOR``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from .cpu_libraries.torch_internals import libraries_before_headers

READ_FOR = ((2, 11), (2, 15))
"""Oldest and newest version of torch whose source these functions were written for."""

SMALLEST_BUDGET = 1e-6
"""Activation budget that saves only what must be saved.  A budget of exactly 0 takes another way through torch's
partitioner, which would run the loss head twice."""

DYNAMO_MARKS = ("_dynamo_static_input_type", "__dynamo_disable")
"""Attributes by which Dynamo marks buffers and parameters that it captures, and functions that it does not, as ``checkpoint``."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class GraphBreak(NamedTuple):
    """Reason why Dynamo ended a graph."""

    stack: Sequence[Any]
    """``traceback.FrameSummary`` of each frame of the user's code, the innermost last."""
    reason: str
    """Dynamo's text: a line about the cause, then hints."""


# -- Dynamo ------------------------------------------------------------------------------------------


def graph_breaks() -> list[GraphBreak]:
    """Return the graph breaks of this process so far; none if Dynamo was not used yet."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    reasons = dynamo.graph_break_reasons if dynamo else []
    return [GraphBreak(reason.user_stack, reason.reason) for reason in reasons]


def failed_guards() -> list[str]:
    """Return the guards whose failure made Dynamo compile again; none if Dynamo was not used yet."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    failures = dynamo.guard_failures.values() if dynamo else ()
    return [str(reason) for reasons in failures for reason in reasons]


def once_functions() -> tuple[Callable[..., Any], ...]:
    """Return the methods that libraries have added to loggers and that log a message only once in a process.

    Hugging Face's ``warning_once`` and ``info_once`` are such methods.
    """
    return tuple(value for name, value in vars(logging.Logger).items() if name.endswith("_once"))


@contextlib.contextmanager
def calls_left_out(functions: Iterable[Callable[..., Any]]) -> Iterator[None]:
    """Let Dynamo leave out calls of ``functions``, which return None, in the graphs that it captures inside the context."""
    import torch._dynamo.config as config

    ignored: set[Callable[..., Any]] = getattr(config, "ignore_logging_functions", set())
    added = [function for function in functions if function not in ignored]
    ignored.update(added)
    try:
        yield
    finally:
        ignored.difference_update(added)


@contextlib.contextmanager
def numpy_draws_by_numpy() -> Iterator[None]:
    """Let Dynamo leave random draws of NumPy to NumPy; otherwise it captures them as draws of torch, which are others."""
    import torch._dynamo.config as config

    before = getattr(config, "use_numpy_random_stream", None)
    if before is not False:  # on already, or another version of torch
        yield
        return
    config.use_numpy_random_stream = True
    try:
        yield
    finally:
        config.use_numpy_random_stream = before


class CapturedAsEager:
    """Context in which Dynamo captures functions so that they do what they do in eager mode.

    Dynamo's settings differ only while it captures in this thread: changing them takes as long as a small layer, and
    code of the user's that is compiled meanwhile keeps its own.

    Args:
        left_out: functions whose calls are left out of the graphs.
    """

    def __init__(self, left_out: Iterable[Callable[..., Any]]) -> None:
        self._left_out, self._settings = left_out, contextlib.ExitStack()
        self._thread = threading.get_ident()
        self._handler = sys.modules["torch._dynamo.callback"].callback_handler

    def __enter__(self) -> None:
        self._handler.register_start_callback(self._begin)
        self._handler.register_end_callback(self._end)

    def __exit__(self, *error: object) -> None:
        self._settings.close()
        with contextlib.suppress(ValueError):  # torch._dynamo.reset() inside of the context removes both
            self._handler.remove_start_callback(self._begin)
            self._handler.remove_end_callback(self._end)

    def _begin(self, *arguments: Any) -> None:
        if threading.get_ident() == self._thread:
            for context in (calls_left_out(self._left_out), counters_as_variables(), numpy_draws_by_numpy()):
                self._settings.enter_context(context)

    def _end(self, *arguments: Any) -> None:
        if threading.get_ident() == self._thread:
            self._settings.close()


@contextlib.contextmanager
def counters_as_variables() -> Iterator[None]:
    """Let Dynamo capture whole numbers in attributes of modules as variables once they have changed.

    Otherwise a counter in a module's forward pass makes Dynamo compile anew at each call.
    """
    import torch._dynamo.config as config

    before = getattr(config, "allow_unspec_int_on_nn_module", None)
    if before is not False:  # on already, or another version of torch
        yield
        return
    config.allow_unspec_int_on_nn_module = True
    try:
        yield
    finally:
        config.allow_unspec_int_on_nn_module = before


def is_compiled_function(function: Any) -> bool:
    """Return whether ``torch.compile`` or ``optimize`` made the function; ``torch.compiler.disable`` marks it as well."""
    made = hasattr(function, "_torchdynamo_orig_callable") and not hasattr(function, "_torchdynamo_disable")
    return made or hasattr(function, "loopwise_plan")


def passed_by_dynamo(error: Exception) -> Exception:
    """Return an error of the same class and text that Dynamo passes on from a backend instead of wrapping it."""
    from torch._dynamo.exc import ShortenTraceback

    kind = type(error)
    # Dynamo appends advice about itself to the first argument
    own = {"args": property(lambda self: error.args, lambda self, _: None), "first_useful_frame": None}
    made: Any = type(kind.__name__, (kind, ShortenTraceback), {"__module__": kind.__module__} | own)
    return cast("Exception", made.__new__(made))


def limits_reached() -> int:
    """Return how often Dynamo gave a function up for good after too many recompilations, which it does without an error."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    causes = dynamo.counters["unimplemented"] if dynamo else {}
    return sum(
        count for cause, count in causes.items() if cause.startswith("Dynamo recompile limit exceeded")
    )


def compiles_for_buckets() -> bool:
    """Return whether DDP's optimizer is compiling, which makes a graph for each bucket of gradients."""
    from torch._guards import TracingContext

    return bool(getattr(TracingContext.try_get(), "fakify_first_call", False))


def fake_mode_of(tensor: Tensor) -> Any:
    """Return the mode that made a fake tensor; None for a real tensor."""
    from torch._subclasses.fake_tensor import FakeTensor

    return tensor.fake_mode if isinstance(tensor, FakeTensor) else None


def tracing_fake_mode(inputs: Sequence[Any]) -> Any:
    """Return the mode of the fake tensors that a backend gets as inputs; the values in the graph have another mode."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(inputs))


def fresh_tracing(mode: Any) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which a graph is compiled apart from the graph that it was cut out of."""
    from torch._guards import TracingContext, tracing

    return tracing(TracingContext(mode))


# -- Inductor ----------------------------------------------------------------------------------------


def compile_by_inductor(
    gm: fx.GraphModule, inputs: Sequence[Any], settings: dict[str, Any], budget: float
) -> Callable[..., Any]:
    """Compile a captured graph by Inductor, backward graph included.

    Args:
        gm: Dynamo's captured graph.
        inputs: its example inputs.
        settings: settings of Inductor that differ from its defaults.
        budget: share of the activations that may be saved for the backward pass, in [0, 1].
    """
    import torch._functorch.config as functorch
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(*arguments: Any, **options: Any) -> Any:  # also called later, for the backward graph
        with libraries_before_headers():
            return compile_fx_inner(*arguments, **options)

    # the partitioner reads the budget while the forward graph is compiled; it is none of Inductor's settings
    with functorch.patch(activation_memory_budget=max(budget, SMALLEST_BUDGET)), libraries_before_headers():
        return cast("Callable[..., Any]", compile_fx(gm, list(inputs), inner, config_patches=settings))


def known_vector_instructions() -> dict[str, Any]:
    """Return the setting of Inductor that skips its test of vector instructions, if torch's own kernels use them.

    The test compiles and loads a program for each of three sets of instructions, 2-4 s each.
    """
    from torch._inductor import config

    if getattr(config.cpp, "vec_isa_ok", True) is not None:  # the user's choice, or another version of torch
        return {}
    best = "AVX512" if torch.cpu.get_capabilities().get("avx512_f", False) else "AVX2"
    return {"cpp.vec_isa_ok": True} if torch.backends.cpu.get_cpu_capability() == best else {}


# -- operators and dispatch --------------------------------------------------------------------------


def linear_functions() -> tuple[Any, ...]:
    """Return the objects that a captured graph may call for ``F.linear``."""
    return nn.functional.linear, torch._C._nn.linear


def autocast_calls() -> tuple[Any, Any]:
    """Return the functions that enter and leave autocast in a captured graph."""
    from torch.amp import autocast_mode

    return autocast_mode._enter_autocast, autocast_mode._exit_autocast


def argument_position(operator: Any, name: str) -> int:
    """Return the position of an argument of an operator (``torch.ops.<library>.<name>.default``)."""
    return [argument.name for argument in operator._schema.arguments].index(name)


def argument_names(operator: Any) -> list[str]:
    """Return the names of an operator's arguments (``torch.ops.<library>.<name>.default``)."""
    return [argument.name for argument in operator._schema.arguments]


def dispatches_plainly() -> bool:
    """Return whether no dispatch mode is on: nothing traces or intercepts operations on tensors."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    return _get_current_dispatch_mode() is None


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(tree)


# -- hooks and CUDA ----------------------------------------------------------------------------------


def has_hooks(modules: Iterable[nn.Module], parameters: Iterable[Tensor], optimizer: Optimizer) -> bool:
    """Return whether a hook is on one of the modules, parameters, the optimizer, or on all of these."""
    from torch.nn.modules import module as all_modules
    from torch.optim import optimizer as all_optimizers

    if any(vars(all_modules).get(f"_global{name}") for name in _HOOKS):
        return True
    for name in ("pre_hooks", "post_hooks"):
        if vars(all_optimizers).get(f"_global_optimizer_{name}"):
            return True
        if getattr(optimizer, f"_optimizer_step_{name}", None):
            return True
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return True
    return any(vars(module)[name] for module in modules for name in _HOOKS)


def hooks_made() -> int:
    """Return the number of hooks that were registered in this process so far, on any module, tensor or optimizer."""
    return RemovableHandle.next_id


def hook_keys(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """Return the identities of the hooks on forward and backward passes of modules, and of all modules."""
    from torch.nn.modules import module as all_modules

    hooks = [vars(all_modules).get(f"_global{name}") or () for name in _HOOKS]
    hooks += [vars(module)[name] for module in modules for name in _HOOKS]
    return tuple((n, keys) for n, keys in enumerate(map(tuple, hooks)) if keys)


def hooks_of_all_modules() -> list[Any]:
    """Return the functions that torch calls in the forward and backward passes of all modules."""
    from torch.nn.modules import module as all_modules

    return [hook for name in _HOOKS for hook in (vars(all_modules).get(f"_global{name}") or {}).values()]


def tensor_hooks(tensor: Tensor) -> list[Any]:
    """Return the functions that autograd calls with the gradient of a tensor, or after it was accumulated."""
    return [*(tensor._backward_hooks or {}).values(), *(tensor._post_accumulate_grad_hooks or {}).values()]


def with_hooks_of(tensor: Tensor, twin: Tensor) -> Tensor:
    """Let autograd call the hooks of ``tensor`` for its twin as well; return the twin."""
    twin._backward_hooks = tensor._backward_hooks
    twin._post_accumulate_grad_hooks = tensor._post_accumulate_grad_hooks
    return twin


def members(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the module's own dicts of parameters, buffers and submodules."""
    return module._parameters, module._buffers, module._modules


def stop_allocating_to(pool: Any, device: int) -> None:
    """End the allocation to a CUDA graph's memory pool, which older versions of torch leave on after a failure."""
    private: Any = torch._C
    with contextlib.suppress(RuntimeError):  # newer versions have ended it
        private._cuda_endAllocateToPool(device, pool)


# -- optimizers and memory ---------------------------------------------------------------------------


def multiply(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply tensors in place by a number, in few kernels."""
    dense = [tensor for tensor in tensors if tensor.layout is torch.strided]
    if dense:
        torch._foreach_mul_(dense, factor)
    for tensor in tensors:
        if tensor.layout is not torch.strided:
            tensor.mul_(factor)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors into others, in few kernels."""
    torch._foreach_copy_(targets, sources)


def allocations(run: Callable[[], Any]) -> list[int]:
    """Return the changes of the CPU memory that tensors hold while ``run`` runs, in bytes, in their order.

    The older profiler is the only timeline of a CPU's allocations that writes nothing to the terminal.
    """
    import torch.autograd.profiler_legacy

    private: Any = torch.autograd
    if private._profiler_enabled():  # the user's own: a thread has one profiler
        with ThreadPoolExecutor(1) as other:
            return other.submit(allocations, run).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older profiler is deprecated
        config = private.profiler_legacy.profile(profile_memory=True).config()
    private._enable_profiler_legacy(config)
    try:
        run()
    finally:
        records = private._disable_profiler_legacy()
    events = (event for thread in records for event in thread)
    return [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]
