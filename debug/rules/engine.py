"""Engine that applies rules and makes findings of their observations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..model.source_lines import of_tensor
from .finding import Finding, Observation
from .registry import RULES


def make_finding(name: str, seen: Observation, step: int, mode: str = "train", line: str = "") -> Finding:
    """Make a finding of an observation of the rule ``name`` at a step; ``line`` is the line of code at fault."""
    rule = RULES[name]
    advice = seen.advice or rule.advice
    return Finding(
        name, rule.severity, step, mode, seen.what, seen.tensors, dict(seen.evidence), advice, line
    )


class Engine:
    """Application of the selected rules of one source.

    A rule reports each tensor once, and no more findings than its ``most``.  A rule that raises is switched off; the
    others go on.

    Args:
        rules: thresholds by name; rules of other sources are ignored.
        source: the source of the data that ``apply`` gets.

    Attributes:
        failures: messages about rules that were switched off; the owner of the engine empties the list.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, float]], source: str) -> None:
        self._rules = {n: (RULES[n], dict(t)) for n, t in rules.items() if RULES[n].source == source}
        self._reported: dict[str, set[str]] = {}
        self._counts = Counter[str]()
        self.failures: list[str] = []

    def apply(
        self,
        observed: Any,
        step: int,
        mode: str = "train",
        lines: Mapping[str, str] | None = None,
        scalars: bool = False,
    ) -> list[Finding]:
        """Return the new findings.

        Args:
            observed: data of the source, the first argument of ``detect``.
            step: step of the findings, over all modes.
            mode: mode of the step; rules of other modes are not applied.
            lines: lines of the user's code, by module.
            scalars: true if only losses and metrics of the step are saved.
        """
        findings: list[Finding] = []
        for name, (rule, thresholds) in list(self._rules.items()):
            if rule.mode != mode or rule.detect is None or (scalars and not rule.scalars):
                continue
            try:
                for seen in rule.detect(observed, **thresholds):
                    if self._is_new(name, seen.tensors or ("",), rule.most):
                        line = of_tensor(seen.tensors[0], lines) if lines and seen.tensors else ""
                        findings.append(make_finding(name, seen, step, mode, line))
            except Exception as error:
                del self._rules[name]
                self.failures.append(f"the rule {name} is switched off: {error!r}")
        return findings

    def _is_new(self, name: str, tensors: tuple[str, ...], most: int) -> bool:
        """Return whether the rule has not reported all of these tensors yet, and remember them."""
        reported = self._reported.setdefault(name, set())
        if reported.issuperset(tensors) or self._counts[name] >= most:
            return False
        reported.update(tensors)
        self._counts[name] += 1
        return True
