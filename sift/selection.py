"""Selection of samples by a policy: pool by pool, or a whole epoch ahead by remembered losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.warnings import warn

from .buffer import Samples
from .loss_history import LossHistory
from .policies import Policy, Pool
from .report import Report
from .scoring import Scorer, Scores
from .source import NO_INDEX

PLANNABLE = {"indices", "classes", "last_trained"}
"""Needs of a policy that can be met before the samples are loaded."""
NO_SCORES = (
    "the loss is a function of (model, batch), which hides the model's output, or scores are remembered",
    "use a criterion for (input, target) batches, with score_every=1",
)
MISSING = {
    "indices": NO_INDEX,
    "last_trained": NO_INDEX,
    "classes": (
        "the batches are not (input, target) pairs with integer targets of shape (batch,)",
        "pass classes=function to the loader, from a batch to an int64 Tensor of shape (batch,)",
    ),
}
"""Need of a policy -> cause and fix if a pool lacks it; ``NO_SCORES`` for other needs."""


@dataclass(slots=True)
class Selector:
    """Computes keep probabilities by a policy, and draws the samples to keep."""

    policy: Policy
    scorer: Scorer
    history: LossHistory
    draws: torch.Generator
    report: Report
    remember: bool
    """True if scores are added to the history."""
    classes: Callable[[Any], torch.Tensor] | None = None
    """Function from a batch to its class labels; default: integer targets of (input, target) batches."""
    warned: bool = False
    """True if there was a warning about losses that are not finite."""
    single_batches: bool = False
    """True if pools are scored batch by batch, because the device has too little memory for a whole pool."""
    planned: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Keep probabilities of a planned epoch, by sample index."""
    weights: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Importance weights of a planned epoch, by sample index."""

    def select(self, samples: Samples, sizes: list[int], epoch: int) -> torch.Tensor:
        """Score a pool of batches of ``sizes`` samples, set its importance weights, and return the positions to keep."""
        size, indices, classes = samples.size, samples.columns.get("index"), self._class_labels(samples)
        scores = self._score(samples.batch, sizes)
        finite = scores.losses.isfinite()
        self.count_not_finite(size - int(finite.sum()), size)
        last_trained = None
        if indices is not None and classes is not None:
            self.history.set(indices, classes=classes)
        if indices is not None and self.remember:
            self.history.add_losses(indices, scores.losses)
            self.history.grow(int(indices.max()) + 1)
            last_trained = self.history.last_trained[indices]

        def losses_of(model: nn.Module) -> torch.Tensor:
            return self.scorer.for_model(model)(samples.batch, size).losses

        columns = (indices, classes, scores.gradients, scores.features, last_trained)
        pool = Pool(scores.losses, *columns, epoch, losses_of)
        probabilities = torch.ones(size)
        probabilities[finite] = self._decide(pool if bool(finite.all()) else pool.at(finite))
        kept = self._draw(probabilities)
        if "weight" in samples.columns:
            samples.columns["weight"] = _weights(probabilities)
        if classes is not None:
            self.report.add_classes(classes.tolist(), kept.tolist())
        self.report.scored += size
        return kept

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
        self.report.not_finite += count
        if count and not self.warned:
            self.warned = True
            warn(
                f"loopwise.sift: {count} of {size} samples have a loss that is NaN or infinite; they are kept and "
                "counted in report().not_finite. Likely causes: a diverging model, or corrupt samples."
            )

    def _score(self, pool: Any, sizes: list[int]) -> Scores:
        """Score a pool at once; batch by batch from then on if the device has too little memory for that."""
        try:
            return self.scorer(pool, sum(sizes))
        except torch.OutOfMemoryError:
            if len(sizes) == 1 or self.scorer.sharded:  # the other ranks score the pool at once
                raise
        warn(
            f"loopwise.sift: too little memory to score {len(sizes)} batches at once; from now on they are scored one "
            "by one, as with pool=1"
        )
        self.single_batches = True
        parts = zip(batches.split(pool, sizes), sizes, strict=True)
        columns = zip(*(self.scorer(part, size) for part, size in parts), strict=True)
        joined = (None if values[0] is None else torch.cat(values) for values in columns)
        return Scores(*joined)  # type: ignore[arg-type]  # there are always losses

    def _decide(self, pool: Pool) -> torch.Tensor:
        for name in self.policy.needs:
            if getattr(pool, name) is None:
                seen = f"policy {self.policy!r} without {name} of the samples"
                raise InputError(seen, f"{name} of every sample", *MISSING.get(name, NO_SCORES))
        return self.policy.decide(pool)

    def _class_labels(self, samples: Samples) -> torch.Tensor | None:
        batch = samples.batch
        if self.classes is not None:
            return self.classes(batch).to("cpu", torch.int64)
        if isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
            targets = batch[1]
            if targets.shape == (samples.size,) and not targets.dtype.is_floating_point:
                return targets.to("cpu", torch.int64)
        return None

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(probabilities), generator=self.draws)
        return (draws < probabilities).nonzero().flatten()


def _weights(probabilities: torch.Tensor) -> torch.Tensor:
    """Return inverse keep probabilities, scaled so that they average 1 over the kept samples."""
    share = probabilities.mean() if len(probabilities) else torch.ones(())
    return torch.where(probabilities > 0, share / probabilities.clamp_min(1e-12), 0.0)
