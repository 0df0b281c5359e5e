"""A parameter that an optimizer holds and that gets no gradient.

Statistic: whether ``grad`` is there at the update.  Default: missing at three saved steps running.
False alarms: experts or branches that are not used at each step, with fewer saved steps than that takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Rule, Seen
from .history import History


def check(history: History, steps: float = 3) -> Iterator[Seen]:
    last = history.last(int(steps))
    if last is None:
        return
    each = [step.marks.get("facts", {}).get("no_gradient", ()) for step in last]
    names = tuple(name for name in each[0] if all(name in other for other in each[1:]))
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield Seen(f"{shown} never gets a gradient", names)


RULE = Rule(
    check,
    "warning",
    "look for a detach(), a no_grad(), an output that the loss does not use, or a layer that forward() leaves out",
)
