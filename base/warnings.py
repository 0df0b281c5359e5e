"""Warnings that ask the user to act; all other messages are logged under ``loopwise``."""

from __future__ import annotations

import warnings


class LoopwiseWarning(UserWarning):
    """A warning that asks the user to change something: training continues, but not as requested."""


def warn(text: str, stacklevel: int = 1) -> None:
    """Issue a ``LoopwiseWarning``.

    Args:
        text: the event and the remedy.
        stacklevel: 1 points at the caller of this function, 2 at its caller, and so on.
    """
    warnings.warn(text, LoopwiseWarning, stacklevel=stacklevel + 1)
