"""Verdict on the training of one batch: whether it is learnt, and if not, whether the learning rate, the optimizer or the model is at fault."""

from __future__ import annotations

import math

import torch

from .bounds import Bounds
from .copies import Setup
from .report import Result, faulty, left_out
from .training import FALL, LEAST, RATE, Training, train

SLOW = 0.02
"""Share that suffices for the user's optimizer if Adam reaches ``FALL``: learning rates that suit a long training need
not learn in a few steps."""
TARGETS = 4
"""Parameters for each target above which a model is expected to learn any batch by heart."""
RATES = (RATE, 1e-2, 1e-4)
"""Learning rates of Adam, which tells an unsuitable model from an unsuitable optimizer."""
FACTORS = (1e2, 1e3, 1e4, 1e5, 10.0)
"""Factors by which the user's learning rate is changed to tell whether it is at fault."""
PATIENCE = 15
"""Steps after which a trial ends if the loss hardly moved."""
PART = 2
"""Trials have ``steps`` over this number of steps."""


def one_batch(setup: Setup, training: Training, steps: int, bounds: Bounds | None) -> Result:
    """Check that the loss of one batch falls; if it does not, try other learning rates, and Adam.

    Args:
        setup: what was trained.
        training: the training on this batch.
        steps: number of steps of the training.
        bounds: bounds of the loss, if known.
    """
    name, losses = "one batch", training.losses
    if not math.isfinite(losses[0]):
        return left_out(name, "the loss of the batch is not finite")
    with_adam = f" with Adam at a learning rate of {RATE:g}" if setup.optimizer is None else ""
    count = f"{len(losses)} steps{with_adam}"
    change = f"from {losses[0]:.4g} to {training.last:.4g} in {count}"
    if training.fall(bounds) > FALL:
        return Result(name, f"the loss fell {change}")
    if training.failed and len(losses) < LEAST and math.isfinite(losses[-1]):
        return left_out(name, training.failed)
    evidence = {"loss": list(enumerate(losses))}
    guess = f"; the best constant guess has a loss of {bounds.guess:.4g}" if bounds else ""
    verb = "rose" if training.rises else "went"
    if training.rises and (better := _rate(setup, steps, bounds, smaller=True)):
        return _unsuitable(name, f"the loss of one batch rose {change}", better, "lower", evidence)
    other = _with_adam(setup, steps, bounds)
    if other is not None and other[1].fall(bounds) <= FALL:
        slow = (
            f"with Adam at a learning rate of {other[0]:g} to {other[1].last:.4g}, below every constant guess"
        )
        if training.fall(None) > SLOW:
            return Result(name, f"the loss fell slowly, {change}, and {slow}")
        return left_out(name, f"the loss went {change}, and falls slowly {slow}")
    if other is not None:
        adam = f"and with Adam at a learning rate of {other[0]:g} to {other[1].last:.4g}"
        if training.fall(None) > SLOW:
            return Result(name, f"the loss fell slowly, {change}, {adam}")
        if better := _rate(setup, steps, bounds, smaller=False):
            return _unsuitable(name, f"the loss of one batch {verb} {change}", better, "raise", evidence)
        what = f"the loss of one batch {verb} {change}, {adam}{guess}"
        return faulty(name, "optimizer_does_not_learn", what, evidence=evidence)
    if setup.trained < TARGETS * setup.targets:
        few = f"{setup.trained:,} parameters may be too few to learn {setup.targets:,} targets by heart"
        return left_out(name, f"{few}: the loss went {change}")
    what = f"the loss of one batch {verb} {change}{guess}, and does not fall with Adam either"
    return faulty(name, "cannot_overfit_one_batch", what, evidence=evidence)


def _unsuitable(
    name: str,
    what: str,
    better: tuple[float, Training],
    verb: str,
    evidence: dict[str, list[tuple[int, float]]],
) -> Result:
    rate, training = better
    what = f"{what}; at a learning rate of {rate:.3g} it falls to {training.last:.4g}"
    return faulty(
        name,
        "unsuitable_learning_rate",
        what,
        evidence=evidence,
        advice=f"{verb} the learning rate, to about {rate:.1g}",
    )


def _rate(setup: Setup, steps: int, bounds: Bounds | None, smaller: bool) -> tuple[float, Training] | None:
    """Return another learning rate with which the loss falls, and that training."""
    for factor in FACTORS if setup.optimizer is not None else ():
        copy = setup.copy()
        assert copy.optimizer is not None
        for group in copy.optimizer.param_groups:
            group["lr"] = group["lr"] / factor if smaller else group["lr"] * factor
        rate = float(copy.optimizer.param_groups[0]["lr"])
        if not 0 < rate < 1e3:
            return None
        training = train(copy, steps // PART, bounds, fall=FALL, patience=PATIENCE)
        if training.losses and training.fall(bounds) > FALL:
            return rate, training
    return None


def _with_adam(setup: Setup, steps: int, bounds: Bounds | None) -> tuple[float, Training] | None:
    """Return the first learning rate of Adam with which the loss falls, and that training.

    If none does, one with which it falls slowly but below the loss of any constant guess, as that needs the input.
    """
    slow: tuple[float, Training] | None = None
    for rate in RATES:
        copy = setup.copy()
        copy.optimizer = torch.optim.Adam(copy.model.parameters(), rate)
        training = train(copy, steps // PART, bounds, fall=FALL, patience=PATIENCE)
        if not training.losses:
            continue
        if training.fall(bounds) > FALL:
            return rate, training
        if bounds is not None and training.fall(bounds) > SLOW:
            slow = slow or (rate, training)
    return slow


def trained_for_a_few_steps(setup: Setup, steps: int = 3) -> Setup | None:
    """Return a copy after a few steps of Adam, in which no layer has only zeros any more; ``None`` if a step raises."""
    copy = setup.copy()
    copy.optimizer = torch.optim.Adam(copy.model.parameters(), RATE)
    training = train(copy, steps, None)
    done = len(training.losses) == steps and all(map(math.isfinite, training.losses))
    return copy if done else None
