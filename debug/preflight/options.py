"""Options of ``preflight``: what the user means, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from loopwise.errors import InputError
from loopwise.validate import whole_number

from ..model import names
from ..rules import Finding
from .known import is_known
from .training import STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightOptions:
    """Expectations of the user, beside model, batch, loss and optimizer."""

    steps: int
    """Largest number of training steps on the batch."""
    frozen: tuple[str, ...] = ()
    """Parameters, or modules whose parameters, must not change."""
    batch_dim: int | None = 0
    """Dimension of the samples in the inputs; ``None`` if they have none."""
    output_shape: tuple[int | None, ...] | None = None
    """Shape of the first output; ``None`` for a dimension of any size."""
    output_range: tuple[float | None, float | None] | None = None
    """Lowest and highest value of the first output."""
    gradcheck: bool = False
    """Whether backward is compared with differences."""
    known: Callable[[Finding], bool] = lambda finding: False
    """Whether a finding is suppressed or in the baseline."""

    def is_frozen(self, path: str, parameter: nn.Parameter) -> bool:
        """Return whether a parameter must not change."""
        return not parameter.requires_grad or any(_within(path, name) for name in self.frozen)


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def options_of(
    model: nn.Module,
    *,
    steps: Any,
    frozen: Any,
    batch_dim: Any,
    output_shape: Any,
    output_range: Any,
    gradcheck: Any,
    suppress: Any,
    baseline: Any,
) -> PreflightOptions:
    """Return the options of these arguments of ``preflight``.

    Raises:
        InputError: an argument is not valid, or ``frozen`` names no parameter.
    """
    whole_number("steps", steps, STEPS, example=100)
    if batch_dim is not None and (isinstance(batch_dim, bool) or not isinstance(batch_dim, int)):
        raise InputError(
            f"batch_dim={batch_dim!r}",
            "the dimension of the samples, or None",
            "a number of samples",
            "pass batch_dim=1 for inputs of shape (time, batch, features), None if inputs have no such dimension",
        )
    frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
    paths = [names.plain(path) for path, _ in model.named_parameters(remove_duplicate=False)]
    for name in frozen:
        if not any(_within(path, name) for path in paths):
            raise InputError(
                f"frozen={name!r}",
                "the name of a parameter, or of a module that has parameters",
                "a typo, or the module has another name now",
                f"one of model.named_parameters(), such as {paths[0] if paths else 'encoder.weight'!r}",
            )
    return PreflightOptions(
        steps=steps,
        frozen=frozen,
        batch_dim=batch_dim,
        output_shape=_sizes(output_shape),
        output_range=_limits(output_range),
        gradcheck=bool(gradcheck),
        known=is_known(suppress, baseline),
    )


def _sizes(shape: Any) -> tuple[int | None, ...] | None:
    if shape is None:
        return None
    is_sequence = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not is_sequence or not all(s is None or (isinstance(s, int) and s >= 0) for s in shape):
        raise InputError(
            f"output_shape={shape!r}",
            "the sizes of the dimensions, None for any size",
            "a single number",
            "pass output_shape=(None, 10)",
        )
    return tuple(shape)


def _limits(limits: Any) -> tuple[float | None, float | None] | None:
    if limits is None:
        return None
    is_pair = isinstance(limits, Sequence) and not isinstance(limits, str) and len(limits) == 2
    if not is_pair or not all(v is None or isinstance(v, (int, float)) for v in limits):
        raise InputError(
            f"output_range={limits!r}",
            "the lowest and the highest value, None for no limit",
            "a single number",
            "pass output_range=(0, 1)",
        )
    low, high = limits
    if low is not None and high is not None and not low <= high:
        raise InputError(
            f"output_range={limits!r}",
            "the lowest value before the highest",
            "they changed places",
            f"pass output_range=({high!r}, {low!r})",
        )
    return low, high
