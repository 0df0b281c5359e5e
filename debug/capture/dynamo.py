"""Hooks that Dynamo sees: in graphs compiled from now on, and only where the hooks are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch._dynamo
from torch import nn
from torch._C._dynamo.eval_frame import set_code_exec_strategy
from torch._dynamo import eval_frame, types

from .modules import Tap

EAGER = types.FrameExecStrategy(  # type: ignore[attr-defined]
    types.FrameAction.SKIP,  # type: ignore[attr-defined]
    types.FrameAction.SKIP,  # type: ignore[attr-defined]
)
"""Of hooks outside of a graph, as those of a compiled model itself are: they run as they are, and
nothing that they call makes a graph of its own."""


@contextlib.contextmanager
def seen(models: Iterable[nn.Module]) -> Iterator[None]:
    """Have graphs depend on which hooks there are.

    By default Dynamo takes a graph for every instance of a class, with hooks or without them, and
    does not look again whether hooks came or went.  Graphs of these models that were compiled before are
    dropped, so that they are compiled again with the hooks in them.
    """
    config = torch._dynamo.config
    before = config.skip_nnmodule_hook_guards
    config.skip_nnmodule_hook_guards = False
    if any(_compiled(module) for model in models for module in model.modules()):
        torch._dynamo.reset()
    for hook in (Tap.before, Tap.after):
        set_code_exec_strategy(hook.__code__, EAGER)
    try:
        yield
    finally:
        config.skip_nnmodule_hook_guards = before


def _compiled(module: nn.Module) -> bool:
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and bool(eval_frame._debug_get_cache_entry_list(code))
