"""Start a search from the trials of other jobs, its parents."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from loopwise.errors import InputError
from loopwise.run import read
from loopwise.warnings import warn

from ..job.files import job_of, stored
from ..job.job import Job
from ..trials import Trial, recorded, trial_of

SOURCE = "loopwise:job"
"""Attribute of a trial in the study: the folder of the parent that ran it."""


def stored_job(folder: str) -> Job:
    """Return the job of a folder.

    Raises:
        InputError: the folder holds none, or a damaged one.
    """
    path = Path(folder) / "tune" / "job.json"
    if not path.exists():
        raise InputError(
            f"the folder {folder!r}, without a tuning job",
            "the folder of loopwise tune run",
            "a typo",
            "check the path",
        )
    return job_of(stored(path)["job"], str(path))


def inherited(folder: str) -> list[Trial]:
    """Return the trials that the job of a folder started from; all of their reports but the last are left out."""
    records, _ = read(folder, "tune", "parents", trial_of)
    trials = {(trial.job, trial.number): trial for trial in records}
    places = {job: place for place, (job, _) in reversed(list(enumerate(trials)))}
    return sorted(trials.values(), key=lambda trial: (places[trial.job], trial.number))


def comparable(job: Job, own: Iterable[Trial], parents: Iterable[Trial]) -> list[Trial]:
    """Return the trials among which the best one is sought: those of the job, and of its parents if they are identical."""
    identical = job.warm_start is not None and job.warm_start.type == "identical"
    return [*own, *(parents if identical else ())]


def inherit(job: Job, folder: str) -> list[Trial]:
    """Return the trials that a new job in a folder starts from.

    A resumed job has them in its own folder, so that it goes on with the same ones whatever its parents do.

    Raises:
        InputError: a parent is no job, or does not fit the job.
    """
    if job.warm_start is None:
        return []
    trials: list[Trial] = []
    left = total = 0
    paths = [os.path.realpath(parent) for parent in job.warm_start.parents]
    for place, parent in enumerate(job.warm_start.parents):
        if paths[place] in paths[:place]:
            raise InputError(
                f"warm_start from {parent!r}, which stands twice",
                "different parents, whose trials count once",
                "a typo, or two paths of one folder",
                "drop one of them",
            )
        _validate(job, parent, folder)
        ended = [trial for trial in recorded(parent) if trial.state != "failed"]
        fitting = [trial for trial in ended if converted(job, trial) is not None]
        total, left = total + len(ended), left + len(ended) - len(fitting)
        for trial in sorted(fitting, key=lambda trial: trial.number):
            trial.job = parent
            trials.append(trial)
    if left or not total:
        kinds = f"{left} of {total} trials of the parents are outside of the ranges, or break a constraint"
        warn(f"{kinds if left else 'no trial of the parents has ended'}; the search starts without them")
    return trials


def _validate(job: Job, folder: str, own: str) -> None:
    """Raise an error unless a parent has the job's objective and parameters, and for ``identical`` its program and data."""
    assert job.warm_start is not None
    identical = job.warm_start.type == "identical"
    if os.path.realpath(folder) == os.path.realpath(own):
        raise InputError(
            f"warm_start from {folder!r}, the job's own folder", "another folder", "a typo", "use --resume"
        )
    parent = stored_job(folder)
    if parent.goals != job.goals:
        raise _unfit(
            folder,
            f"the objective {_goals(parent)}",
            _goals(job),
            "another metric or goal",
            "search by the same objective",
        )
    own_names, theirs = {*job.parameters, *job.static}, {*parent.parameters, *parent.static}
    unknown = sorted(own_names ^ theirs if identical else set(job.parameters) - theirs)
    if unknown:
        raise _unfit(
            folder,
            f"the parameters {', '.join(sorted(theirs))}",
            f"{', '.join(sorted(own_names))}: each searched or static in both jobs",
            f"a parameter that only one of them has: {', '.join(unknown)}",
            "give it in static where it is not searched"
            + (", or use type: transfer if only the parent has it" if identical else ""),
        )
    changed = [name for name in ("command", "channels") if getattr(parent, name) != getattr(job, name)]
    if identical and changed:
        raise _unfit(
            folder,
            f"another {changed[0]}",
            "the same program and data for type: identical",
            "the program or the data has changed",
            "use type: transfer",
        )


def _goals(job: Job) -> str:
    return ", ".join(f"{goal.goal} {goal.metric!r}" for goal in job.goals)


def _unfit(folder: str, seen: str, expected: str, cause: str, fix: str) -> InputError:
    return InputError(f"warm_start from {folder!r} with {seen}", expected, cause, fix)


def converted(job: Job, trial: Trial) -> FrozenTrial | None:
    """Return a parent's trial as one of the job's study; ``None``: its values do not belong to the job's space.

    A parameter that is searched here may be static there, and the other way round; the value of one that is static here may
    differ.
    """
    values: dict[str, Any] = {name: trial.values.get(name) for name in job.parameters}
    if any(values[name] not in part for name, part in job.parameters.items()):
        return None
    if not job.admits({**job.static, **values}):
        return None
    arguments: dict[str, Any] = {
        "params": {name: part.stored(values[name]) for name, part in job.parameters.items()},
        "distributions": {name: part.distribution() for name, part in job.parameters.items()},
        "user_attrs": {SOURCE: trial.job, "loopwise:trial": trial.number},
    }
    scores = [trial.metrics[goal.metric] for goal in job.goals if goal.metric in trial.metrics]
    if len(scores) < len(job.goals):
        return None
    if trial.state == "finished":
        return create_trial(state=TrialState.COMPLETE, values=scores, **arguments)
    if len(scores) > 1:
        return create_trial(state=TrialState.PRUNED, **arguments)
    return create_trial(
        state=TrialState.PRUNED, value=scores[0], intermediate_values={0: scores[0]}, **arguments
    )
