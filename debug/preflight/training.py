"""Training on one batch, repeatedly: a model that cannot learn one batch cannot learn more."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field

import torch

from loopwise.ranks import is_main
from loopwise.schedule import every

from ..rules import RULES, Finding
from ..rules.thresholds import select
from ..watch import Watch
from .copies import SEED, Setup, needs_closure
from .report import Result, faulty, left_out
from .targets import Bounds

FALL = 0.2
"""Share by which the loss has to fall below the loss of the best constant guess, as far as it can fall.  A linear model
with ten parameters reaches more on 32 random samples, and a model that ignores its input reaches 0."""
SLOW = 0.02
"""Share that suffices for the user's optimizer if Adam reaches ``FALL``: learning rates that suit a long training need
not learn in a few steps."""
TARGETS = 4
"""Parameters for each target above which a model is expected to learn any batch by heart."""
ENOUGH = 0.5
"""Share after which the training ends early."""
STEPS = 20
"""Smallest number of steps: rules look at up to 16."""
RATES = (1e-3, 1e-2, 1e-4)
"""Learning rates of Adam, which tells an unsuitable model from an unsuitable optimizer."""
OFF = {"repeated_batch", "loss_not_decreasing", "loss_spike", "shuffled_targets", "stalled_training"}
"""Rules that preflight leaves out: one repeated batch triggers them, or they concern whole runs."""


@dataclass
class Training:
    """Course of a training on one batch."""

    losses: list[float] = field(default_factory=list)
    failed: str = ""
    """The operation that raised, its step and its error; empty if none did."""
    findings: list[Finding] = field(default_factory=list)
    watched: bool = False
    """Whether rules were applied."""

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


def train(
    copy: Setup, steps: int, deadline: float, bounds: Bounds | None, watch: Watch | None = None
) -> Training:
    """Train a copy on its batch until the loss fell by ``ENOUGH``, or until all steps are done or the time is over.

    Args:
        copy: has an optimizer.
        steps: largest number of steps.
        deadline: time of ``time.monotonic`` at which the training ends.
        bounds: bounds of the loss, if known.
        watch: ``Watch`` whose ``step`` is called after each training step.
    """
    training, optimizer = Training(), copy.optimizer
    assert optimizer is not None

    def closure() -> float:
        optimizer.zero_grad()
        loss = copy.compute()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    torch.manual_seed(SEED)
    for step in range(steps):
        operation = "the forward pass"
        try:
            optimizer.zero_grad()
            loss = copy.compute()
            operation = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
            operation = "the optimizer's step"
            if needs_closure(optimizer):
                optimizer.step(closure)
            else:
                optimizer.step()
        except Exception as error:
            training.failed = f"{operation} of step {step} on the same batch raises {error!r}"
            break
        training.losses.append(float(loss.detach()))
        if watch is not None:
            watch.step(loss=loss)
        enough = len(training.losses) >= STEPS and training.fall(bounds) > ENOUGH
        if enough or not math.isfinite(training.losses[-1]) or time.monotonic() > deadline:
            break
    return training


def train_under_watch(setup: Setup, steps: int, deadline: float, bounds: Bounds | None) -> Training:
    """Train a copy with the user's optimizer, or with Adam if there is none, under a ``Watch`` with the rules."""
    copy = setup.copy()
    if copy.optimizer is None:
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), RATES[0])
    rules = [name for name in select(True, "saved step") if RULES[name].mode == "train" and name not in OFF]
    with contextlib.ExitStack() as stack:
        watch = None
        if not needs_closure(copy.optimizer):  # such an optimizer may be done in one step
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="loopwise-preflight-"))
            watch = Watch(
                copy.model,
                copy.optimizer,
                run=f"{folder}/run",
                save=every(1),
                rules=rules,
                on_finding=lambda _: None,
                profile=False,
            )
            stack.enter_context(watch)
        training = train(copy, steps, deadline, bounds, watch)
    if watch is not None and is_main():  # other ranks save no steps
        training.findings, training.watched = watch.findings, True
    return training


def one_batch(setup: Setup, training: Training, steps: int, deadline: float, bounds: Bounds | None) -> Result:
    """Check that the loss of one batch falls; if it does not, try Adam to tell whether the optimizer is at fault."""
    name = "one batch"
    if not math.isfinite(training.losses[0]):
        return left_out(name, "the loss of the batch is not finite")
    with_adam = f" with Adam at a learning rate of {RATES[0]:g}" if setup.optimizer is None else ""
    count = f"{len(training.losses)} steps{with_adam}"
    change = f"from {training.losses[0]:.4g} to {training.last:.4g} in {count}"
    if training.fall(bounds) > FALL:
        return Result(name, f"the loss fell {change}")
    other = _with_adam(setup, steps, deadline, bounds)
    evidence = {"loss": list(enumerate(training.losses))}
    guess = f"; the best constant guess has a loss of {bounds.guess:.4g}" if bounds else ""
    if other is not None:
        adam = f"and with Adam at a learning rate of {other[0]:g} to {other[1].last:.4g}"
        if training.fall(None) > SLOW:
            return Result(name, f"the loss fell slowly, {change}, {adam}")
        what = f"the loss of one batch went {change}, {adam}{guess}"
        return faulty(name, "optimizer_does_not_learn", what, evidence=evidence)
    if time.monotonic() > deadline:
        why = f"no time was left to try Adam as well: the loss went {change}"
        return left_out(name, training.failed or why)
    if training.failed and len(training.losses) < STEPS and math.isfinite(training.losses[-1]):
        return left_out(name, training.failed)
    if setup.trained < TARGETS * setup.targets:
        few = f"{setup.trained:,} parameters may be too few to learn {setup.targets:,} targets by heart"
        return left_out(name, f"{few}: the loss went {change}")
    what = f"the loss of one batch went {change}{guess}, and does not fall with Adam either"
    return faulty(name, "cannot_overfit_one_batch", what, evidence=evidence)


def _with_adam(
    setup: Setup, steps: int, deadline: float, bounds: Bounds | None
) -> tuple[float, Training] | None:
    """Return the first learning rate of Adam with which the loss falls, and that training."""
    for rate in RATES:
        copy = setup.copy()
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), rate)
        training = train(copy, steps, deadline, bounds)
        if training.losses and training.fall(bounds) > FALL:
            return rate, training
        if time.monotonic() > deadline:
            break
    return None
