"""Tables of a job for the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .trials import Trial
from .tuner import Tuner

SHOWN = 12
COLORS = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "cyan"}


def number(value: float | None) -> str:
    """Return a number in at most about seven characters."""
    return "" if value is None else f"{value:.5g}"


def trials_table(trials: Iterable[Trial], objective: str, best: int | None = None) -> Table:
    """Return a table of trials: state, objective, values, time and reason."""
    rows = list(trials)
    names = list(dict.fromkeys(name for trial in rows for name in trial.values))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("trial", "state", objective, *names, "seconds", "reason"):
        table.add_column(Text(head), overflow="fold")
    for trial in rows:
        mark = " *" if trial.number == best else ""
        values = [
            number(v) if isinstance(v, float) else str(v) for v in (trial.values.get(n, "") for n in names)
        ]
        state = Text(trial.state, COLORS[trial.state])
        reason = trial.reason.splitlines()[0] if trial.reason else ""
        table.add_row(
            f"{trial.number}{mark}",
            state,
            number(trial.objective),
            *map(Text, values),  # texts of the user, which are no markup
            f"{trial.seconds:.0f}",
            Text(reason),
        )
    return table


def live(tuner: Tuner) -> RenderableType:
    """Return what a terminal shows while a job runs."""
    best, objective = tuner.best(), tuner.job.objective
    ended = [trial for trial in tuner.trials.values() if trial.state != "running"]
    counts = {state: sum(trial.state == state for trial in tuner.trials.values()) for state in COLORS}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    head = Text(f"{told or 'starting'}; {time.monotonic() - tuner.began:.0f} s")
    if best is not None and best.objective is not None and math.isfinite(best.objective):
        head.append(f"; best {objective.metric} {best.objective:.5g} (trial {best.number})", "bold")
    bar = Padding(
        ProgressBar(total=tuner.study.limit, completed=len(ended), width=60), 0
    )  # on a line of its own
    last = list(tuner.trials.values())[-SHOWN:]
    return Group(head, bar, trials_table(last, objective.metric, None if best is None else best.number))
