"""Which monitors go along with a ``Watch``."""

from __future__ import annotations

from loopwise.ranks import world_size
from loopwise.run import Run

from .capture.budget import Budget
from .capture.capture import Wanted
from .model.vocabulary import place
from .monitors.monitor import Monitor
from .monitors.ranks import RankMonitor
from .monitors.stall import StallMonitor
from .nan import Trap
from .profiler import Profile, Profiler
from .reporting import Reports
from .rules.thresholds import Selection, of_source


def company(
    wanted: Wanted,
    run: Run,
    reports: Reports,
    budget: Budget,
    rules: Selection,
    trap: bool,
    profile: bool | Profile,
) -> list[Monitor]:
    """Those that are wanted, in the order in which steps begin and end.

    Args:
        rules: the selected rules.
        wanted, trap, profile: as the ``Watch`` was given them.
    """
    found: list[Monitor] = []
    if "stalled_training" in rules:
        found.append(StallMonitor(reports.at_once, rules["stalled_training"].get("seconds")))
    ranks = of_source(rules, "ranks")
    if ranks and world_size() > 1:
        found.append(RankMonitor(wanted.models, wanted.save, ranks))
    if trap:
        found.append(
            Trap(
                wanted.models, wanted.optimizers, run, wanted.scaler, lambda: reports.findings, budget.counted
            )
        )
    if profile is not False:
        options = Profile() if profile is True else profile
        try:
            found.append(
                Profiler(
                    wanted.models,
                    wanted.optimizers,
                    run,
                    options,
                    lambda: budget.spent,
                    of_source(rules, "profile"),
                )
            )
        except Exception as error:  # no threads left, an odd driver: options were looked at before
            reports.say(f"Profiler is switched off: {error!r}{place(error)}")
    return found
