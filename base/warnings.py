"""Warn of what the user should act on; everything else is logged under ``loopwise``."""

from __future__ import annotations

import warnings


class LoopwiseWarning(UserWarning):
    """A warning that asks the user to change something: training goes on, but not as was asked for."""


def warn(text: str, stacklevel: int = 1) -> None:
    """Issue a ``LoopwiseWarning``.

    Args:
        text: what happened and what to do about it.
        stacklevel: 1 points at the caller of this function, 2 at its caller, and so on.
    """
    warnings.warn(text, LoopwiseWarning, stacklevel=stacklevel + 1)
