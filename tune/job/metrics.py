"""Metrics of a job, and what it searches for."""

from __future__ import annotations

from typing import Annotated, Literal

from loopwise.errors import InputError
from loopwise.extras import required

from ..log.patterns import Pattern
from .parameters import Strict

with required("pydantic", "tune", "tuning"):
    from pydantic import Field, field_validator


class Metric(Strict):
    """Number that the log tells.

    Args:
        name: 1 to 255 characters.
        regex: 1 to 500 characters, in the syntax of Python's ``re``; its first group, or the one named ``value``, is the
            number.  Without it, the program prints the metric by ``report``, or in that form.
        value: which of the matches is the metric's value: the ``last``, the ``max`` or the ``min``.

    Raises:
        pydantic.ValidationError: an expression that is not valid, or without a group.
    """

    name: Annotated[str, Field(min_length=1, max_length=255)]
    regex: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    value: Literal["last", "max", "min"] = "last"

    @field_validator("regex")
    @classmethod
    def _compiles(cls, text: str | None) -> str | None:
        try:
            Pattern(text or "()")
        except InputError as error:
            seen, expected, _, fix = error.args
            raise ValueError(f"{seen}; expected {expected}; {fix}") from None
        return text


class Objective(Strict):
    """The metric to search by, and whether a larger or a smaller value of it is better."""

    metric: str
    goal: Literal["maximize", "minimize"]
