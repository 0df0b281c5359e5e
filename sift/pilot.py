"""Forecast before training: measure whether sifting pays for a model, its data and the machine."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from loopwise import batch as batches
from loopwise import random_state, validate
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model
from loopwise.torch_internals import without_workers

from . import options as checks
from .policies.policy import check_keep
from .scoring import Scorer
from .source import Source

Spread = tuple[float, float, float]
"""Median, lower quartile and upper quartile of the measurements."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Measured seconds per sample, and the time of a sifted epoch that follows from them."""

    keep: float
    """Share of samples to train on."""
    loading: Spread
    """Seconds per sample of waiting for the loader."""
    training: Spread
    """Seconds per sample of forward, backward and an SGD step."""
    scoring: Spread
    """Seconds per sample of a scoring pass."""
    plans: bool
    """True if samples can be left out before they are loaded, by the losses of the training steps."""

    @property
    def scored(self) -> Spread:
        """Time of an epoch that scores every sample, as a fraction of a plain epoch's."""
        return self._fraction(1.0, 1.0)

    @property
    def remembered(self) -> Spread | None:
        """Time of an epoch planned by remembered losses, as a fraction of a plain epoch's; ``None`` if impossible."""
        return self._fraction(self.keep, 0.0) if self.plans else None

    @property
    def break_even(self) -> float:
        """Share of kept samples below which scoring every sample saves time; 0 if scoring never saves time."""
        return max(0.0, 1 - self.scoring[0] / self.training[0])

    @property
    def pays(self) -> bool:
        """True if the loader's default saves time, at the unfavourable end of the spread."""
        return (self.remembered or self.scored)[2] < 1

    def _fraction(self, loaded: float, scored: float) -> Spread:
        def fraction(sifted: int, plain: int) -> float:
            load, train = self.loading[plain], self.training[plain]
            cost = loaded * load + scored * self.scoring[sifted] + self.keep * train
            return cost / (load + train)

        return fraction(0, 0), fraction(1, 2), fraction(2, 1)

    def __str__(self) -> str:
        lines = [
            f"training {1e3 * self.training[0]:.3g} ms, loading {1e3 * self.loading[0]:.3g} ms, "
            f"scoring {1e3 * self.scoring[0]:.3g} ms per sample",
            f"every sample scored, keep={self.keep:g}: {_text(self.scored)} of a plain epoch's time; "
            + (f"pays below keep={self.break_even:.2f}" if self.break_even else "never pays"),
        ]
        if self.remembered is not None:
            lines.append(
                f"planned by remembered losses, keep={self.keep:g}: {_text(self.remembered)}, after the first epoch"
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

    Model, optimizer, data order and random states stay as they are, those of the loader's own generators included.  A
    dataset or sampler that counts its passes has counted one more.

    Args:
        loader: iterable of batches, as for ``SiftingDataLoader``.
        model: model in training.
        loss: per-sample criterion, or function of (model, batch).
        keep: share of samples to train on, a fraction in (0, 1].
        steps: number of batches to measure with, at least 4; the first two warm up.
        dtype: autocast dtype of the scoring pass; ``"auto"``: the fastest one of the hardware.

    Returns:
        Seconds per sample, and the forecast of an epoch's time; ``print`` shows it as text.

    Raises:
        InputError: fewer than four batches, a loader that can be iterated only once, or invalid arguments.
    """
    checks.validate_arguments(loader, model, loss)
    check_keep(keep)
    checks.validate_option("dtype", dtype)
    validate.whole_number("steps", steps, 4, "batches", example=50)
    source = Source(_copied(loader))
    generators = source.generators()
    state = random_state.get(generators)
    try:
        _validate_repeatable(source.loader)
        spreads = _measure(source, copy.deepcopy(model).train(), loss, steps, dtype)
    finally:
        random_state.set(state, generators)
    return Forecast(keep, *spreads, source.plans and not takes_model(loss))


def _copied(loader: Any) -> Any:
    """Return a DataLoader of the same data with worker processes of its own."""
    return without_workers(loader) if isinstance(loader, DataLoader) else loader


def _validate_repeatable(loader: Any) -> None:
    """Raise an error if the batches that are measured would be missing from the training."""
    stream = getattr(loader, "dataset", None) if isinstance(loader, DataLoader) else loader
    if isinstance(stream, DataLoader) or not isinstance(stream, Iterable):
        return
    is_map = hasattr(stream, "__getitem__") and not isinstance(stream, IterableDataset)
    if not is_map and (isinstance(stream, Iterator) or iter(stream) is iter(stream)):
        raise InputError(
            f"data of type {type(stream).__name__}, whose iter() returns the same iterator every time",
            "data that can be iterated again from the beginning",
            "an iterator, a generator, or an __iter__ that returns self: pilot would use up the first batches",
            "pass a loader made anew for pilot",
        )


def _measure(
    source: Source, model: nn.Module, loss: Callable[..., torch.Tensor], steps: int, dtype: Any
) -> tuple[Spread, Spread, Spread]:
    """Return seconds per sample of loading, training and scoring."""
    scorer = Scorer(model, loss, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loading, training, scoring = [], [], []
    start = time.perf_counter()
    for batch in itertools.islice(source.loader, steps):
        size = batches.length(batch, source.batch_size)
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
            "pass a loader with a smaller batch_size",
        )
    return _spread(loading[2:]), _spread(training[2:]), _spread(scoring[2:])


def _now(scorer: Scorer, batch: Any) -> float:
    """Return the time once the device has finished its work."""
    if scorer.device(batch).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _spread(values: list[float]) -> Spread:
    middle = sorted(values)[len(values) // 4 : len(values) - len(values) // 4]
    return float(np.median(values)), middle[0], middle[-1]


def _text(spread: Spread) -> str:
    return f"{spread[0]:.2f} ({spread[1]:.2f}-{spread[2]:.2f})"
