"""Applies rules to saved steps, while training goes on or afterwards: what they find is the same."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from loopwise.errors import InputError

from .index import Layout
from .lines import of_tensor
from .rules import RULES, Finding, History, Rule
from .rules.history import Read, Step, View

Rules = Iterable[str] | Mapping[str, Mapping[str, float]]
VIEWS = 64
"""Layouts that are remembered: there is one for each shape of outputs."""
COUNTS = {"steps", "patience", "samples", "features", "passes"}
SHARES = {"share", "misprediction"}
"""Thresholds by what they are; others are any number above 0."""
FEW = 20
"""Findings of one rule that are kept of a run; then it has been said."""


class Judge:
    """Looks at the saved steps of one run in their order.

    Each tensor is found wrong by each rule once.  A rule that fails is switched off; the others go on.

    Args:
        rules: names of rules, or thresholds by name and parameter; ``None``: all.

    Raises:
        InputError: an unknown rule or threshold, or one that is no number.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = chosen(rules)
        self._history = History()
        self._told: dict[str, set[str]] = {}
        self._counts: dict[str, int] = {}
        self._views: dict[int, View] = {}
        self.failures: list[str] = []
        """What was wrong with rules that were switched off; to be taken by whoever says it."""

    def look(self, step: Step) -> list[Finding]:
        """What is found wrong with a step that was not before."""
        self._history.add(step)
        found: list[Finding] = []
        for name, (rule, thresholds) in list(self._rules.items()):
            if rule.mode != step.mode:
                continue
            try:
                for seen in rule(self._history, **thresholds):
                    found += self._new(name, rule, seen.tensors, seen.what, dict(seen.evidence))
            except Exception as error:
                del self._rules[name]
                self.failures.append(f"the rule {name} is switched off: {error!r}")
        return found

    def _new(
        self, name: str, rule: Rule, tensors: tuple[str, ...], what: str, evidence: dict[str, Any]
    ) -> Iterator[Finding]:
        told = self._told.setdefault(name, set())
        if not set(tensors or ("",)) - told or self._counts.get(name, 0) >= FEW:
            return
        told.update(tensors or ("",))
        self._counts[name] = self._counts.get(name, 0) + 1
        now = self._history.now
        line = of_tensor(tensors[0], self._history.lines) if tensors else ""
        yield Finding(name, rule.severity, now.number, now.mode, what, tensors, evidence, rule.advice, line)

    def step(self, record: Any, layout: Layout, read: Read) -> Step:
        """A step to look at.

        Args:
            record: has ``step``, ``mode``, ``mode_step`` and ``marks``.
            layout: of its block.
            read: reads the block's bytes.
        """
        view = self._views.get(id(layout))
        if view is None or view.layout is not layout:
            if len(self._views) >= VIEWS:
                self._views.clear()
            view = self._views[id(layout)] = View(layout)
        return Step(record.step, record.mode, record.mode_step, record.marks, view, read, record.time)


def chosen(rules: Rules | None) -> dict[str, tuple[Rule, dict[str, float]]]:
    """Rules and their thresholds by name.

    Raises:
        InputError: see `Judge`.
    """
    if rules is None:
        return {name: (rule, {}) for name, rule in RULES.items()}
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
        if not isinstance(name, str) or name not in RULES:
            raise InputError(
                f"the rule {name!r}",
                f"one of: {', '.join(RULES)}",
                "a typing error",
                "use a name from the list",
            )
        _check_thresholds(name, thresholds)
    return {name: (RULES[name], dict(thresholds)) for name, thresholds in pairs}


def _check_thresholds(name: str, thresholds: Any) -> None:
    known = [each.name for each in list(inspect.signature(RULES[name].check).parameters.values())[1:]]
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
        else:
            continue
        raise InputError(
            f"{key}={value!r} of the rule {name}",
            expected,
            cause,
            "leave it out for the default, or leave the rule out",
        )
