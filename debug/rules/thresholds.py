"""Selection of rules, by name and with thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from loopwise.errors import InputError

from .finding import Rule
from .history import WINDOW
from .registry import RULES

Rules = bool | str | Iterable[str] | Mapping[str, Mapping[str, float]]
"""Argument of public functions: ``True`` or ``"auto"`` for all, ``False`` for none, names, or thresholds by name."""
Selection = dict[str, dict[str, float]]
"""Selected rules: name -> thresholds that differ from the defaults."""
COUNTS = {"steps", "patience", "samples", "features", "passes"}
"""Thresholds that are whole numbers."""
SHARES = {"share", "misprediction"}
"""Thresholds that are shares, at most 1.  All other thresholds are numbers above 0."""


def select(rules: Rules, *sources: str) -> Selection:
    """Return the selected rules.

    Args:
        rules: ``True`` or ``"auto"``: all rules of the sources; ``False``: none; names; or thresholds by name.
        sources: available sources; rules of other sources are refused.

    Raises:
        InputError: nothing or an unknown rule is selected, or a threshold is unknown or out of range.
    """
    names = [name for name, rule in RULES.items() if rule.source in sources]
    if isinstance(rules, bool) or rules == "auto":
        return {name: {} for name in names} if rules else {}
    if not isinstance(rules, Iterable) or not (listed := [rules] if isinstance(rules, str) else [*rules]):
        raise InputError(
            f"rules={rules!r}",
            "True, False, names of rules, or a dict from names to thresholds",
            "an empty list, or a threshold without its rule",
            "rules=False for none, rules=True for all",
        )
    selection: Selection = {}
    for name in listed:
        if not isinstance(name, str) or name not in names:
            known = isinstance(name, str) and name in RULES
            raise InputError(
                f"the rule {name!r}" + (f", whose source is {RULES[name].source!r}" if known else ""),
                f"one of: {', '.join(names)}",
                "a rule whose source is not available here, or is switched off" if known else "a typo",
                "use a name from the list",
            )
        thresholds = rules[name] if isinstance(rules, Mapping) else {}
        _validate(name, thresholds, RULES[name])
        selection[name] = dict(thresholds)
    return selection


def of_source(selection: Selection, source: str) -> Selection:
    """Return the selected rules of one source."""
    return {name: thresholds for name, thresholds in selection.items() if RULES[name].source == source}


def _validate(name: str, thresholds: Any, rule: Rule) -> None:
    defaults = rule.thresholds
    if not isinstance(thresholds, Mapping) or set(thresholds) - set(defaults):
        example = f"{next(iter(defaults))!r}: ..." if defaults else ""
        raise InputError(
            f"the thresholds {thresholds!r} of the rule {name}",
            f"a dict of {', '.join(defaults)}" if defaults else "none: the rule has no thresholds",
            "a typo, or thresholds of another rule",
            f"rules={{{name!r}: {{{example}}}}}",
        )
    for key, value in thresholds.items():
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < float("inf"):
            expected, cause = "a number above 0", "a percentage as text, or a switch"
        elif key in COUNTS and (float(value) < 1 or float(value) % 1):
            expected, cause = "a whole number", "a share in place of a count"
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
            "omit the threshold to use the default, or omit the rule",
        )
