"""Render ``docs/rules.md`` from the registry of rules: their docstrings, thresholds and advice."""

from __future__ import annotations

import textwrap
from typing import Any

from .docstrings import code

HEAD = """# Rules

<!-- This page is generated from the rule files by python -m docs.generators. -->

A rule looks at one source of measurements and reports one kind of fault: what is wrong, since which step, in which
tensors, and what usually helps. This page lists every rule with the statistic that it computes, its default threshold,
the reason for that default and its known false positives.

`Watch(..., rules=...)` selects rules: `False` for none, `"auto"` for those whose data is saved, a list of names, or thresholds
by name, such as `rules={"vanishing_gradient": {"ratio": 1e-6}}`. To add a rule, follow the
[recipe](../CONTRIBUTING.md#add-a-rule).
"""
SOURCES = {
    "saved step": (
        "Saved steps",
        "They look at each saved step, live or later by `loopwise debug findings RUN`.",
    ),
    "ranks": ("Ranks", "They compare the ranks of one training, without a collective."),
    "schedules": ("End of training", "It looks at the learning-rate schedulers when training has finished."),
    "NaN trap": ("NaN trap", "It looks at every step, saved or not."),
    "profile": ("Profile", "They look at the samples of the machine and the phases of steps."),
    "preflight": ("Preflight", "`preflight(model, batch, loss, optimizer)` detects them before training."),
}
"""Source of a rule -> title of its section and introduction."""


def entry(documentation: Any) -> str:
    """Return the section of one rule, from its ``Documentation``."""
    name, rule, summary, texts = documentation
    thresholds = ", ".join(f"``{threshold}={value:g}``" for threshold, value in rule.thresholds.items())
    lines = [f"### {name}", "", f"*{rule.severity}*. {code(summary)}", ""]
    for label, text in (texts | {"Thresholds": thresholds, "Advice": f"{rule.advice}."}).items():
        if text:
            item = f"- **{label}**: {code(text[:1].upper() + text[1:])}"
            lines += textwrap.wrap(
                item, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )
    return "\n".join([*lines, ""])


def render() -> str:
    """Return the page."""
    from loopwise.debug.rules.registry import documentation

    lines = [HEAD]
    for source, (title, introduction) in SOURCES.items():
        entries = [entry(text) for text in documentation() if text.rule.source == source]
        lines += [f"## {title}", "", introduction, "", *entries]
    return "\n".join(lines).rstrip() + "\n"
