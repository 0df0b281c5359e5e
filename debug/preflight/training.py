"""Training on one batch, repeatedly, with the rules over saved steps for the first steps."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from loopwise.ranks import is_main
from loopwise.schedule import every

from ..model import names
from ..rules import RULES, Finding
from ..rules.thresholds import select
from ..watch import Watch
from .bounds import Bounds
from .copies import SEED, Setup, needs_closure, seed_all

FALL = 0.2
"""Share by which the loss has to fall below the loss of the best constant guess, as far as it can fall.  A linear model
with ten parameters reaches more on 32 random samples, and a model that ignores its input reaches 0."""
ENOUGH = 0.4
"""Share after which the training ends early."""
LEAST = 8
"""Steps before the training ends early."""
STEPS = 20
"""Smallest value of ``steps=``."""
WATCHED = 6
"""Steps that rules look at; they need four steps with an update."""
RISES = 12
"""Number of steps after which a loss that was above its first value in the last five of them ends the training."""
RISE = 0.1
"""Share of the possible fall by which such a loss has risen at least."""
STILL = 0.005
"""Share of the fall below which a loss hardly moved."""
UNWATCHED = "rules are applied on rank 0 only, and not to optimizers that need a closure"
RATE = 1e-3
"""Learning rate of Adam if no optimizer is passed."""
OFF = {
    "repeated_batch",
    "constant_input",
    "loss_not_decreasing",
    "loss_spike",
    "shuffled_targets",
    "stalled_training",
}
"""Rules that preflight leaves out: one repeated batch triggers them, or they concern whole runs."""


@dataclass
class Training:
    """Course of a training on one batch."""

    losses: list[float] = field(default_factory=list)
    failed: str = ""
    """The operation that raised, its step and its error; empty if none did."""
    rises: bool = False
    """Whether the training ended because the loss rose, or became NaN or infinite."""
    findings: list[Finding] = field(default_factory=list)
    watched: bool = False
    """Whether rules were applied."""
    changed: tuple[str, ...] = ()
    """Frozen parameters that changed."""

    @property
    def last(self) -> float:
        return statistics.median(self.losses[-5:])

    def fall(self, bounds: Bounds | None) -> float:
        """Return the share by which the loss fell below the best constant guess, if known; negative if it rose."""
        first, floor = self.losses[0], 0.0
        if bounds is not None:
            first, floor = min(first, bounds.guess), bounds.floor
        if not math.isfinite(first) or not math.isfinite(self.losses[-1]):
            return -math.inf
        return (first - self.last) / max(abs(first - floor), 1e-12)

    def has_risen(self, bounds: Bounds | None) -> bool:
        """Return whether the loss of this batch was above its first value in all of the last five steps."""
        first = self.losses[0]
        scale = abs(first - (bounds.floor if bounds else 0.0))
        return len(self.losses) > RISES and min(self.losses[-5:]) > first + RISE * scale


def train(
    copy: Setup,
    steps: int,
    bounds: Bounds | None,
    fall: float = ENOUGH,
    patience: int | None = None,
    training: Training | None = None,
    watch: Watch | None = None,
) -> Training:
    """Train a copy on its batch until the loss fell by a share, rose, or all steps are done.

    Args:
        copy: has an optimizer.
        steps: number of steps in all.
        bounds: bounds of the loss, if known.
        fall: share of the fall that ends the training.
        patience: number of steps after which a training whose loss hardly moved ends.
        training: an earlier part of the training, which is continued.
        watch: ``Watch`` whose ``step`` is called after each training step.
    """
    optimizer = copy.optimizer
    assert optimizer is not None
    if training is None:
        training = Training()
        seed_all(SEED)

    def closure() -> float:
        optimizer.zero_grad()
        loss = copy.compute()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    with_closure = needs_closure(optimizer)
    while len(training.losses) < steps and not training.rises and not training.failed:
        operation = "the forward pass"
        try:
            optimizer.zero_grad()
            loss = copy.compute()
            operation = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
            operation = "the optimizer's step"
            if with_closure:
                optimizer.step(closure)
            else:
                optimizer.step()
        except Exception as error:
            step = len(training.losses)
            training.failed = f"{operation} of step {step} on the same batch raises {error!r}"
            break
        training.losses.append(float(loss.detach()))
        if watch is not None:
            watch.step(loss=loss)
        training.rises = not math.isfinite(training.losses[-1]) or training.has_risen(bounds)
        if len(training.losses) >= LEAST and training.fall(bounds) > fall:
            break
        if len(training.losses) == patience and training.fall(None) < STILL:
            break
    return training


@contextlib.contextmanager
def watched(copy: Setup, rules: Sequence[str]) -> Iterator[Watch]:
    """Apply rules to every step of a copy inside the ``with`` block; nothing of the run is kept."""
    with (
        tempfile.TemporaryDirectory(prefix="loopwise-preflight-") as folder,
        Watch(
            copy.model,
            copy.optimizer,
            run=f"{folder}/run",
            save=every(1),
            rules=rules,
            on_finding=lambda _: None,
            profile=False,
        ) as watch,
    ):
        yield watch


def train_under_watch(
    setup: Setup, steps: int, bounds: Bounds | None, frozen: Callable[[str, nn.Parameter], bool]
) -> Training:
    """Train a copy with the user's optimizer, or with Adam if there is none; the first steps under a ``Watch``.

    Args:
        setup: what is copied.
        steps: number of steps in all.
        bounds: bounds of the loss, if known.
        frozen: whether the parameter of this name must not change.
    """
    copy = setup.copy()
    if copy.optimizer is None:
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), RATE)
    kept = {
        name: parameter.detach().clone()
        for name, parameter in copy.model.named_parameters()
        if frozen(names.plain(name), parameter)
    }
    rules = [name for name in select(True, "saved step") if RULES[name].mode == "train" and name not in OFF]
    training, watch = Training(), None
    seed_all(SEED)
    if not needs_closure(copy.optimizer):  # such an optimizer may be done in one step
        with watched(copy, rules) as watch:
            train(copy, WATCHED, bounds, training=training, watch=watch)
    if watch is not None and is_main():  # other ranks save no steps
        training.findings, training.watched = watch.findings, True
    train(copy, steps, bounds, training=training)
    after = dict(copy.model.named_parameters())
    training.changed = tuple(
        names.plain(name)
        for name, value in kept.items()
        if name in after and not same(value, after[name].detach())
    )
    return training


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal, NaN being equal to NaN."""
    return bool(((first == second) | ((first != first) & (second != second))).all())
