"""Before training: does sifting pay for this model and this data on this machine?"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import random_state
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model

from . import options
from .policies.policy import check_keep
from .scoring import Scorer
from .source import Source

Spread = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """Measured seconds a sample, (median, lowest, highest) of the middle half of the steps, and what follows."""

    keep: float
    """Share of samples trained on."""
    loading: Spread
    """Waiting for the loader."""
    training: Spread
    """Forward, backward and an SGD step."""
    scoring: Spread
    """A scoring pass."""
    plans: bool
    """Whether samples can be left out before they are loaded, by the losses of the training steps."""

    @property
    def scored(self) -> Spread:
        """Time of an epoch that scores every sample, as a part of a plain epoch's."""
        return self._part(1.0, 1.0)

    @property
    def remembered(self) -> Spread | None:
        """Time of an epoch that goes by remembered losses, as a part of a plain epoch's."""
        return self._part(self.keep, 0.0) if self.plans else None

    @property
    def break_even(self) -> float:
        """Scoring every sample saves time while ``keep`` is below this share; 0: never."""
        return max(0.0, 1 - self.scoring[0] / self.training[0])

    @property
    def pays(self) -> bool:
        """Whether the way that the loader takes by default saves time, at the unfavourable end of the spread."""
        return (self.remembered or self.scored)[2] < 1

    def _part(self, loaded: float, scored: float) -> Spread:
        def part(which: int, other: int) -> float:
            load, train = self.loading[other], self.training[other]
            cost = loaded * load + scored * self.scoring[which] + self.keep * train
            return cost / (load + train)

        return part(0, 0), part(1, 2), part(2, 1)

    def __str__(self) -> str:
        lines = [
            f"training {1e3 * self.training[0]:.3g} ms, loading {1e3 * self.loading[0]:.3g} ms, "
            f"scoring {1e3 * self.scoring[0]:.3g} ms a sample",
            f"every sample scored, keep={self.keep:g}: {_told(self.scored)} of a plain epoch's time; "
            + (f"pays below keep={self.break_even:.2f}" if self.break_even else "never pays"),
        ]
        if self.remembered is not None:
            lines.append(
                f"by remembered losses, keep={self.keep:g}: {_told(self.remembered)}, after the first"
            )
        lines.append("sifting pays" if self.pays else "sifting does not pay: a plain loader is as fast")
        return "\n".join(lines)


def pilot(
    loader: Iterable[Any],
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    *,
    keep: float = 0.5,
    steps: int = 50,
    dtype: torch.dtype | str = "auto",
) -> Forecast:
    """Measure training, loading and scoring on up to ``steps`` batches, on a copy of the model.

    Model, optimizer, data order and random states stay as they are.

    Args:
        loader, model, loss, keep, dtype: as for ``SiftingDataLoader``.
        steps: batches to measure with; the first two warm up.

    Raises:
        InputError: fewer than four batches, or arguments that the loader refuses.
    """
    check_keep(keep)
    options.whole("steps", steps, 4)
    options.criterion(loss)
    state = random_state.get()
    try:
        spreads = _measure(loader, copy.deepcopy(model).train(), loss, steps, dtype)
    finally:
        random_state.set(state)
    plans = Source(loader, getattr(loader, "batch_size", None), False).plans and not takes_model(loss)
    return Forecast(keep, *spreads, plans)


def _measure(
    loader: Iterable[Any], model: nn.Module, loss: Callable[..., torch.Tensor], steps: int, dtype: Any
) -> tuple[Spread, Spread, Spread]:
    scorer = Scorer(model, loss, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loading, training, scoring = [], [], []
    start = time.perf_counter()
    for batch in itertools.islice(loader, steps):
        size = batches.length(batch, getattr(loader, "batch_size", None))
        loading.append((time.perf_counter() - start) / size)
        start = _now(scorer, batch)
        scorer(batch, size)
        scoring.append((_now(scorer, batch) - start) / size)
        moved = scorer.moved(batch)
        start = _now(scorer, batch)
        losses = loss(model, moved) if takes_model(loss) else loss(model(pair(moved)[0]), pair(moved)[1])
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        training.append((_now(scorer, batch) - start) / size)
        start = time.perf_counter()
    if len(training) < 4:
        raise InputError(
            f"a loader of {len(training)} batches",
            "at least 4 batches to measure with",
            "a small dataset or a large batch_size",
            "give a loader with a smaller batch_size",
        )
    return _spread(loading[2:]), _spread(training[2:]), _spread(scoring[2:])


def _now(scorer: Scorer, batch: Any) -> float:
    if scorer.device(batch).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(values: list[float]) -> Spread:
    middle = sorted(values)[len(values) // 4 : len(values) - len(values) // 4]
    return statistics.median(values), middle[0], middle[-1]


def _told(spread: Spread) -> str:
    return f"{spread[0]:.2f} ({spread[1]:.2f}-{spread[2]:.2f})"
