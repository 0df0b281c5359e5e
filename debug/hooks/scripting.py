"""Scripting of watched modules: ``torch.jit.script`` compiles the source of each hook, so ours are off meanwhile."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..torch_internals import forward_hooks, script_function, set_script_function

GLOBAL_CHANGE = (
    "While a Watch is open, the function behind torch.jit.script is replaced in the whole process by one that takes "
    "the hooks of loopwise.debug off the module that it is called with; closing the Watch puts the original back."
)
"""Side effect outside of the Watch's own objects, for the documents."""

_users = 0
_original: Any = None


@contextlib.contextmanager
def hooks_off_while_scripting() -> Iterator[None]:
    """Take the hooks of this package off modules while ``torch.jit.script`` runs inside the context."""
    global _users, _original
    if not _users:
        _original = script_function()
        set_script_function(_scripting(_original))
    _users += 1
    try:
        yield
    finally:
        _users -= 1
        if not _users and getattr(script_function(), "__wrapped__", None) is _original:
            set_script_function(_original)


def _scripting(original: Any) -> Any:
    @functools.wraps(original)
    def script(obj: Any, *args: Any, _frames_up: int = 0, **kwargs: Any) -> Any:
        with _hooks_off(obj) if isinstance(obj, nn.Module) else contextlib.nullcontext():
            return original(obj, *args, _frames_up=_frames_up + 1, **kwargs)

    return script


@contextlib.contextmanager
def _hooks_off(model: nn.Module) -> Iterator[None]:
    before = [(hooks, list(hooks.items())) for m in model.modules() for hooks in forward_hooks(m)]
    try:
        for hooks, items in before:
            for key, hook in items:
                if type(getattr(hook, "__self__", None)).__module__.startswith("loopwise.debug."):
                    del hooks[key]
        yield
    finally:
        for hooks, items in before:
            hooks.clear()
            hooks.update(items)
