"""What policies that hold other policies have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from loopwise.errors import InputError

from .policy import Function, Policy

Decides = Policy | Callable[[torch.Tensor], torch.Tensor]


class Nested(Policy):
    """A policy made of ``parts``: what they need, hold and hear are its own.

    It has a share ``keep`` if one of its parts has one.
    """

    weights: tuple[float, ...] = (1.0,)
    """What each part counts for."""
    own: ClassVar[frozenset[str]] = frozenset()
    """What it needs beside what its parts need."""

    def __init__(self, *parts: Decides) -> None:
        self.parts = tuple(as_policy(part) for part in parts)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on the parts
        """Fields of ``Pool`` that must be there: the parts' and ``own``."""
        return self.own.union(*(part.needs for part in self.parts))

    @property
    def keep(self) -> float:
        """The mean share of the parts that have one; setting it sets it in each of them."""
        sharing = self._sharing()
        total = sum(weight for weight, _ in sharing)
        return sum(weight / total * float(part.keep) for weight, part in sharing)

    @keep.setter
    def keep(self, keep: float) -> None:
        for _, part in self._sharing():
            part.keep = keep

    def _sharing(self) -> list[tuple[float, Any]]:
        """Weights and parts that have a share ``keep``."""
        pairs = zip(self.weights, self.parts, strict=True)
        sharing = [(weight, part) for weight, part in pairs if hasattr(part, "keep")]
        if not sharing:
            raise AttributeError(f"no part of {self!r} has a share keep")  # hasattr is False, as it should be
        return sharing

    def tally(self) -> dict[str, tuple[int, float]]:
        parts = [part.tally() for part in self.parts]
        return super().tally() | {name: decided for part in parts for name, decided in part.items()}

    def tell(self) -> torch.Tensor:
        """The longest of the parts' past losses: all parts have seen the same pools."""
        return max((part.tell() for part in self.parts), key=len)

    def hear(self, others: torch.Tensor) -> None:
        for part in self.parts:
            part.hear(others)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def as_policy(policy: Decides) -> Policy:
    """``policy``, with a plain function from losses to keep probabilities wrapped."""
    if isinstance(policy, Policy):
        return policy
    if callable(policy) and not isinstance(policy, type):
        return Function(policy)
    raise InputError(
        f"{policy!r} instead of a policy",
        "a Policy, or a function from losses to keep probabilities",
        "the class of a policy instead of one of it, or a share instead of a policy",
        "pass a policy with its settings, for instance TopLoss(keep=0.5)",
    )
