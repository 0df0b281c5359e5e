"""Hyperparameters: their ranges, their scales, and the distributions from which Optuna draws."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal, Self

from loopwise.extras import required

with required("optuna", "tune", "tuning"):
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
with required("pydantic", "tune", "tuning"):
    from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = str | int | float | bool
"""Value of a hyperparameter."""
WIDE = 100
"""Ratio of the bounds from which ``scale="auto"`` searches on a logarithmic scale."""


class Strict(BaseModel):
    """Description whose fields have exactly the declared types, and that has no other fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Continuous(Strict):
    """Real number in [low, high].

    Args:
        low: lower bound.
        high: upper bound.
        scale: ``linear``; ``log``, for bounds above 0; ``reverse_log``, for bounds in [0, 1), which searches near 1 as
            finely as ``log`` does near 0; ``auto``: ``log`` if the upper bound is at least 100 times the lower one.

    Raises:
        pydantic.ValidationError: bounds that do not fit each other or the scale.
    """

    type: Literal["continuous"] = "continuous"
    low: float
    high: float
    scale: Literal["auto", "linear", "log", "reverse_log"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _validate_bounds(self.low, self.high, self.scale)
        if self.scale == "reverse_log" and not 0 <= self.low < self.high < 1:
            raise ValueError("scale reverse_log needs 0 <= low < high < 1")
        return self

    def distribution(self) -> BaseDistribution:
        """Return the distribution of what the study stores."""
        if self.scale == "reverse_log":
            return FloatDistribution(1 - self.high, 1 - self.low, log=True)
        return FloatDistribution(self.low, self.high, log=_logarithmic(self.low, self.high, self.scale))

    def value(self, stored: Any) -> Value:
        """Return the parameter's value for what the study stores."""
        return min(max(1 - stored, self.low), self.high) if self.scale == "reverse_log" else float(stored)

    def draw(self, uniform: float) -> Value:
        """Return a value for a number in [0, 1), uniform on the scale."""
        if self.scale == "reverse_log":
            return 1 - _between(1 - self.high, 1 - self.low, True, uniform)
        return _between(self.low, self.high, _logarithmic(self.low, self.high, self.scale), uniform)

    def stored(self, value: Any) -> Any:
        """Return what the study stores for a value."""
        return 1 - value if self.scale == "reverse_log" else float(value)

    def __contains__(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high


class Integer(Strict):
    """Whole number in [low, high].

    Args:
        low: lower bound, which is included.
        high: upper bound, which is included.
        scale: ``linear``, ``log`` (for bounds above 0), or ``auto`` as for ``Continuous``.

    Raises:
        pydantic.ValidationError: bounds that do not fit each other or the scale.
    """

    type: Literal["integer"] = "integer"
    low: int
    high: int
    scale: Literal["auto", "linear", "log"] = "auto"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _validate_bounds(self.low, self.high, self.scale)
        return self

    def distribution(self) -> BaseDistribution:
        """Return the distribution of what the study stores."""
        return IntDistribution(self.low, self.high, log=_logarithmic(self.low, self.high, self.scale))

    def value(self, stored: Any) -> Value:
        """Return the parameter's value for what the study stores."""
        return int(stored)

    def draw(self, uniform: float) -> Value:
        """Return a value for a number in [0, 1), uniform on the scale."""
        logarithmic = _logarithmic(self.low, self.high, self.scale)
        return min(math.floor(_between(self.low, self.high + 1, logarithmic, uniform)), self.high)

    def stored(self, value: Any) -> Any:
        """Return what the study stores for a value."""
        return int(value)

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


class Categorical(Strict):
    """One of several values.

    Args:
        values: 1 to 30 texts, numbers or booleans, none of them twice.

    Raises:
        pydantic.ValidationError: values that are equal, or no values.
    """

    type: Literal["categorical"] = "categorical"
    values: Annotated[tuple[Value, ...], Field(min_length=1, max_length=30, strict=False)]

    @model_validator(mode="after")
    def _differ(self) -> Self:
        texts = [json.dumps(value) for value in self.values]
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            raise ValueError(f"the value {twice[0]} stands twice")
        return self

    def distribution(self) -> BaseDistribution:
        """Return the distribution of what the study stores: texts, since Optuna takes 1, 1.0 and True for one."""
        return CategoricalDistribution([json.dumps(value) for value in self.values])

    def value(self, stored: Any) -> Value:
        """Return the parameter's value for what the study stores."""
        value: Value = json.loads(stored)
        return value

    def draw(self, uniform: float) -> Value:
        """Return a value for a number in [0, 1)."""
        return self.values[int(uniform * len(self.values))]

    def stored(self, value: Any) -> Any:
        """Return what the study stores for a value."""
        return json.dumps(value)

    def __contains__(self, value: Any) -> bool:
        return json.dumps(value) in [json.dumps(valid) for valid in self.values]


Parameter = Annotated[Continuous | Integer | Categorical, Field(discriminator="type")]
"""One hyperparameter."""


def _validate_bounds(low: float, high: float, scale: str) -> None:
    if not low < high:
        raise ValueError(f"low must be below high, not {low:g} and {high:g}")
    if scale == "log" and low <= 0:
        raise ValueError(f"scale log needs low above 0, not {low:g}")


def _logarithmic(low: float, high: float, scale: str) -> bool:
    return scale == "log" or (scale == "auto" and low > 0 and high / low >= WIDE)


def _between(low: float, high: float, logarithmic: bool, uniform: float) -> float:
    return low * (high / low) ** uniform if logarithmic else low + (high - low) * uniform


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
