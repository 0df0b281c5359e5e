"""Tables of a job for the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

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
        reason = trial.reason.splitlines()[0] if trial.reason else ""
        table.add_row(
            Text(trial.name + mark),
            state,
            number(trial.objective),
            *(number(trial.metrics.get(name)) for name in objectives[1:]),
            *map(Text, values),  # texts of the user, which are no markup
            f"{trial.seconds:.0f}",
            Text(reason),
        )
    return table


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
