"""From a policy to the samples that are kept: pool by pool, or a whole epoch ahead from what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError

from .loss_history import Memory
from .policies import Policy, Pool
from .report import Report
from .scoring import Scorer, Scores
from .source import HIDDEN

PLANNABLE = {"indices", "classes", "last_trained"}
"""What a policy may need and still decide before the samples are loaded."""


class Chooser:
    """Applies a policy and draws.

    Args:
        policy: the policy.
        scorer: makes the scores of a pool.
        memory: what is remembered by sample index.
        draws: the generator of the keep draws.
        report: counts losses that are not finite.
        tell: says something once.
        remembers: whether scores are remembered for later epochs.
    """

    def __init__(
        self,
        policy: Policy,
        scorer: Scorer,
        memory: Memory,
        draws: torch.Generator,
        report: Report,
        tell: Callable[[str, str], None],
        remembers: bool,
    ) -> None:
        self.policy, self.scorer, self.memory = policy, scorer, memory
        self.draws, self.report, self.tell = draws, report, tell
        self.remembers = remembers
        self.one_by_one = False
        self._ahead = torch.empty(0)
        self.weights = torch.empty(0)
        """Importance weights of a planned epoch, by sample index."""

    def score(self, pool: Any, sizes: list[int]) -> Scores:
        """Scores of a pool; batch by batch from then on when the device has no memory for it at once."""
        try:
            return self.scorer(pool, sum(sizes))
        except torch.OutOfMemoryError:
            if len(sizes) == 1 or self.scorer.sharded:  # the other ranks score the pool at once
                raise
        self.tell(
            "memory",
            f"no memory to score {len(sizes)} batches at once; from now on one by one, as with pool=1",
        )
        self.one_by_one = True
        parts = zip(batches.split(pool, sizes), sizes, strict=True)
        found = [self.scorer(part, size) for part, size in parts]

        def joined(name: str) -> torch.Tensor | None:
            values = [getattr(scores, name) for scores in found]
            return None if values[0] is None else torch.cat(values)

        return Scores(torch.cat([s.losses for s in found]), joined("gradients"), joined("features"))

    def pool(
        self,
        pool: Any,
        sizes: list[int],
        indices: torch.Tensor | None,
        classes: torch.Tensor | None,
        epoch: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of the samples of a pool to keep, and the importance weights of all of them."""
        size = sum(sizes)
        scores = self.score(pool, sizes)
        finite = scores.losses.isfinite()
        self.count_wild(size - int(finite.sum()), size)
        trained = None
        if indices is not None and self.remembers:
            self.memory.note_losses(indices, scores.losses)
            self.memory.grow(int(indices.max()) + 1)
            trained = self.memory.trained[indices]

        def losses_of(model: nn.Module) -> torch.Tensor:
            return self.scorer.of(model)(pool, size).losses

        told = Pool(
            scores.losses, indices, classes, scores.gradients, scores.features, trained, epoch, losses_of
        )
        chances = torch.ones(size)
        chances[finite] = self._chances(told if bool(finite.all()) else told.at(finite))
        kept = (torch.rand(size, generator=self.draws) < chances).nonzero().flatten()
        return kept, _weights(chances)

    def foresee(self, epoch: int) -> None:
        """Decide for an epoch ahead, by the remembered losses; unknown samples stay."""
        memory = self.memory
        memory.flush()
        known = memory.losses.isfinite().nonzero().flatten()
        self._ahead = torch.ones(len(memory))
        if len(known):
            losses, classes, trained = (v[known] for v in (memory.losses, memory.classes, memory.trained))
            self._ahead[known] = self._chances(
                Pool(losses, known, classes, last_trained=trained, epoch=epoch)
            )
        self.weights = _weights(self._ahead)

    def draw(self, indices: torch.Tensor) -> torch.Tensor:
        """Positions of those of ``indices`` that are kept in the epoch foreseen."""
        more = int(indices.max()) + 1 - len(self._ahead) if len(indices) else 0
        if more > 0:
            self._ahead = torch.cat([self._ahead, torch.ones(more)])
            self.weights = torch.cat([self.weights, torch.ones(more)])
        chances = self._ahead[indices]
        return (torch.rand(len(indices), generator=self.draws) < chances).nonzero().flatten()

    def foreseen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What was decided for the present epoch, by sample index: keep probabilities and weights."""
        return self._ahead, self.weights

    def recall(self, foreseen: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._ahead, self.weights = foreseen

    def _chances(self, pool: Pool) -> torch.Tensor:
        for name in self.policy.needs:
            if getattr(pool, name) is None:
                raise _lacking(self.policy, name)
        return self.policy.decide(pool)

    def count_wild(self, wild: int, size: int) -> None:
        """Count, and say once, that ``wild`` of ``size`` samples have a loss that is not finite."""
        if wild:
            self.report.not_finite += wild
            self.tell(
                "not finite",
                f"{wild} of {size} samples have a loss that is NaN or infinite; they are kept and counted in "
                "report().not_finite. Likely causes: a diverging model, or corrupt samples.",
            )


def _weights(chances: torch.Tensor) -> torch.Tensor:
    """Inverse keep probabilities, scaled so that they average 1 over the kept samples."""
    share = chances.mean() if len(chances) else torch.ones(())
    return torch.where(chances > 0, share / chances.clamp_min(1e-12), 0.0)


def _lacking(policy: Policy, name: str) -> InputError:
    causes = {
        "indices": HIDDEN,
        "last_trained": HIDDEN,
        "classes": (
            "the batches are not (input, target) pairs with integer targets of shape (batch,)",
            "pass classes=function to the loader, from a batch to an int64 Tensor of shape (batch,)",
        ),
    }
    cause, fix = causes.get(
        name,
        (
            "the loss is a function of (model, batch), which hides the model's output, or scores are remembered",
            "use a criterion for (input, target) batches, with score_every=1",
        ),
    )
    return InputError(
        f"policy {policy!r} without {name} of the samples", f"{name} of every sample", cause, fix
    )
