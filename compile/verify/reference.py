"""Reference that compiled steps are compared with: the eager step, and the same step in float64.

A comparison has two points: the weights as they are, and weights that are moved away from zero.  Behind weights that begin at zero
(LoRA, ReZero, zero-initialised residual branches) nothing that is wrong can be seen at the first point.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loopwise.preserve import restored

from .errors import relative_errors
from .float64 import observe_in_float64
from .rounding import Rounded, signs
from .sandbox import Observed, Sandbox

LAST_PLACES = 4
"""Units in the last place by which a perturbation moves float32 weights, about as much as another order of
additions does; weights of lower precision are moved by one."""
FLOAT32 = 1e-6
"""Dtypes whose unit in the last place is below this are float32 and float64."""
NUDGE = 0.05
"""Standard deviation by which the second point's weights are off, as a share of their root mean square."""
FROM_ZERO = 0.02
"""The same for weights that are all zero, in absolute terms: about the size of freshly initialised ones."""


@dataclass
class Reference:
    """Tensors of the eager step, and of the same step in float64 if a comparison needed it and the model allows it."""

    eager: Observed
    float64: Observed | None = None
    """``None``: not run yet, or the step does not run in float64."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative errors of the eager step by tensor, as far as they are known."""
    perturb: Callable[[int], dict[str, float]] = lambda seed: {}
    """Function from a seed to the relative changes of the eager step when its weights move by a few last places, and each
    result of an operation by one."""
    measure: Callable[[], tuple[Observed | None, dict[str, float]]] | None = None
    """Function that returns ``float64`` and ``errors``; ``None`` once they are known."""

    def run_float64(self) -> None:
        """Run the step in float64, unless that was done before."""
        if self.measure is not None:
            self.float64, self.errors = self.measure()
            self.measure = None


def reference(sandbox: Sandbox) -> Reference:
    """Observe the eager step at the present weights.  The step in float64 runs later, if a candidate is not close."""
    eager = sandbox.observe(sandbox.spec.eager)
    perturb = functools.cache(lambda seed: _perturbation(sandbox, eager, seed))
    return Reference(eager, None, {}, perturb, functools.partial(_measure, sandbox, eager))


def _perturbation(sandbox: Sandbox, eager: Observed, seed: int) -> dict[str, float]:
    """Return the relative changes of the eager step with perturbed weights, and with results rounded another way."""
    with perturbed(sandbox.weights(), seed):
        try:
            observed = sandbox.observe(sandbox.spec.eager, Rounded(seed))
        except Exception:  # an operation that passes no mode, as flex_attention
            observed = sandbox.observe(sandbox.spec.eager)
        return relative_errors(observed, eager)


def _measure(sandbox: Sandbox, eager: Observed) -> tuple[Observed | None, dict[str, float]]:
    """Return the step's tensors in float64 and the eager step's relative errors; nothing if it does not run in float64."""
    try:
        exact = observe_in_float64(sandbox)
        exact = {name: exact[name] for name in eager}  # it also names the tensors that were converted
        return exact, relative_errors(eager, exact)
    except Exception:  # an operation without float64, or one that mixes dtypes: compare with eager alone
        return None, {}


def present(weights: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the weights are as they are."""
    return contextlib.nullcontext()


@contextlib.contextmanager
def nudged(weights: list[Tensor]) -> Iterator[None]:
    """Move all weights at random, those that are zero away from zero; restore the weights on leaving."""
    draws = _generators(weights, 0)
    with restored("data", weights):
        for weight in weights:
            data = weight.data
            size = float(torch.linalg.vector_norm(data.abs().double())) / math.sqrt(max(1, data.numel()))
            noise = torch.empty_like(data).normal_(generator=draws[data.device])
            step = NUDGE * size if size > 0 and math.isfinite(size) else FROM_ZERO
            weight.data = data + step * noise
        yield


@contextlib.contextmanager
def perturbed(weights: list[Tensor], seed: int) -> Iterator[None]:
    """Move each weight a few last places up or down at random; restore the weights on leaving."""
    weights = [weight for weight in weights if weight.is_floating_point()]
    draws = _generators(weights, seed)
    with restored("data", weights):
        for weight in weights:
            data = weight.data
            unit = torch.finfo(data.dtype).eps
            places = LAST_PLACES if unit < FLOAT32 else 1
            weight.data = data * (1 + places * unit * signs(data, draws[data.device]))
        yield


def _generators(weights: list[Tensor], seed: int) -> dict[torch.device, torch.Generator]:
    """Return a random generator for each device of the weights."""
    return {device: torch.Generator(device).manual_seed(seed) for device in {w.device for w in weights}}
