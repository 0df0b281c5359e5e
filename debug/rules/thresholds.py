"""Which rules are wanted, and with which thresholds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from loopwise.errors import InputError

from .finding import Rule
from .history import WINDOW

Rules = Iterable[str] | Mapping[str, Mapping[str, float]]
COUNTS = {"steps", "patience", "samples", "features", "passes"}
SHARES = {"share", "misprediction"}
"""Thresholds by what they are; others are any number above 0."""


def chosen(rules: Rules | None, table: Mapping[str, Rule]) -> dict[str, tuple[Rule, dict[str, float]]]:
    """Rules of a table and their thresholds, by name.

    Args:
        rules: names of rules, or thresholds by name and parameter; ``None``: all.

    Raises:
        InputError: an unknown rule or threshold, or one that is no number, or none of its kind, or beyond the steps that are kept.
    """
    if rules is None:
        return {name: (rule, {}) for name, rule in table.items()}
    if not isinstance(rules, Iterable):
        raise InputError(
            f"rules={rules!r}",
            "names of rules, or a dict from names to thresholds",
            "a switch, or a threshold without its rule",
            "rules=() for none, or leave it out for all",
        )
    names = (rules,) if isinstance(rules, str) else rules
    pairs = list(rules.items()) if isinstance(rules, Mapping) else [(name, {}) for name in names]
    for name, thresholds in pairs:
        if not isinstance(name, str) or name not in table:
            raise InputError(
                f"the rule {name!r}",
                f"one of: {', '.join(table)}",
                "a typing error",
                "use a name from the list",
            )
        _check(name, thresholds, table[name])
    return {name: (table[name], dict(thresholds)) for name, thresholds in pairs}


def _check(name: str, thresholds: Any, rule: Rule) -> None:
    defaults = {key: each.default for key, each in inspect.signature(rule.check).parameters.items()}
    known = list(defaults)[1:]
    if not isinstance(thresholds, Mapping) or set(thresholds) - set(known):
        raise InputError(
            f"the thresholds {thresholds!r} of the rule {name}",
            f"a dict of {', '.join(known)}" if known else "none: it has no thresholds",
            "a typing error, or those of another rule",
            f"rules={{{name!r}: {{{f'{known[0]!r}: ...' if known else ''}}}}}",
        )
    for key, value in thresholds.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < float("inf"):
            expected, cause = "a number above 0", "a percentage as text, or a switch"
        elif key in COUNTS and (float(value) < 1 or float(value) % 1):
            expected, cause = "a whole number", "a share in the place of a number of things"
        elif key in SHARES and float(value) > 1:
            expected, cause = "a share, at most 1", "a percentage"
        elif key == "steps" and defaults[key] <= WINDOW < float(value):
            expected, cause = f"{WINDOW} at most", f"the rule looks at the last {WINDOW} saved steps"
        else:
            continue
        raise InputError(
            f"{key}={value!r} of the rule {name}",
            expected,
            cause,
            "leave it out for the default, or leave the rule out",
        )
