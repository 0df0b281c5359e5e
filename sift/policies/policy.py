"""Base class of the policies, the pool of samples that they decide about, and functions that several policies share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from loopwise import validate
from loopwise.errors import InputError

COLUMNS = ("losses", "indices", "classes", "gradients", "features", "last_trained")
"""Fields of ``Pool`` with one entry per sample."""


@dataclass(slots=True)
class Pool:
    """Samples that a policy decides about together, in the order in which the loader yielded them.

    A pool is a few batches if samples are scored as they come, or all samples with a remembered loss if an epoch is
    planned ahead.  Tensors are on the CPU, with one entry per sample.
    """

    losses: torch.Tensor
    """Finite losses, float32 of shape (n,)."""
    indices: torch.Tensor | None = None
    """Indices in the dataset, int64 of shape (n,), if they are known."""
    classes: torch.Tensor | None = None
    """Class labels, int64 of shape (n,), if they are known."""
    gradients: torch.Tensor | None = None
    """Norms of the loss's gradient by the model's output, float32 of shape (n,), if the policy needs them."""
    features: torch.Tensor | None = None
    """Outputs of the model, flattened, float32 of shape (n, d), if the policy needs them."""
    last_trained: torch.Tensor | None = None
    """Epoch in which each sample last reached the training step, int64 of shape (n,); -1: never."""
    epoch: int = 0
    """Number of the current epoch, from 0."""
    planned: bool = False
    """True if the pool holds all samples with a remembered loss, to plan an epoch."""
    losses_of: Callable[[nn.Module], torch.Tensor] | None = None
    """Function from another model to its losses of the same samples, float32 of shape (n,), if their batch is loaded."""

    def __len__(self) -> int:
        return len(self.losses)

    def at(self, positions: torch.Tensor) -> Pool:
        """Return the pool of the samples at ``positions``: indices, int64, or a mask, bool, of shape (n,)."""
        columns = {name: values[positions] for name in COLUMNS if (values := getattr(self, name)) is not None}
        losses_of = self.losses_of
        if losses_of is not None:
            columns["losses_of"] = lambda model: losses_of(model)[positions]
        return replace(self, **columns)


class Policy:
    """Base class of rules that decide which samples of a pool reach the training step.

    Subclasses implement ``probabilities``, list in ``needs`` what they use besides the losses, and list in ``state``
    the attributes that change during training.  A plain function from losses to keep probabilities is a policy too.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Fields of ``Pool`` that the policy uses, of ``indices``, ``classes``, ``gradients``, ``features``,
    ``last_trained`` and ``losses_of``; the first pool without one of them raises an error."""
    state: ClassVar[tuple[str, ...]] = ()
    """Attributes that ``state_dict`` saves."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Attributes that the repr shows, by which ``load_state_dict`` recognises the policy."""
    reaches_all: bool = True
    """False if some samples may have the keep probability 0; then no importance weights can make the gradient unbiased."""
    decided: tuple[int, float] = (0, 0.0)
    """Number of samples that the policy decided about, and the expected number of dropped samples among them."""

    def probabilities(self, pool: Pool) -> torch.Tensor:
        """Return keep probabilities in [0, 1], float32 of shape (n,)."""
        raise NotImplementedError

    def decide(self, pool: Pool) -> torch.Tensor:
        """Return ``probabilities`` after validating and counting them."""
        probabilities = _validated(self, self.probabilities(pool), pool).float()
        samples, dropped = self.decided
        kept = float(probabilities.sum(dtype=torch.float64))
        self.decided = samples + len(pool), dropped + len(pool) - kept
        return probabilities

    def tally(self) -> dict[str, tuple[int, float]]:
        """Return ``decided`` of this policy and of each policy inside it, by their repr."""
        return {repr(self): self.decided}

    def losses_to_share(self) -> torch.Tensor:
        """Return past losses that the policies of the other ranks use, float32; by default none."""
        return torch.empty(0)

    def receive_losses(self, losses: torch.Tensor) -> None:
        """Take the past losses of all other ranks, at the start of an epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes named in ``state``, for a checkpoint."""
        own: dict[str, Any] = {"policy": repr(self), "decided": self.decided}
        for name in self.state:
            value = getattr(self, name)
            own[name] = value.state_dict() if hasattr(value, "state_dict") else value
        return own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the attributes; raise an ``InputError`` if the state is that of another policy."""
        if state.get("policy") != repr(self):
            raise InputError(
                f"the state of policy {state.get('policy')}",
                f"the state of {self!r}",
                "the run was saved with another policy or other settings of it",
                "make the loader with the policy of the saved run, or start without its state",
            )
        for name in ("decided", *self.state):
            value = getattr(self, name)
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])

    def __repr__(self) -> str:
        shown = self._shown_parts()
        for name in self.settings:
            value = getattr(self, name)
            shown.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _shown_parts(self) -> list[str]:
        return []


class Function(Policy):
    """Policy made of a plain function from losses to keep probabilities."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function: Callable[[torch.Tensor], torch.Tensor] = validate.function(
            "function", function, "a function from losses to keep probabilities", "Function(torch.ones_like)"
        )

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return self.function(pool.losses)

    def __repr__(self) -> str:
        return f"Function({getattr(self.function, '__qualname__', type(self.function).__name__)})"


def _validated(policy: Policy, probabilities: Any, pool: Pool) -> torch.Tensor:
    """Return the probabilities if each sample of the pool has one, in [0, 1]."""
    tensor = isinstance(probabilities, torch.Tensor)
    fits = tensor and probabilities.shape == pool.losses.shape
    if fits and bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        return probabilities  # type: ignore[no-any-return]
    seen = f"shape {tuple(probabilities.shape)}" if tensor else type(probabilities).__name__
    if fits:
        seen = f"values from {float(probabilities.min())} to {float(probabilities.max())}"
    raise InputError(
        f"keep probabilities of {seen} from policy {policy!r}",
        f"a Tensor of shape ({len(pool)},) with values in [0, 1]",
        "the policy returns scores, indices, NaN or a mask of another length",
        "return one keep probability per loss",
    )


def check_keep(keep: float) -> float:
    """Return ``keep`` as a float in (0, 1]."""
    return validate.fraction("keep", keep, "the share of samples to train on", 0.5, one=True)


def check_floor(floor: float) -> float:
    """Return ``floor`` as a float in [0, 1)."""
    return validate.fraction("floor", floor, "the least keep probability", 0.1, zero=True)


def take(keep: float, samples: int, carried: float) -> tuple[int, float]:
    """Return the number of samples to keep, and the fraction of a sample that is carried to the next pool."""
    carried += keep * samples
    count = min(int(carried + 1e-6), samples)
    return count, carried - count


def top(keep: float, scores: torch.Tensor, carried: float) -> tuple[torch.Tensor, float]:
    """Return probability 1 for the share ``keep`` of the highest scores and 0 for the rest, and the carried fraction."""
    count, carried = take(keep, len(scores), carried)
    probabilities = torch.zeros(len(scores))
    probabilities[scores.topk(count).indices] = 1.0
    return probabilities, carried
