"""Render ``docs/rules.md`` from the rules' docstrings, thresholds and advice."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from typing import Any

from .docstrings import code

LABELS = ("Statistic", "Default", "Why", "False alarms")
"""Parts of a rule's docstring, in their order."""
HEAD = """# Rules

<!-- This page is generated from the rule files by python -m docs.generators. -->

A rule is a function in a file of its own. It looks at what a run saved and yields findings: what is wrong, since which
step, in which tensors, and what is usually done about it. This page lists every rule with the statistic that it
computes, its default threshold, the reason for that default and its known false positives.

Thresholds are passed by name: `Watch(..., rules={"vanishing_gradient": {"ratio": 1e-6}})`. A rule to add is a file
and a row of a table; [CONTRIBUTING.md](../CONTRIBUTING.md#add-a-rule) has the recipe.
"""


def parts(text: str) -> dict[str, str]:
    """Return the parts of a rule's docstring by label; what stands before the first label is ``""``."""
    pattern = rf"(?:^|(?<=\s))({'|'.join(LABELS)})((?:, [^:.]*)?):\s"
    pieces = re.split(pattern, " ".join(text.split()))
    found = {"": pieces[0].strip()}
    for label, note, body in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        found[label] = f"{note.strip(', ')}: {body.strip()}" if note else body.strip()
    return found


def entry(name: str, rule: Any) -> str:
    """Return the section of one rule."""
    module = sys.modules[rule.check.__module__]
    text = parts(inspect.getdoc(module) or "")
    thresholds = ", ".join(
        f"`{key}={parameter.default:g}`"
        for key, parameter in list(inspect.signature(rule.check).parameters.items())[1:]
        if isinstance(parameter.default, (int, float))
    )
    mode = "" if getattr(rule, "mode", "train") == "train" else f", looks at steps of mode `{rule.mode}`"
    lines = [f"### {name}", "", f"*{rule.severity}*{mode}. {code(text[''])}", ""]
    lines += [f"- {label}: {_upper(code(text[label]))}" for label in LABELS if text.get(label)]
    lines += [f"- Thresholds: {thresholds}"] if thresholds else []
    return "\n".join([*lines, f"- Advice: {_upper(rule.advice)}.", ""])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def section(title: str, introduction: str, rules: Mapping[str, Any]) -> str:
    """Return the section of one source of findings."""
    return "\n".join([f"## {title}", "", introduction, "", *(entry(*item) for item in rules.items())])


def render() -> str:
    """Return the page."""
    from loopwise.debug import PROFILE_RULES, RULES

    saved = section(
        "Saved steps",
        "These rules look at each saved step, while training goes on or later by `loopwise debug findings RUN`.",
        RULES,
    )
    profile = section(
        "Profile", "These rules look at the samples of the machine and the phases of steps.", PROFILE_RULES
    )
    return "\n".join([HEAD, saved, profile]).rstrip() + "\n"
