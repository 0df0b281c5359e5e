"""Which companions go along with a ``Watch``."""

from __future__ import annotations

from loopwise.ranks import world_size
from loopwise.run import Run

from .capture.budget import Budget
from .capture.capture import Wanted
from .model.vocabulary import place
from .monitors.monitor import Companion
from .monitors.ranks import Replicas
from .monitors.stall import SECONDS, Stalled
from .nan import Trap
from .profiler import Profile, Profiler
from .reporting import Reports
from .rules import RULES
from .rules.thresholds import Rules, chosen


def company(
    wanted: Wanted,
    run: Run,
    reports: Reports,
    budget: Budget,
    rules: Rules | None,
    trap: bool,
    profile: bool | Profile,
) -> list[Companion]:
    """Those that are wanted, in the order in which steps begin and end.

    Args:
        wanted, rules, trap, profile: as the ``Watch`` was given them; rules ``()`` for none.
    """
    found: list[Companion] = []
    thresholds = chosen(rules, RULES)
    if "stalled_training" in thresholds:
        seconds = thresholds["stalled_training"][1].get("seconds", SECONDS)
        found.append(Stalled(reports.at_once, seconds))
    if thresholds and world_size() > 1:
        found.append(Replicas(wanted.models, wanted.save))
    if trap:
        found.append(
            Trap(
                wanted.models, wanted.optimizers, run, wanted.scaler, lambda: reports.findings, budget.counted
            )
        )
    if profile is not False:
        options = Profile() if profile is True else profile
        try:
            found.append(Profiler(wanted.models, wanted.optimizers, run, options, lambda: budget.spent))
        except Exception as error:  # no threads left, an odd driver: options were looked at before
            reports.say(f"Profiler is switched off: {error!r}{place(error)}")
    return found
