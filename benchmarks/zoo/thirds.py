"""Thirds of faults by their order: to build on, to choose thresholds on, and to report, the last with drawn seeds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")
THIRDS = {"built": "built on", "set": "of the thresholds", "report": "reported"}
"""Name of a third -> what rows of a record call it."""


def of_third(third: str, faults: Mapping[str, T]) -> dict[str, T]:
    """Return the faults of a third by name: each third one."""
    return dict(list(faults.items())[list(THIRDS).index(third) :: len(THIRDS)])


def drawn_seed(third: str, seed: int) -> int:
    """Return the seed of a third: drawn now for the one that is reported."""
    return secrets.randbelow(10**6) if third == "report" else seed
