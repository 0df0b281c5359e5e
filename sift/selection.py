"""Selection of samples by a policy: pool by pool, or a whole epoch ahead by remembered losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError

from .loss_history import LossHistory
from .policies import Policy, Pool
from .report import Report
from .scoring import Scorer, Scores
from .source import NO_INDEX

PLANNABLE = {"indices", "classes", "last_trained"}
"""Needs of a policy that can be met before the samples are loaded."""


@dataclass(slots=True)
class Selector:
    """Computes keep probabilities by a policy, and draws the samples to keep."""

    policy: Policy
    scorer: Scorer
    history: LossHistory
    draws: torch.Generator
    report: Report
    warn: Callable[[str, str], None]
    """Function of a topic and a text that warns once per topic."""
    remember: bool
    """True if scores are added to the history."""
    single_batches: bool = False
    """True if pools are scored batch by batch, because the device has too little memory for a whole pool."""
    planned: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Keep probabilities of a planned epoch, by sample index."""
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Importance weights of a planned epoch, by sample index."""

    def select(
        self,
        pool: Any,
        sizes: list[int],
        indices: torch.Tensor | None,
        classes: torch.Tensor | None,
        epoch: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score a pool; return the positions of its samples to keep and the importance weights of all its samples."""
        size = sum(sizes)
        scores = self._score(pool, sizes)
        finite = scores.losses.isfinite()
        self.count_not_finite(size - int(finite.sum()), size)
        last_trained = None
        if indices is not None and self.remember:
            self.history.add_losses(indices, scores.losses)
            self.history.grow(int(indices.max()) + 1)
            last_trained = self.history.last_trained[indices]

        def losses_of(model: nn.Module) -> torch.Tensor:
            return self.scorer.for_model(model)(pool, size).losses

        columns = (indices, classes, scores.gradients, scores.features, last_trained)
        samples = Pool(scores.losses, *columns, epoch, losses_of)
        probabilities = torch.ones(size)
        probabilities[finite] = self._decide(samples if bool(finite.all()) else samples.at(finite))
        return self._draw(probabilities), _weights(probabilities)

    def plan_epoch(self, epoch: int) -> None:
        """Compute the keep probabilities of an epoch by the remembered losses; unknown samples stay."""
        history = self.history
        history.flush()
        known = history.losses.isfinite().nonzero().flatten()
        self.planned = torch.ones(len(history))
        if len(known):
            columns = (history.losses, history.classes, history.last_trained)
            losses, classes, last_trained = (values[known] for values in columns)
            self.planned[known] = self._decide(
                Pool(losses, known, classes, last_trained=last_trained, epoch=epoch)
            )
        self.weights = _weights(self.planned)

    def draw_planned(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the positions of those ``indices`` that are kept in the planned epoch."""
        missing = int(indices.max()) + 1 - len(self.planned) if len(indices) else 0
        if missing > 0:
            self.planned = torch.cat([self.planned, torch.ones(missing)])
            self.weights = torch.cat([self.weights, torch.ones(missing)])
        return self._draw(self.planned[indices])

    def count_not_finite(self, count: int, size: int) -> None:
        """Count, and warn once, that ``count`` of ``size`` samples have a loss that is not finite."""
        if count:
            self.report.not_finite += count
            self.warn(
                "not finite",
                f"{count} of {size} samples have a loss that is NaN or infinite; they are kept and counted in "
                "report().not_finite. Likely causes: a diverging model, or corrupt samples.",
            )

    def _score(self, pool: Any, sizes: list[int]) -> Scores:
        """Score a pool at once; batch by batch from then on if the device has too little memory for that."""
        try:
            return self.scorer(pool, sum(sizes))
        except torch.OutOfMemoryError:
            if len(sizes) == 1 or self.scorer.sharded:  # the other ranks score the pool at once
                raise
        self.warn(
            "memory",
            f"too little memory to score {len(sizes)} batches at once; from now on they are scored one by one, as "
            "with pool=1",
        )
        self.single_batches = True
        parts = zip(batches.split(pool, sizes), sizes, strict=True)
        scores = [self.scorer(part, size) for part, size in parts]

        def joined(name: str) -> torch.Tensor | None:
            values = [getattr(part, name) for part in scores]
            return None if values[0] is None else torch.cat(values)

        return Scores(torch.cat([part.losses for part in scores]), joined("gradients"), joined("features"))

    def _decide(self, pool: Pool) -> torch.Tensor:
        for name in self.policy.needs:
            if getattr(pool, name) is None:
                raise _missing(self.policy, name)
        return self.policy.decide(pool)

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(probabilities), generator=self.draws)
        return (draws < probabilities).nonzero().flatten()


def class_labels(
    batch: Any, size: int, function: Callable[[Any], torch.Tensor] | None
) -> torch.Tensor | None:
    """Return class labels on the CPU, by ``function`` or from integer targets of (input, target) batches."""
    if function is not None:
        return function(batch).to("cpu", torch.int64)
    if isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
        targets = batch[1]
        if targets.shape == (size,) and not targets.dtype.is_floating_point:
            return targets.to("cpu", torch.int64)
    return None


def _weights(probabilities: torch.Tensor) -> torch.Tensor:
    """Return inverse keep probabilities, scaled so that they average 1 over the kept samples."""
    share = probabilities.mean() if len(probabilities) else torch.ones(())
    return torch.where(probabilities > 0, share / probabilities.clamp_min(1e-12), 0.0)


def _missing(policy: Policy, name: str) -> InputError:
    causes = {
        "indices": NO_INDEX,
        "last_trained": NO_INDEX,
        "classes": (
            "the batches are not (input, target) pairs with integer targets of shape (batch,)",
            "pass classes=function to the loader, from a batch to an int64 Tensor of shape (batch,)",
        ),
    }
    other = (
        "the loss is a function of (model, batch), which hides the model's output, or scores are remembered",
        "use a criterion for (input, target) batches, with score_every=1",
    )
    cause, fix = causes.get(name, other)
    return InputError(
        f"policy {policy!r} without {name} of the samples", f"{name} of every sample", cause, fix
    )
