"""Selection of samples by a policy: pool by pool, or a whole epoch ahead by remembered losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.loss import is_pair
from loopwise.warnings import warn

from .buffer import Samples
from .loss_history import NO_CLASS, LossHistory
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
ENOUGH = 0.8
"""Share of a planned epoch above which ``auto`` keeps all samples.  On text the default policy keeps 0.92, and loses
0.017 nats by it in as many passes (1,500 windows, 8 passes, one seed, validation data)."""
STRETCH = 100
"""Number of pools of a stream after which the expected share of kept samples is measured anew."""


@dataclass(slots=True)
class Selector:
    """Computes keep probabilities by a policy, and draws the samples to keep.

    The importance weight of a sample is ``share`` / its keep probability, so its expected weight is ``share``, whether it
    is kept or not.  ``share`` stays the same for a whole epoch: the weighted gradient of an epoch is in expectation
    ``share`` times the sum over all its samples, in whatever order they come.  As ``share`` is also about the mean keep
    probability, the weights of kept samples are 1 on average.
    """

    policy: Policy
    scorer: Scorer
    history: LossHistory
    draws: torch.Generator
    report: Report
    remember: bool
    """True if scores are added to the history."""
    weights: bool = False
    """True if kept samples get importance weights, which no sample with a keep probability of 0 can have."""
    classes: Callable[[Any], torch.Tensor] | None = None
    """Function from a batch to its class labels; default: integer targets of (input, target) batches."""
    warned: bool = False
    """True if there was a warning about losses that are not finite."""
    single_batches: bool = False
    """True if pools are scored batch by batch, because the device has too little memory for a whole pool."""
    planned: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """Keep probabilities of a planned epoch, by sample index."""
    share: float | None = None
    """Mean keep probability: of a planned epoch, or of the last scored one; in the first scored epoch, of its first
    pool.  ``None`` before."""
    lets_go: bool = False
    """True if a planned epoch has all samples where the policy would leave out only few of them."""
    endless: bool = False
    """True for a stream without a length: ``share`` is measured anew every ``STRETCH`` pools."""
    _scored: list[float] = field(default_factory=lambda: [0, 0.0, 0])
    """Number of samples, sum of their keep probabilities and number of pools since ``share`` was set."""

    def begin_scored(self) -> None:
        """Begin an epoch, or a stretch of a stream, in which samples are scored as they come."""
        samples, expected, _ = self._scored
        self.share = expected / samples if samples else self.share
        self._scored = [0, 0.0, 0]

    def select(self, samples: Samples, sizes: list[int], epoch: int) -> torch.Tensor:
        """Score a pool of batches of ``sizes`` samples, set its importance weights, and return the positions to keep."""
        size, indices, classes = samples.size, samples.columns.get("index"), self._class_labels(samples)
        scores = self._score(samples, sizes)
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
        pool = Pool(scores.losses, *columns, epoch, losses_of=losses_of)
        probabilities = torch.ones(size)
        probabilities[finite] = self._decide(pool if bool(finite.all()) else pool.at(finite))
        kept = self._draw(probabilities)
        if self.weights:
            if self.share is None and size:
                self.share = float(probabilities.mean(dtype=torch.float64))
            samples.columns["weight"] = self.weigh(probabilities)
        if classes is not None:
            self.report.add_classes(classes.tolist(), kept.tolist())
        self.report.scored += size
        return kept

    def plan_epoch(self, epoch: int) -> None:
        """Compute the keep probabilities of an epoch by the remembered losses; unknown samples stay."""
        history = self.history
        history.flush()
        known = history.losses.isfinite().nonzero().flatten()
        self.planned, self.share = torch.ones(len(history)), 1.0
        self._scored = [0, 0.0, 0]
        if len(known):
            columns = (history.losses, history.classes, history.last_trained)
            losses, labels, last_trained = (values[known] for values in columns)
            classes = None if bool((labels == NO_CLASS).any()) else labels
            pool = Pool(losses, known, classes, last_trained=last_trained, epoch=epoch, planned=True)
            self.planned[known] = self._decide(pool)
            self.share = float(self.planned[known].mean(dtype=torch.float64))
            if self.lets_go and self.share > ENOUGH:
                self.planned, self.share = torch.ones(len(history)), 1.0

    def plan_order(self, order: torch.Tensor, delayed: int) -> torch.Tensor:
        """Return the indices to load of an epoch whose samples come in ``order``; the first ``delayed`` ones all stay."""
        self._grow_planned(order)
        self.planned[order[:delayed]] = 1.0
        probabilities = self.planned[order]
        if len(order):
            self.share = float(probabilities.mean(dtype=torch.float64))
        return order[self._draw(probabilities)]

    def draw_planned(self, indices: torch.Tensor, delayed: bool) -> torch.Tensor:
        """Return the positions of those ``indices`` that are kept in the planned epoch; all of them if ``delayed``."""
        self._grow_planned(indices)
        if delayed:
            self.planned[indices] = 1.0
        return self._draw(self.planned[indices])

    def planned_weights(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the importance weights of samples in a planned epoch, float32 of the shape of ``indices``."""
        return (self.share or 1.0) / self.planned[indices]

    def weigh(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the importance weights of samples that come with these keep probabilities: float32, of their shape.

        Before the first scored pool, they are 1.
        """
        if self.share is None:
            return torch.ones(len(probabilities))
        if self.endless and self._scored[2] >= STRETCH:
            self.begin_scored()
        counts = (len(probabilities), float(probabilities.sum(dtype=torch.float64)), 1)
        self._scored = [total + count for total, count in zip(self._scored, counts, strict=True)]
        return torch.where(probabilities > 0, self.share / probabilities, 0.0)

    def remember_classes(self, samples: Samples) -> None:
        """Store the classes of a batch that is not scored, if the policy needs them to plan the next epochs.

        Raises:
            InputError: the policy needs classes, and the batch has none.
        """
        indices = samples.columns.get("index")
        if "classes" not in self.policy.needs or indices is None:
            return
        labels = self._class_labels(samples)
        if labels is None:
            self._refuse_without("classes")
        self.history.set(indices, classes=labels)

    def state_dict(self) -> dict[str, Any]:
        return {"planned": self.planned, "share": self.share, "scored": list(self._scored)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.planned, self.share, self._scored = state["planned"], state["share"], list(state["scored"])

    def _grow_planned(self, indices: torch.Tensor) -> None:
        missing = int(indices.max()) + 1 - len(self.planned) if len(indices) else 0
        if missing > 0:
            self.planned = torch.cat([self.planned, torch.ones(missing)])

    def count_planned(self, indices: torch.Tensor) -> int:
        """Return the number of samples that a draw for ``indices`` will keep, in any order of them."""
        state = self.draws.get_state()
        count = len(self.draw_planned(indices, False))
        self.draws.set_state(state)
        return count

    def count_not_finite(self, count: int, size: int) -> None:
        """Count, and warn once, that ``count`` of ``size`` samples have a loss that is not finite."""
        self.report.not_finite += count
        if count and not self.warned:
            self.warned = True
            warn(
                f"loopwise.sift: {count} of {size} samples have a loss that is NaN or infinite; they are kept and "
                "counted in report().not_finite. Likely causes: a diverging model, or corrupt samples."
            )

    def _score(self, pool: Samples, sizes: list[int]) -> Scores:
        """Score a pool at once; batch by batch from then on if the device has too little memory for that."""
        try:
            return self.scorer(pool.batch, pool.size)
        except torch.OutOfMemoryError:
            if len(sizes) == 1 or self.scorer.sharded:  # the other ranks score the pool at once
                raise
        warn(
            f"loopwise.sift: too little memory to score {len(sizes)} batches at once; from now on they are scored one "
            "by one, as with pool=1"
        )
        self.single_batches = True
        parts = zip(batches.split(pool.batch, sizes, pool.lists), sizes, strict=True)
        columns = zip(*(self.scorer(part, size) for part, size in parts), strict=True)
        joined = (None if values[0] is None else torch.cat(values) for values in columns)
        return Scores(*joined)  # type: ignore[arg-type]  # there are always losses

    def _decide(self, pool: Pool) -> torch.Tensor:
        for name in self.policy.needs:
            if getattr(pool, name) is None:
                self._refuse_without(name)
        probabilities = self.policy.decide(pool)
        if self.weights:
            never = probabilities <= 0
            if pool.gradients is not None:  # no weight is needed where there is no gradient
                never &= pool.gradients != 0
            if bool(never.any()):
                refuse_weights(
                    f"weights=True, and {int(never.sum())} of {len(pool)} samples with keep probability 0 "
                    f"by policy {self.policy!r}"
                )
        return probabilities

    def _refuse_without(self, name: str) -> NoReturn:
        seen = f"policy {self.policy!r} without {name} of the samples"
        raise InputError(seen, f"{name} of every sample", *MISSING.get(name, NO_SCORES))

    def _class_labels(self, samples: Samples) -> torch.Tensor | None:
        batch = samples.batch
        if self.classes is not None:
            return self.classes(batch).to("cpu", torch.int64)
        if is_pair(batch) and isinstance(batch[1], torch.Tensor):
            targets = batch[1]
            if targets.shape == (samples.size,) and not targets.dtype.is_floating_point:
                return targets.to("cpu", torch.int64)
        return None

    def _draw(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the positions to keep, in order: each with its probability, and in all as many as their sum says.

        The number is less than one sample away from the sum.  With independent draws it would vary by its square root.
        This is systematic sampling in a random order: one number in [0, 1) is drawn, and a sample is kept if the
        cumulated sum of the probabilities, begun at that number, reaches a whole number at it.
        """
        kept = probabilities >= 1
        drawn = ((probabilities > 0) & ~kept).nonzero().flatten()
        drawn = drawn[torch.randperm(len(drawn), generator=self.draws)]
        start = torch.rand(1, generator=self.draws, dtype=torch.float64)
        sums = torch.cat([start, probabilities[drawn].double()]).cumsum(0).floor()
        kept[drawn] = sums[1:] > sums[:-1]
        return kept.nonzero().flatten()


def refuse_weights(seen: str) -> NoReturn:
    """Raise the error for a policy that leaves some samples no chance, although importance weights are asked for."""
    raise InputError(
        seen,
        "a policy that gives every sample a keep probability above 0",
        "no weight of the others makes up for samples that are never kept: the gradient stays biased",
        "give the policy a floor if it takes one, mix it: Mixture((0.8, policy), (0.2, Uniform(0.5))), or drop weights",
    )
