"""Trials: their records in the run folder, and the reasons of those that failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopwise.run import read

from .job.job import Job, Objective
from .log.curves import Curve
from .log.hints import hint
from .process.attempt import STREAMS, Attempt

SEARCHED = 2**20
"""Bytes at the end of a log that are searched for a line which almost matches."""


@dataclass(slots=True)
class Trial:
    """A trial of which an attempt runs, or that has ended.

    Attributes:
        state: ``running``, ``finished``, ``stopped`` early, or ``failed``.
        reason: why it failed or was stopped.
        objective: its value, if the log told one.
        reports: the objective's values by distinct report.
        metrics: name -> value.
        seconds: time of all attempts.
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


def best_of(trials: Iterable[Trial], objective: Objective) -> Trial | None:
    """Return the finished trial with the best objective, of equal ones the first that was started; ``None``: there is none."""
    sign = 1 if objective.goal == "minimize" else -1
    finished = [trial for trial in trials if trial.state == "finished" and trial.objective is not None]
    return min(finished, key=lambda trial: (sign * (trial.objective or 0.0), trial.number), default=None)


def recorded(folder: str) -> list[Trial]:
    """Return the ended trials that a run folder records.

    Raises:
        InputError: the folder holds no run.
    """
    records, _ = read(folder, "tune", "trials")
    return [_trial(record) for record in records]


def _trial(record: dict[str, Any]) -> Trial:
    trial = Trial(
        **{name: record[name] for name in Trial.__slots__}
    )  # JSON has no NaN, so that the run's files hold its name
    trial.reports = [float(value) for value in trial.reports]
    trial.metrics = {name: float(value) for name, value in trial.metrics.items()}
    trial.objective = None if trial.objective is None else float(trial.objective)
    return trial


def explain(job: Job, attempt: Attempt, ending: dict[str, Any] | None, curve: Curve, stopping: bool) -> str:
    """Return why an attempt failed; empty: it gave a value of the objective.

    Args:
        job: the job.
        attempt: the attempt.
        ending: its code and reason; ``None``: its supervisor was killed.
        curve: the objective.
        stopping: the tuner stopped it.
    """
    stopped = stopping or (ending is not None and ending["reason"] == "time")
    if ending is None and not stopping:
        return attempt.loss
    if ending is not None and not stopped and ending["code"] != 0:
        last = "\n".join(attempt.tail())
        what = "could not be started" if ending["code"] is None else f"ended with code {ending['code']}"
        return f"the program {what}; its last lines:\n{last}"
    value = curve.value()
    if value is None:
        return _missing(job, attempt, curve)
    return "" if math.isfinite(value) else f"the objective is {value}"


def _missing(job: Job, attempt: Attempt, curve: Curve) -> str:
    metric = next(metric for metric in job.metrics if metric.name == job.objective.metric)
    ends = (attempt.last(stream, SEARCHED) for stream in STREAMS)
    lines = [line for text in ends for line in text.replace("\r", "\n").split("\n")]
    found = hint(metric.name, metric.regex or "", lines)
    if curve.rejected:
        what = f"{curve.rejected} matches of {metric.regex!r} are no numbers"
    elif metric.regex is None:
        what = f"the metric {metric.name!r} has no regex, and the program did not report it"
    else:
        what = f"no line matched {metric.regex!r}"
    if found is not None:
        return f"{what}; this line almost matches: {found.line.strip()!r}; the regex {found.regex!r} would match it"
    return what + "; the last lines:\n" + "\n".join(attempt.tail())
