"""What a policy is, what it is told, and the check of the ``keep`` share that most of them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from loopwise.errors import InputError


@dataclass(slots=True)
class Pool:
    """Samples that a policy decides about together, in the order in which the loader gave them.

    A pool is a few batches where samples are scored as they come, or all samples with a remembered
    loss where an epoch is planned ahead.  Tensors are on the CPU, with one entry a sample.
    """

    losses: torch.Tensor
    """Finite losses, float32 of shape (n,)."""
    indices: torch.Tensor | None = None
    """Indices in the dataset, int64 of shape (n,), where they are known."""
    classes: torch.Tensor | None = None
    """Class labels, int64 of shape (n,), where they are known."""
    gradients: torch.Tensor | None = None
    """Norms of the loss's gradient by the model's output, float32 of shape (n,); when needed."""
    features: torch.Tensor | None = None
    """The model's outputs, flattened, float32 of shape (n, d); when needed."""
    last_trained: torch.Tensor | None = None
    """Epoch in which each sample last reached the training step, int64 of shape (n,), -1: never."""
    epoch: int = 0
    """The current epoch, from 0."""
    losses_of: Callable[[nn.Module], torch.Tensor] | None = None
    """Losses of the same samples under another model, float32 of shape (n,), where there is a batch."""

    def __len__(self) -> int:
        return len(self.losses)

    def at(self, where: torch.Tensor) -> Pool:
        """The samples at the positions or in the mask ``where``."""

        def pick(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[where]

        others = self.losses_of
        return Pool(
            self.losses[where],
            pick(self.indices),
            pick(self.classes),
            pick(self.gradients),
            pick(self.features),
            pick(self.last_trained),
            self.epoch,
            None if others is None else lambda model: others(model)[where],
        )


class Policy:
    """Decides which samples of a pool reach the training step.

    Subclasses implement ``probabilities``; what they draw on beside the losses they name in
    ``needs``, and attributes that change while training goes on they name in ``state``.  A plain
    function from losses to keep probabilities is a policy too.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of ``Pool`` that must be there, of ``indices``, ``classes``, ``gradients``, ``features``,
    ``last_trained`` and ``losses_of``; what cannot be had is an error at the first pool."""
    state: ClassVar[tuple[str, ...]] = ()
    """Attributes that ``state_dict`` holds."""
    decided: tuple[int, float] = (0, 0.0)
    """Samples that it decided about, and the expected number of them that it dropped."""

    def probabilities(self, pool: Pool) -> torch.Tensor:
        """Keep probabilities in [0, 1], float32 of shape (n,)."""
        raise NotImplementedError

    def decide(self, pool: Pool) -> torch.Tensor:
        """``probabilities``, checked and counted."""
        chances = checked(self, self.probabilities(pool), pool).float()
        samples, dropped = self.decided
        self.decided = samples + len(pool), dropped + len(pool) - float(chances.sum(dtype=torch.float64))
        return chances

    def tally(self) -> dict[str, tuple[int, float]]:
        """What it, and each policy that it is made of, ``decided``, by its repr."""
        return {repr(self): self.decided}

    def tell(self) -> torch.Tensor:
        """Past losses that the other ranks' policies want to know, float32; by default none."""
        return torch.empty(0)

    def hear(self, others: torch.Tensor) -> None:
        """Take the past losses of all other ranks, at the start of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        own = {"policy": repr(self), "decided": self.decided}
        return own | {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("policy") != repr(self):
            raise InputError(
                f"the state of policy {state.get('policy')}",
                f"the state of {self!r}",
                "the run was saved with another policy or other settings of it",
                "make the loader with the policy of the saved run, or start without its state",
            )
        for name in ("decided", *self.state):
            setattr(self, name, state[name])


class Function(Policy):
    """A plain function from losses to keep probabilities as a policy."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return self.function(pool.losses)

    def __repr__(self) -> str:
        return f"Function({getattr(self.function, '__qualname__', type(self.function).__name__)})"


def checked(policy: Policy, given: Any, pool: Pool) -> torch.Tensor:
    """What ``policy`` gave for ``pool``, when it is one keep probability a sample."""
    valid = isinstance(given, torch.Tensor) and given.shape == pool.losses.shape
    if valid and bool(((given >= 0) & (given <= 1)).all()):
        return given  # type: ignore[no-any-return]
    seen = f"shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
    if valid:
        seen = f"values from {float(given.min())} to {float(given.max())}"
    raise InputError(
        f"keep probabilities of {seen} from policy {policy!r}",
        f"a Tensor of shape ({len(pool)},) with values in [0, 1]",
        "the policy returns scores, indices, NaN or a mask of another length",
        "return one keep probability a loss",
    )


def check_keep(keep: float) -> float:
    """``keep`` as a float in (0, 1], or an error that says what it should be."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(
            f"keep={keep!r}",
            "the share of samples to train on, a number in (0, 1]",
            "a percentage instead of a fraction, or 0 for 'keep nothing'",
            "pass a fraction, for instance keep=0.5",
        )
    return float(keep)


def check_floor(floor: float) -> float:
    """``floor`` as a float in [0, 1), or an error that says what it should be."""
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < 1:
        raise InputError(
            f"floor={floor!r}",
            "the least keep probability, a number in [0, 1)",
            "a percentage instead of a fraction",
            "pass a fraction, for instance floor=0.1",
        )
    return float(floor)


def take(keep: float, samples: int, owed: float) -> tuple[int, float]:
    """How many of ``samples`` to keep, and the fraction of one that is carried to the next pool."""
    owed += keep * samples
    count = min(int(owed + 1e-6), samples)
    return count, owed - count


def top(keep: float, scores: torch.Tensor, owed: float) -> tuple[torch.Tensor, float]:
    """Probability 1 for the share ``keep`` of the highest scores, 0 for the rest; and what ``take`` carries."""
    count, owed = take(keep, len(scores), owed)
    probabilities = torch.zeros(len(scores))
    probabilities[scores.topk(count).indices] = 1.0
    return probabilities, owed
