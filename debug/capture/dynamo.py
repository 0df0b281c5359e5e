"""Hooks inside the graphs of compiled models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from ..torch_internals import (
    caller_of_library_modules,
    drop_compiled_code,
    guard_on_hooks,
    run_eagerly_outside_graphs,
)
from .modules import Observer


@contextlib.contextmanager
def hooks_in_graphs(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let compiled models call the hooks of ``Observer``, and recompile if hooks are added or removed.

    By default Dynamo uses a graph for every instance of a class, with or without hooks, and does not notice if
    hooks come or go.  Inside the block graphs depend on the hooks.  Code of these models' classes that was
    compiled before is dropped, so that it is compiled again with the hooks, and so is that of compiled modules of
    ``torch.nn``, which share one function.  All other compiled code is kept.
    A compiled function that called the model inside its own graph before has no hooks there: call it after the ``Watch``
    is made.
    """
    models = list(models)
    for hook in (Observer.before, Observer.after):
        run_eagerly_outside_graphs(hook)
    with guard_on_hooks():
        functions = {type(module).forward for model in models for module in model.modules()}
        drop_compiled_code([*functions, caller_of_library_modules()])
        yield
