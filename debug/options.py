"""What ``Watch`` refuses at once, with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError

from .capture.collection import Collection
from .capture.writer import POLICIES
from .model.vocabulary import MODES, check_save
from .rules import SEVERITIES


def collections(given: list[Collection]) -> list[Collection]:
    """Collections with names of their own."""
    names = [collection.name for collection in given]
    if len(set(names)) < len(names):
        raise InputError(
            f"collections named {', '.join(names)}",
            "a name of its own for each",
            "a built-in one was listed beside one of the same name",
            "keep one of them, or give it another name",
        )
    return given


def options(save: Any, policy: str, max_overhead: float | None, together: bool) -> None:
    """``together``: all ranks have to save the same steps."""
    check_save(save)
    if policy not in POLICIES:
        raise InputError(
            f"policy={policy!r}", f"one of {', '.join(POLICIES)}", "a typing error", "policy='block'"
        )
    if max_overhead is None:
        return
    if isinstance(max_overhead, bool) or not 0 < max_overhead < 1 or math.isnan(max_overhead):
        raise InputError(
            f"max_overhead={max_overhead!r}",
            "a share of the training time between 0 and 1, such as 0.01",
            "a percentage, or a number of seconds",
            "max_overhead=0.01 for one per cent",
        )
    if together:
        raise InputError(
            f"max_overhead={max_overhead!r} for a model in shards on several ranks",
            "no max_overhead there",
            "each rank would leave out other steps, and shards would not fit together",
            "leave max_overhead out, and save fewer steps",
        )


def models(given: Mapping[str, nn.Module]) -> None:
    """Modules that hooks can be at."""
    if any(
        isinstance(module, torch.jit.ScriptModule) for model in given.values() for module in model.modules()
    ):
        raise InputError(
            "a model of TorchScript",
            "a module of Python, compiled or not",
            "torch.jit.script or torch.jit.trace, whose modules take no hooks",
            "watch the module that it was made of, or use torch.compile",
        )


def severity(given: str) -> None:
    if given not in SEVERITIES:
        raise InputError(
            f"stop_on={given!r}",
            f"one of {', '.join(SEVERITIES)}, or None",
            "a typing error",
            "stop_on='critical'",
        )


def mode(given: str) -> None:
    if given not in MODES:
        raise InputError(
            f"mode {given!r}", f"one of {', '.join(MODES)}", "a typing error", "with watch.mode('eval'): ..."
        )
