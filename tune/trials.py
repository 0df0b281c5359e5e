"""Trials: their records in the run folder, and the reasons of those that failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwise.run import read
from loopwise.storage.json_lines import count, texts
from loopwise.warnings import warn

from .job.job import Job
from .job.metrics import Objective
from .log.curves import Curve
from .log.hints import hint
from .pareto import pareto_front
from .process.attempt import STREAMS, Attempt

LAST_LINES = "; its last lines:"
"""End of the first line of the reason of a program that failed; what it printed follows."""
SEARCHED = 2**20
"""Bytes at the end of a log that are searched for a line which almost matches."""


@dataclass(slots=True)
class Trial:
    """A trial of which an attempt runs, or that has ended.

    Attributes:
        state: ``running``, ``finished``, ``stopped`` early, or ``failed``.
        reason: why it failed or was stopped.
        objective: its value, if the log told one; with several objectives, that of the first one.
        reports: the objective's values by distinct report.
        metrics: name -> value.
        seconds: time of all attempts.
        job: folder of the parent job that ran it; empty: it is one of the job itself.
    """

    number: int
    values: dict[str, Any]
    state: str = "running"
    reason: str = ""
    objective: float | None = None
    reports: Sequence[float] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    attempts: int = 0
    seconds: float = 0.0
    job: str = ""

    @property
    def name(self) -> str:
        """Number of the trial, behind the folder of the job if that is another one."""
        return f"{self.job}:{self.number}" if self.job else str(self.number)

    def objectives(self, goals: Sequence[Objective]) -> list[float]:
        """Return the values of all objectives."""
        return [self.metrics[goal.metric] for goal in goals]


def front_of(trials: Iterable[Trial], goals: Sequence[Objective]) -> list[Trial]:
    """Return the finished trials of which no other one is better: the Pareto front, the best by the first objective first.

    A trial is better than another one if it is better by one objective and worse by none.  Of equal trials there is the
    first that was started.
    """
    finished = [trial for trial in trials if trial.state == "finished" and trial.objective is not None]
    if len(goals) == 1:  # without sorting: this is asked for at the end of each trial
        sign = 1 if goals[0].goal == "minimize" else -1
        best = min(finished, key=lambda t: (sign * (t.objective or 0), bool(t.job), t.number), default=None)
        return [] if best is None else [best]
    finished.sort(key=lambda trial: (bool(trial.job), trial.number))
    signs = [1 if goal.goal == "minimize" else -1 for goal in goals]
    scores = [[s * v for s, v in zip(signs, t.objectives(goals), strict=True)] for t in finished]
    return [finished[place] for place in pareto_front(scores)]


def record_of(trial: Trial, goals: Sequence[Objective], most: int) -> dict[str, Any]:
    """Return the record of a trial in the run's files.

    Args:
        trial: the trial.
        goals: the objectives, which the record names for readers that do not know the job.
        most: number of reports that it holds at most.
    """
    record = {name: getattr(trial, name) for name in Trial.__slots__}
    record["reports"] = list(trial.reports[:most])
    return record | {"goals": {goal.metric: goal.goal for goal in goals}}


def recorded(folder: str) -> list[Trial]:
    """Return the ended trials that a run folder records; warn of records that are damaged."""
    trials, lost = read(folder, "tune", "trials", trial_of)
    if lost:
        warn(
            f"loopwise.tune: {lost} records of ended trials in {folder!r} were cut by the end of a tuner, or damaged; "
            "they are left out",
            stacklevel=2,
        )
    return trials


def trial_of(record: dict[str, Any]) -> Trial:
    """Return the trial of a record in the run's files, which hold the names of NaN and infinities, as JSON has none."""
    trial = Trial(**{name: record[name] for name in Trial.__slots__})
    count(trial.number, below=2**53)
    texts([trial.state, trial.reason, trial.job])
    trial.reports = [float(value) for value in trial.reports]
    trial.metrics = {name: float(value) for name, value in trial.metrics.items()}
    trial.objective = None if trial.objective is None else float(trial.objective)
    return trial


def explain(
    job: Job, attempt: Attempt, ending: dict[str, Any] | None, curves: Mapping[str, Curve], stopping: bool
) -> str:
    """Return why an attempt failed; empty: it gave a value of the objective.

    Args:
        job: the job.
        attempt: the attempt.
        ending: its code and reason; ``None``: its supervisor was killed.
        curves: all metrics.
        stopping: the tuner stopped it.
    """
    stopped = stopping or (ending is not None and ending["reason"] == "time")
    if ending is None and not stopping:
        return attempt.loss
    if ending is not None and not stopped and ending["code"] != 0:
        last = "\n".join(attempt.tail())
        what = "could not be started" if ending["code"] is None else f"ended with code {ending['code']}"
        return f"the program {what}" + (f"{LAST_LINES}\n{last}" if last else "; it printed nothing")
    for goal in job.goals:
        value = curves[goal.metric].value()
        if value is None:
            return _missing(job, attempt, goal.metric, curves[goal.metric])
        if not math.isfinite(value):
            return f"the objective is {value}" if len(job.goals) == 1 else f"{goal.metric!r} is {value}"
    return ""


def _missing(job: Job, attempt: Attempt, name: str, curve: Curve) -> str:
    metric = next(metric for metric in job.metrics if metric.name == name)
    ends = (attempt.last(stream, SEARCHED) for stream in STREAMS)
    lines = [line for text in ends for line in text.replace("\r", "\n").split("\n")]
    found = hint(metric.name, metric.regex or "", lines)
    if curve.rejected:
        what = f"{curve.rejected} matches of {metric.regex!r} are no numbers"
    elif metric.regex is None:
        what = f"the metric {metric.name!r} has no regex, and the program did not report it"
    else:
        what = f"no line matched {metric.regex!r}"
    if len(job.goals) > 1 and metric.regex is not None:
        what = f"the objective {name!r}: {what}"
    if found is not None:
        return f"{what}; this line almost matches: {found.line.strip()!r}; the regex {found.regex!r} would match it"
    last = "\n".join(attempt.tail())
    return f"{what}; the last lines:\n{last}" if last else f"{what}; the program printed nothing"
