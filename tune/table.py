"""Tables of a job for the terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .trials import LAST_LINES, Trial
from .tuner import Tuner

SHOWN = 12
ERROR = re.compile(r"[\w.]*(Error|Exception)(: |$)")
"""Line in which Python names the error that ended a program; errors of several lines begin with it."""
COLORS = {"finished": "green", "stopped": "yellow", "failed": "red", "running": "cyan"}


def number(value: float | None) -> str:
    """Return a number in at most about seven characters."""
    return "" if value is None else f"{value:.5g}"


def trials_table(trials: Iterable[Trial], objectives: Sequence[str], best: Iterable[Trial] = ()) -> Table:
    """Return a table of trials: state, objectives, values, time and reason.

    Args:
        trials: the rows.
        objectives: names of the metrics.
        best: trials that are marked.
    """
    marked = {trial.name for trial in best}
    rows = list(trials)
    names = list(dict.fromkeys(name for trial in rows for name in trial.values))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("trial", "state", *objectives, *names, "seconds", "reason"):
        table.add_column(Text(head), overflow="fold")
    for trial in rows:
        mark = " *" if trial.name in marked else ""
        values = [
            number(v) if isinstance(v, float) else str(v) for v in (trial.values.get(n, "") for n in names)
        ]
        state = Text(trial.state, COLORS[trial.state])
        table.add_row(
            Text(trial.name + mark),
            state,
            number(trial.objective),
            *(number(trial.metrics.get(name)) for name in objectives[1:]),
            *map(Text, values),  # texts of the user, which are no markup
            f"{trial.seconds:.0f}",
            Text(_short(trial.reason)),
        )
    return table


def _short(reason: str) -> str:
    """Return a reason in a line: its first one, and of a program that failed its error, or the last line that it printed."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    head, marked, _ = lines[0].partition(LAST_LINES) if lines else ("", "", "")
    if not marked or len(lines) == 1:
        return head + marked
    return f"{head}: {next((line for line in reversed(lines) if ERROR.match(line)), lines[-1])}"


def live(tuner: Tuner) -> RenderableType:
    """Return what a terminal shows while a job runs."""
    front, names = tuner.front(), [goal.metric for goal in tuner.job.goals]
    ended = [trial for trial in tuner.trials.values() if trial.state != "running"]
    counts = {state: sum(trial.state == state for trial in tuner.trials.values()) for state in COLORS}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    head = Text(f"{told or 'starting'}; {time.monotonic() - tuner.began:.0f} s")
    if len(names) > 1:
        head.append(f"; {len(front)} trials of which no other one is better", "bold")
    elif front:
        head.append(f"; best {names[0]} {number(front[0].objective)} (trial {front[0].name})", "bold")
    bar = Padding(
        ProgressBar(total=tuner.study.limit, completed=len(ended), width=60), 0
    )  # on a line of its own
    last = list(tuner.trials.values())[-SHOWN:]
    return Group(head, bar, trials_table(last, names, front))
