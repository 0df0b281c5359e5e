"""Whether a compiled step computes what the eager step computes, by an error budget."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise.preserve import preserve

from .sandbox import Compute, Observed, in_double, nudged, observe, observe_draws

MARGIN = 4.0
"""A candidate may be this many times further from float64 than the eager step is."""
SLACK = 16.0
"""Beside it, so many units in the last place of the dtype: an eager error may be 0 by luck."""
FAINT = 1e-4
"""Gradients smaller than this part of the largest one are rounding noise (a bias before BatchNorm)."""
RANDOM = 1e-3
"""Relative budget where nothing tells how far the eager step itself is off."""
NUDGES = (4, 16)
"""Eager steps with weights a few last places off that tell, where a form is refused, how sharp the edges are:
behind a ReLU such a step may let the gradient of another element pass.  More of them where that does not suffice."""
DRAWING = (
    "Dropout",
    "AlphaDropout",
    "FeatureAlphaDropout",
    "StochasticDepth",
    "DropPath",
    "DropBlock",
    "RReLU",
)
"""Beginnings of the names of modules that draw random numbers in training."""


@dataclass(frozen=True)
class Difference:
    """A tensor whose error is over its budget; both are relative to the tensor's root mean square."""

    tensor: str
    error: float
    budget: float

    def __str__(self) -> str:
        return f"{self.tensor} is off by {self.error:.2g} of its size, the budget is {self.budget:.2g}"


@dataclass
class Reference:
    """What the eager step computes, and the same in float64 where that is asked for and can be had."""

    eager: Observed
    exact: Observed | None = None
    """``None``: the model draws random numbers, or its copy in float64 does not run."""
    noise: dict[str, float] = field(default_factory=dict)
    """Relative errors of the eager step by tensor, as far as they are known.  Where ``exact`` is missing they
    were measured without the random draws, or in an earlier run."""
    nudge: Callable[[int], dict[str, float]] = lambda seed: {}
    """Relative changes of the eager step by tensor when its weights move by a few last places, drawn by a seed."""
    measure: Callable[[], tuple[Observed | None, dict[str, float]]] | None = None
    """Finds ``exact`` and ``noise``, where they are not known yet."""

    def settle(self) -> None:
        """Run the step in float64, unless that was done before."""
        if self.measure is not None:
            self.exact, self.noise = self.measure()
            self.measure = None


def reference(
    eager: Compute,
    compute: Any,
    model: nn.Module,
    loss: Any,
    batch: Any,
    noise: dict[str, float] | None = None,
) -> Reference:
    """Observe the eager step; its float64 twin is observed where a candidate is not close to it.

    Args:
        eager: the eager computation, in the precision of the step.
        compute: makes the full-precision computation from a model and a loss.
        model: the model in training.
        loss: the loss of the step.
        batch: the batch to compare on.
        noise: that of an earlier run in the same situation; then nothing is run in float64.
    """
    found = observe(eager, model, batch)
    nudge = functools.cache(lambda seed: _nudge(eager, model, batch, found, seed))
    measure = functools.partial(_exactly, eager, compute, model, loss, batch, found)
    return Reference(found, None, noise or {}, nudge, None if noise else measure)


def _exactly(
    eager: Compute, compute: Any, model: nn.Module, loss: Any, batch: Any, found: Observed
) -> tuple[Observed | None, dict[str, float]]:
    """What float64 gives, where that can be had and compared, and the eager step's relative errors."""
    try:
        twin, criterion, doubled = in_double(model, loss, batch)
        exactly = compute(twin, criterion)
        exact, drew = observe_draws(exactly, twin, doubled)
        if not drew or not _differs(exactly, twin, doubled):
            return exact, errors(found, exact)
        with _quiet(twin), _quiet(model):
            if _differs(exactly, twin, doubled):
                return None, {}
            return None, errors(observe(eager, model, batch), observe(exactly, twin, doubled))
    except Exception:  # an op without float64, a model that cannot be copied: compare with eager alone
        return None, {}


def _nudge(eager: Compute, model: nn.Module, batch: Any, found: Observed, seed: int) -> dict[str, float]:
    with nudged(model, seed):
        return errors(observe(eager, model, batch), found)


def errors(observed: Observed, exact: Observed) -> dict[str, float]:
    """Relative errors by floating-point tensor."""
    least = _faint(observed)
    return {n: _apart(v, exact[n], least.get(n, 0.0)) for n, v in observed.items() if v.is_floating_point()}


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The modules that draw random numbers, as far as their names tell, in evaluation mode."""
    drawing = [m for m in model.modules() if m.training and type(m).__name__.startswith(DRAWING)]
    for module in drawing:
        module.training = False
    try:
        yield
    finally:
        for module in drawing:
            module.training = True


def _faint(observed: Observed) -> dict[str, float]:
    """Gradient or running mean -> the size that counts where it is smaller."""
    gradients = [name for name in observed if name.startswith("gradient/")]
    least = FAINT * max((_size(observed[name]) for name in gradients), default=0.0)
    found = dict.fromkeys(gradients, least)
    for name in observed:
        variance = name.removesuffix("mean") + "var"
        if name.endswith("running_mean") and variance in observed:  # a mean may be 0 but for rounding
            found[name] = math.sqrt(_size(observed[variance]))
    return found


def _differs(compute: Compute, model: nn.Module, batch: Any) -> bool:
    """Whether the step's result depends on the random state."""
    losses = []
    for seed in (0, 1):
        with preserve(model), torch.no_grad():
            torch.manual_seed(seed)
            losses.append(compute(batch))
    return not torch.equal(*losses)


def check(found: Observed, expected: Reference) -> Difference | None:
    """The tensor that is furthest over its error budget, or ``None``."""
    if missing := set(expected.eager) ^ set(found):
        return Difference(f"{min(missing)} (only one of both steps has it)", math.inf, 0.0)
    if _is_near(found, expected.eager):
        return None
    expected.settle()
    worst = _worst(found, expected, {})
    for count in NUDGES:
        if worst is None or worst.error == math.inf:
            return worst
        moved = [expected.nudge(seed) for seed in range(count)]
        sharpness = {name: max(each[name] for each in moved) for name in moved[0]}
        worst = _worst(found, expected, sharpness)
    return worst


def _is_near(found: Observed, eager: Observed) -> bool:
    """Whether each tensor is so close to the eager step's that no budget, which is that step's error and more, refuses it."""
    return _worst(found, Reference(eager, eager, dict.fromkeys(eager, 0.0)), {}) is None


def _worst(found: Observed, expected: Reference, sharpness: dict[str, float]) -> Difference | None:
    worst: Difference | None = None
    least = _faint(expected.eager)
    for name in expected.eager:
        error, budget = _error(name, found[name], expected, least.get(name, 0.0))
        budget = max(budget, MARGIN * sharpness.get(name, 0.0))
        if not error <= budget and (worst is None or error / budget > worst.error / worst.budget):
            worst = Difference(name, error, budget)
    return worst


def _error(name: str, found: torch.Tensor, expected: Reference, least: float) -> tuple[float, float]:
    """Relative error and budget of one tensor; ``least`` is the size that counts for a smaller one."""
    eager = expected.eager[name]
    exact = None if expected.exact is None else expected.exact[name]
    if found.shape != eager.shape:
        return math.inf, 1.0
    if not eager.is_floating_point():
        return (0.0 if torch.equal(found, eager) else math.inf), 1.0
    unit = torch.finfo(eager.dtype).eps
    if exact is None:  # both are off, each in its own way
        noise = expected.noise.get(name)
        budget = RANDOM if noise is None else 2 * MARGIN * noise + 2 * SLACK * unit
        return _apart(found, eager, least), budget
    return _apart(found, exact, least), MARGIN * expected.noise[name] + SLACK * unit


def _size(tensor: torch.Tensor) -> float:
    """Root mean square; 0 of an empty tensor or one that is not finite."""
    size = _root_mean_square(tensor) if tensor.numel() else 0.0
    return size if math.isfinite(size) else 0.0


def _root_mean_square(tensor: torch.Tensor) -> float:
    """Summed up in float64."""
    norm: float = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return norm / math.sqrt(tensor.numel())


def _apart(one: torch.Tensor, other: torch.Tensor, least: float) -> float:
    """Root mean square of the difference over that of ``other``; NaNs at the same places agree."""
    if not one.numel():
        return 0.0
    exact = torch.promote_types(torch.promote_types(one.dtype, other.dtype), torch.float32)
    one, other = one.to(exact), other.to(exact)
    difference = _root_mean_square(one - other)
    if not math.isfinite(difference):
        same = (one == other) | (one.isnan() & other.isnan())
        difference = _root_mean_square(torch.where(same, 0.0, one - other))
    size = max(_size(other), least)
    if difference == 0.0:
        return 0.0
    return difference / size if size > 0 and math.isfinite(difference) else math.inf
