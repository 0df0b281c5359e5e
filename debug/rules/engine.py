"""Applies rules to saved steps, while training goes on or afterwards: what they find is the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..model.source_lines import of_tensor
from ..store.columns import View
from ..store.index import Layout
from . import RULES, Finding, History, Rule
from .history import Read, Step
from .thresholds import Rules, chosen

VIEWS = 64
"""Layouts that are remembered: there is one for each shape of outputs."""
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
        self._rules = chosen(rules, RULES)
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
