"""Adapter to the private names of torch that debug needs; no other module of debug may use them.

Modules that are slow to import are imported inside the functions that need them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

BATCH_NORMS = (_BatchNorm,)
"""Modules that normalize by statistics of the batch, SyncBatchNorm among them."""
RUNNING_NORMS = (_NormBase,)
"""Modules that may keep running statistics: BatchNorm and InstanceNorm."""
CONVOLUTIONS = (_ConvNd,)
"""Convolutions, also transposed ones."""
DROPOUTS = (_DropoutNd,)
"""Dropout of any number of dimensions."""
LOSSES = (_Loss,)
"""Modules that compute a loss."""

WRAPPER_NAMES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""Parts of names that torch.compile and torch.distributed add."""

_scripting: Any = importlib.import_module("torch.jit._script")


def in_backward_or_transform() -> bool:
    """Return whether autograd runs a backward pass on this thread, or a transform runs the code on tensors without numbers.

    Transforms are those of torch.func (vmap, grad), and torch.jit.trace.
    """
    return (
        torch._C._current_graph_task_id() >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    )


def copy_all(
    targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor], non_blocking: bool = False
) -> None:
    """Copy each source into its target, with few kernels for all."""
    torch._foreach_copy_(list(targets), list(sources), non_blocking=non_blocking)


def zero_all(tensors: Sequence[torch.Tensor]) -> None:
    """Set all tensors to zero, with few kernels for all."""
    torch._foreach_zero_(list(tensors))


def norms(tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Return the Euclidean norm of each tensor, computed in ``dtype`` (default: its own), with few kernels for all."""
    return list(torch._foreach_norm(list(tensors), 2, dtype))


def differences(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return each tensor of ``ones`` minus the one of ``others`` at its place, with few kernels for all."""
    return list(torch._foreach_sub(list(ones), list(others)))


def result_shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of the first result of a node of the autograd graph; ``None`` if the node does not tell."""
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else None


def expanded_from(node: Any) -> tuple[int, ...] | None:
    """Return the shape of the tensor that an ``expand`` in the autograd graph got; ``None`` if the node does not tell."""
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    return None if sizes is None else tuple(int(size) for size in sizes)


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that tensors with the same storage share while that storage lives."""
    key: int = tensor.untyped_storage()._cdata
    return key


def sparse_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a sparse COO tensor, which may be uncoalesced."""
    return tensor._values()


def is_torch_profiler_on() -> bool:
    """Return whether torch's profiler records already; a second one would raise."""
    return bool(torch._C._autograd._profiler_enabled())


def outside_inference() -> contextlib.AbstractContextManager[Any]:
    """Return a context outside of inference mode.

    It does nothing if inference mode is off: the context of torch sets autograd to its old mode whenever it is freed,
    which is late if an interrupt skipped its end.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext()


set_grad_mode: Callable[[bool], None] = torch._C._set_grad_enabled
"""Switch autograd on or off on this thread, by one call that an interrupt cannot split."""


def forward_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the module's own dictionaries of hooks before and after its forward pass."""
    return module._forward_pre_hooks, module._forward_hooks


def script_function() -> Any:
    """Return the function that ``torch.jit.script`` calls, under whatever name the user imported it."""
    return _scripting._script_impl


def set_script_function(function: Any) -> None:
    """Replace the function that ``script_function`` returns."""
    _scripting._script_impl = function


def module_members(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the module's own dictionaries of submodules and of parameters."""
    own = module.__dict__  # attributes of a module are searched in three places
    return own["_modules"], own["_parameters"]


def local_shape_and_offset(shape: torch.Size, mesh: Any, placements: Any) -> tuple[Any, Any]:
    """Return the shape of this rank's shard of a DTensor, and the index of its first element in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    return compute_local_shape_and_global_offset(shape, mesh, placements)


def loader_iterator() -> Any:
    """Return the base class of the iterators of ``DataLoader``."""
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    return _BaseDataLoaderIter


def loader_workers(iterator: Any) -> int:
    """Return the number of worker processes of a ``DataLoader``'s iterator."""
    return int(iterator._num_workers)


@contextlib.contextmanager
def guard_on_hooks() -> Iterator[None]:
    """Let graphs that Dynamo compiles inside depend on the hooks of their modules."""
    import torch._dynamo

    config = torch._dynamo.config
    before = config.skip_nnmodule_hook_guards
    config.skip_nnmodule_hook_guards = False
    try:
        yield
    finally:
        config.skip_nnmodule_hook_guards = before


def has_compiled() -> bool:
    """Return whether Dynamo has compiled something in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters.get("frames"))


def run_eagerly_outside_graphs(function: Callable[..., Any]) -> None:
    """Let Dynamo run a function as it is if it is called outside a graph, and compile nothing that it calls."""
    from torch._C._dynamo.eval_frame import set_code_exec_strategy
    from torch._dynamo import types

    skip = types.FrameAction.SKIP  # type: ignore[attr-defined]
    strategy = types.FrameExecStrategy(skip, skip)  # type: ignore[attr-defined]
    set_code_exec_strategy(function.__code__, strategy)


def caller_of_library_modules() -> Callable[..., Any]:
    """Return a function with the code through which ``torch.compile`` calls modules of ``torch.nn``, such as Sequential."""
    from torch._dynamo.external_utils import wrap_inline

    return wrap_inline(lambda: None)


def drop_compiled_code(functions: Iterable[Callable[..., Any]]) -> None:
    """Drop the code that Dynamo compiled for functions, and for what follows a graph break in them."""
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
    from torch._dynamo.resume_execution import ContinueExecutionCache

    codes = [function.__code__ for function in functions if hasattr(function, "__code__")]
    for code in codes:
        if code in ContinueExecutionCache.cache:
            codes += ContinueExecutionCache.cache[code].values()
        if _debug_get_cache_entry_list(code):
            reset_code(code)


def has_scheduler(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a learning-rate scheduler was made for an optimizer."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def mark_scheduled(optimizer: Any) -> None:
    """Note the calls of an optimizer's ``step`` in the way of schedulers, which else warn of a wrong order."""
    call = optimizer.step

    @functools.wraps(call)
    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True
        return call(*args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step


def scheduler_parts(scheduler: Any) -> tuple[list[Any], list[int]]:
    """Return the schedulers that a scheduler is made of, and the steps at which one follows the other, if they do."""
    return list(getattr(scheduler, "_schedulers", ())), [
        int(at) for at in getattr(scheduler, "_milestones", ())
    ]
