"""Faults, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """Change to a healthy training, and the rules that should detect and name it."""

    inject: Callable[[Any], None]
    kind: str
    """Of the model: one of a ``Job``; ``gan`` for an ``Adversarial``, ``ddp`` for a ``Parallel``."""
    named: tuple[str, ...]
    """Rules that name the cause."""
    also: tuple[str, ...] = ()
    """Rules that show that something is wrong without saying what."""


FAULTS: dict[str, Fault] = {}
"""Faults by name.  The benchmarks of rules and preflight take thirds by order: a new one comes last, at the end of ``updates.py``."""
LOST = ("loss_not_decreasing",)


def fault(kind: str, *named: str, also: tuple[str, ...] = ()) -> Callable[[Callable[[Any], None]], Any]:
    """Register a function that injects a fault."""

    def add(inject: Callable[[Any], None]) -> Callable[[Any], None]:
        FAULTS[inject.__name__] = Fault(inject, kind, named, also)
        return inject

    return add
