"""Training on one batch, again and again: whatever a model cannot learn there it learns nowhere."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from loopwise.ranks import is_main
from loopwise.schedule import every

from ..rules import RULES, Finding
from ..watch import Watch
from .copies import SEED, Copy, Original, needs_closure
from .report import Result, found, left_out
from .targets import Bounds

FALL = 0.2
"""Share by which the loss has to fall.  A model that sees nothing of its input reaches the best guess and no more:
nothing of the entropy of the classes in the batch; a linear one with ten parameters for 32 random samples falls by more."""
SLOW = 0.02
"""The same for an optimizer that moves on, if slowly: learning rates that suit a long training need not learn in a few steps."""
TARGETS = 4
"""Parameters to a target of the batch from which on a model is expected to learn any batch by heart."""
ENOUGH = 0.5
"""Share after which nothing more is to be learnt of the training."""
STEPS = 20
"""Steps that are taken at least: rules look at up to 16."""
RATES = (1e-3, 1e-2, 1e-4)
"""Learning rates of Adam, to tell a model that cannot learn from an optimizer that does not let it."""
OFF = {"repeated_batch", "loss_not_decreasing", "loss_spike", "shuffled_targets", "stalled_training"}
"""Rules that one batch again and again would set off, or that say the same of whole runs."""
TRAPPED = "non_finite"
"""What the trap finds."""


@dataclass
class Training:
    """What training came to."""

    losses: list[float] = field(default_factory=list)
    failed: str = ""
    """What raised, and at which step."""
    findings: list[Finding] = field(default_factory=list)
    """What rules found."""
    watched: bool = False

    @property
    def last(self) -> float:
        return statistics.median(self.losses[-5:])

    def fall(self, bounds: Bounds | None) -> float:
        """Share by which the loss fell, beneath that of the best guess where it is known; negative: it rose."""
        first, floor = self.losses[0], 0.0
        if bounds is not None:
            first, floor = min(first, bounds.guess), bounds.floor
        if not math.isfinite(first) or not math.isfinite(self.losses[-1]):
            return -math.inf
        return (first - self.last) / max(abs(first - floor), 1e-12)


def train(
    copy: Copy, steps: int, deadline: float, bounds: Bounds | None, watch: Watch | None = None
) -> Training:
    """Train a copy on its batch, until the loss fell by ``ENOUGH``, ``steps`` are done or it is too late.

    Args:
        deadline: by ``time.monotonic``.
        bounds: of the loss.
        watch: is told of each step.
    """
    done, optimizer = Training(), copy.optimizer
    assert optimizer is not None
    torch.manual_seed(SEED)
    for step in range(steps):
        what = "the forward pass"
        try:
            optimizer.zero_grad()
            loss = copy.compute()
            what = "backward"
            loss.backward()  # type: ignore[no-untyped-call]
            what = "the optimizer's step"
            if needs_closure(optimizer):
                optimizer.step(_closure(copy))
            else:
                optimizer.step()
        except Exception as error:
            done.failed = f"{what} of step {step} on the same batch raises {error!r}"
            break
        done.losses.append(float(loss.detach()))
        if watch is not None:
            watch.step(loss=loss)
        enough = len(done.losses) >= STEPS and done.fall(bounds) > ENOUGH
        if enough or not math.isfinite(done.losses[-1]) or time.monotonic() > deadline:
            break
    return done


def _closure(copy: Copy) -> Callable[[], float]:
    def compute() -> float:
        assert copy.optimizer is not None
        copy.optimizer.zero_grad()
        loss = copy.compute()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    return compute


def watched(original: Original, steps: int, deadline: float, bounds: Bounds | None) -> Training:
    """Train a copy by the user's optimizer, or by Adam where there is none, under a ``Watch`` with all rules."""
    copy = original.copy()
    if copy.optimizer is None:
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), RATES[0])
    rules = [name for name, rule in RULES.items() if rule.mode == "train" and name not in OFF]
    with contextlib.ExitStack() as inside:
        watch = None
        if not needs_closure(copy.optimizer):  # which may be done in one step
            folder = inside.enter_context(tempfile.TemporaryDirectory(prefix="loopwise-check-"))
            watch = Watch(
                copy.model,
                copy.optimizer,
                run=f"{folder}/run",
                save=every(1),
                rules=rules,
                on_finding=lambda _: None,
                profile=False,
            )
            inside.enter_context(watch)
        done = train(copy, steps, deadline, bounds, watch)
    if watch is not None and is_main():  # a run has the steps of one rank; what compares ranks is not asked
        done.findings, done.watched = [f for f in watch.findings if f.rule in (*rules, TRAPPED)], True
    return done


def learns(original: Original, done: Training, steps: int, deadline: float, bounds: Bounds | None) -> Result:
    """Does the loss of one batch fall?  Where it does not: is it the optimizer?"""
    name = "one batch"
    if not math.isfinite(done.losses[0]):
        return left_out(name, "its loss is not finite")
    by = "" if original.optimizer is not None else f" by Adam with a learning rate of {RATES[0]:g}"
    told = f"from {done.losses[0]:.4g} to {done.last:.4g} in {len(done.losses)} steps{by}"
    if done.fall(bounds) > FALL:
        return Result(name, f"the loss fell {told}")
    other = _by_adam(original, steps, deadline, bounds)
    evidence = {"loss": list(enumerate(done.losses))}
    guess = f"; the best guess that knows no input has {bounds.guess:.4g}" if bounds else ""
    if other is not None:
        adam = f"by Adam with a learning rate of {other[0]:g} to {other[1].last:.4g}"
        if done.fall(None) > SLOW:
            return Result(name, f"the loss fell slowly, {told}, {adam}")
        finding = found(
            "optimizer_does_not_learn",
            "warning",
            f"the loss of one batch went {told}, {adam}{guess}",
            "choose another learning rate, and look at weight decay, clipping and what the optimizer holds",
            evidence=evidence,
        )
        return Result(name, "", (finding,))
    if time.monotonic() > deadline:
        return left_out(name, done.failed or f"no time was left to try Adam as well: the loss went {told}")
    if done.failed and len(done.losses) < STEPS and math.isfinite(done.losses[-1]):
        return left_out(name, done.failed)
    if original.trained < TARGETS * original.targets:
        few = (
            f"{original.trained:,} parameters need not be able to learn {original.targets:,} targets by heart"
        )
        return left_out(name, f"{few}: the loss went {told}")
    finding = found(
        "cannot_overfit_one_batch",
        "critical",
        f"the loss of one batch went {told}{guess}, and does not fall by Adam either",
        "look at the other findings, at the loss's sign and its targets, at layers that pass no gradient, and at the "
        "size of inputs and initial weights",
        evidence=evidence,
    )
    return Result(name, "", (finding,))


def _by_adam(
    original: Original, steps: int, deadline: float, bounds: Bounds | None
) -> tuple[float, Training] | None:
    """The first learning rate by which the loss falls, and how it falls."""
    for rate in RATES:
        copy = original.copy()
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), rate)
        done = train(copy, steps, deadline, bounds)
        if done.losses and done.fall(bounds) > FALL:
            return rate, done
        if time.monotonic() > deadline:
            break
    return None
