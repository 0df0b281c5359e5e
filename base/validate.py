"""Validate arguments of public functions: return the value, or raise an ``InputError`` that explains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from loopwise.errors import InputError

T = TypeVar("T")


def whole_number(name: str, value: Any, least: int = 0, unit: str = "", example: int | None = None) -> int:
    """Return ``value`` if it is an ``int`` of at least ``least``; ``True`` and ``False`` are refused.

    Args:
        name: the argument, as the caller wrote it.
        value: the argument's value.
        least: the smallest valid number.
        unit: the things counted, such as ``batches``.
        example: a valid number for the message.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}",
            f"a whole number{f' of {unit}' if unit else ''}, at least {least}",
            "a fraction, a negative number or a text",
            f"pass for instance {name}={max(least, 4) if example is None else example}",
        )
    return value


def positive_number(name: str, value: Any, meaning: str = "number", example: float = 1.0) -> float:
    """Return ``value`` if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InputError(
            f"{name}={value!r}",
            f"a {meaning} above 0",
            "zero or None for 'none', a negative number or a text",
            f"pass for instance {name}={example:g}",
        )
    return value


def fraction(
    name: str, value: Any, meaning: str, example: float, zero: bool = False, one: bool = False
) -> float:
    """Return ``value`` as a float if it lies between 0 and 1.

    Args:
        name: the argument, as the caller wrote it.
        value: the argument's value.
        meaning: the quantity, such as ``the share of samples to keep``.
        example: a valid fraction for the message.
        zero: whether 0 is valid.
        one: whether 1 is valid.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
        raise InputError(
            f"{name}={value!r}",
            f"{meaning}, a number in {'[' if zero else '('}0, 1{']' if one else ')'}",
            "a percentage or a count instead of a fraction",
            f"pass a fraction, for instance {name}={example:g}",
        )
    return float(value)


def one_of(name: str, value: T, choices: Iterable[Any], cause: str = "a typo", fix: str | None = None) -> T:
    """Return ``value`` if it is one of ``choices``, of the same type."""
    choices = tuple(choices)
    if not any(value is valid or (type(value) is type(valid) and value == valid) for valid in choices):
        names = ", ".join(valid if isinstance(valid, str) else repr(valid) for valid in choices)
        raise InputError(
            f"{name}={value!r}", f"one of {names}", cause, fix or f"pass for instance {name}={choices[0]!r}"
        )
    return value


def function(name: str, value: Any, expected: str, example: str) -> Callable[..., Any]:
    """Return ``value`` if it can be called and is no class.

    Args:
        name: the argument, as the caller wrote it.
        value: the argument's value.
        expected: the arguments and the result of the function.
        example: a valid call for the message.
    """
    if isinstance(value, type) or not callable(value):
        cause = "a value was passed in place of a function, or arguments changed places"
        raise _wrong_type(name, value, expected, cause, f"pass {example}")
    return value  # type: ignore[no-any-return]


def instance(
    name: str, value: Any, kind: type, expected: str, fix: str, cause: str = "arguments changed places"
) -> Any:
    """Return ``value`` if it is an object of the class ``kind``; the texts are parts of the message."""
    if not isinstance(value, kind):
        raise _wrong_type(name, value, expected, cause, fix)
    return value


def _wrong_type(name: str, value: Any, expected: str, cause: str, fix: str) -> InputError:
    seen = f"{name} of type {type(value).__name__}"
    if isinstance(value, type):
        seen, cause = f"{name}={value.__name__}, a class", "the class was passed, not an instance"
    return InputError(seen, expected, cause, fix)
