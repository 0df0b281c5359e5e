"""Base class of the policies that hold other policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from loopwise.errors import InputError

from .policy import Function, Policy

PolicyLike = Policy | Callable[[torch.Tensor], torch.Tensor]


class Nested(Policy):
    """Policy made of ``parts``; it needs, saves and receives the data of all its parts.

    The policy has a share ``keep`` if one of its parts has one.
    """

    weights: tuple[float, ...] = (1.0,)
    """Weight of each part."""
    own: ClassVar[frozenset[str]] = frozenset()
    """Fields of ``Pool`` that the policy needs and its parts do not."""

    def __init__(self, *parts: PolicyLike) -> None:
        self.parts = tuple(as_policy(part) for part in parts)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on the parts
        """Fields of ``Pool`` that ``own`` or a part lists."""
        return self.own.union(*(part.needs for part in self.parts))

    @property
    def reaches_all(self) -> bool:  # type: ignore[override]
        """True if one of the parts reaches every sample."""
        return any(part.reaches_all for part in self.parts)

    @property
    def keep(self) -> float:
        """Weighted mean of the shares of the parts that have a share; an assignment sets the share of each of them."""
        sharing = self._sharing()
        total = sum(weight for weight, _ in sharing)
        return sum(weight / total * float(part.keep) for weight, part in sharing)

    @keep.setter
    def keep(self, keep: float) -> None:
        for _, part in self._sharing():
            part.keep = keep

    def _sharing(self) -> list[tuple[float, Any]]:
        """Return weights and parts of the parts that have a share ``keep``."""
        pairs = zip(self.weights, self.parts, strict=True)
        sharing = [(weight, part) for weight, part in pairs if hasattr(part, "keep")]
        if not sharing:
            raise AttributeError(f"no part of {self!r} has a share keep")  # so that hasattr is False
        return sharing

    def tally(self) -> dict[str, tuple[int, float]]:
        tallies = [part.tally() for part in self.parts]
        return super().tally() | {name: decided for tally in tallies for name, decided in tally.items()}

    def losses_to_share(self) -> torch.Tensor:
        """Return the longest history of the parts: all parts have seen the same pools."""
        return max((part.losses_to_share() for part in self.parts), key=len)

    def receive_losses(self, losses: torch.Tensor) -> None:
        for part in self.parts:
            part.receive_losses(losses)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def as_policy(policy: PolicyLike) -> Policy:
    """Return ``policy``, or a policy that calls it if it is a plain function from losses to keep probabilities.

    Raises:
        InputError: ``policy`` is neither.
    """
    if isinstance(policy, Policy):
        return policy
    if callable(policy) and not isinstance(policy, type):
        return Function(policy)
    raise InputError(
        f"{policy!r} instead of a policy",
        "a Policy, or a function from losses to keep probabilities",
        "the class of a policy instead of an instance, or a share instead of a policy",
        "pass a policy with its settings, for instance TopLoss(keep=0.5)",
    )
