"""Single hooks on forward passes.

Dynamo traces these hooks into the graphs of compiled models, so they have to decide by
``torch.compiler.is_compiling()`` what they do there.  A subscriber of ``calls`` never runs inside a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


def on_call(module: nn.Module, function: Callable[[nn.Module, Any, Any], None]) -> RemovableHandle:
    """Call ``function(module, args, kwargs)`` before each forward pass of a module.

    Returns:
        Handle whose ``remove()`` takes the hook off.
    """
    return module.register_forward_pre_hook(function, with_kwargs=True)


def on_return(module: nn.Module, function: Callable[[nn.Module, Any, Any], None]) -> RemovableHandle:
    """Call ``function(module, args, output)`` after each forward pass of a module.

    Returns:
        Handle whose ``remove()`` takes the hook off.
    """
    return module.register_forward_hook(function)
